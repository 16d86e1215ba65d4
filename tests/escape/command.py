"""Trials through the command `omni-mcp sandbox run`, started as a person would, from among everything leaked."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from omni_mcp.engines.sandbox.launcher import base_interpreter
from tests.escape.probe import Outcome, Probe, Verdict, judge, program
from tests.escape.trial import EACH_IN_A_CHILD, HOLD_S, LIMITS, stopped_in
from tests.escape.world import World

_FLAGS = {
    "timeout_s": "--wall", "memory_mib": "--memory", "cpu_s": "--cpu", "processes": "--pids", "open_files": "--nofile",
    "file_size_mib": "--fsize", "disk_mib": "--disk",
}  # fmt: skip
_NEEDS_AN_INODE_LIMIT = ("inodes", "deep-directories")  # the command has no option for it


def fits_the_command(probe: Probe) -> bool:
    """Whether one command is all that the probe needs."""
    more = probe.before or probe.beside or probe.given or probe.profile != "usual" or probe.may_export is not None
    return not more and probe.group != "life time" and probe.name not in _NEEDS_AN_INODE_LIMIT


def run_by_command(probes: Sequence[Probe]) -> Iterator[tuple[Probe, Verdict]]:
    """Try those of *probes* that fit. Those that may share a cell do; what is not stopped there is tried alone."""
    fitting = [probe for probe in probes if fits_the_command(probe)]
    place = Path(tempfile.mkdtemp(prefix="omni-escape-"))
    try:
        world = World(place)
        try:
            shared = _stopped_together([probe for probe in fitting if probe.shares], world)
            rest = [probe for probe in fitting if probe.name not in shared]
            with ThreadPoolExecutor(2) as workers:
                alone = dict(zip((p.name for p in rest), workers.map(lambda p: _alone(p, world), rest), strict=True))
            for probe in fitting:
                yield probe, {**shared, **alone}[probe.name]
        finally:
            world.close()
    finally:
        shutil.rmtree(place)


def _alone(probe: Probe, world: World) -> Verdict:
    look = world.watch()
    said, ended = _run(probe.script, {**LIMITS, **probe.limits}, world)
    breaches = [*look(), *(["what only the other side knows was said"] if world.reveals(said.encode()) else [])]
    return judge(probe, Outcome(said=said, ended=ended, breaches=tuple(breaches)))


def _stopped_together(probes: list[Probe], world: World) -> dict[str, Verdict]:
    if not probes:
        return {}
    look = world.watch()
    scripts = {probe.name: probe.script for probe in probes}
    said, ended = _run(f"SCRIPTS = {scripts!r}\n{EACH_IN_A_CHILD}", LIMITS, world)
    if ended != "exit 0" or look():
        return {}
    found = json.loads(said.splitlines()[0])
    return stopped_in(found, probes)


def _run(script: str, limits: Mapping[str, float], world: World) -> tuple[str, str]:
    """Run one script by the command; return what it said and how it ended."""
    facts = {**world.facts(), "workspace": "/workspace", "hold_s": HOLD_S, "bare": False, "fifo": "/nowhere"}
    flags = [word for name, flag in _FLAGS.items() for word in (flag, str(limits[name]))]
    flags += ["--output", str(int(limits["output_limit_bytes"]) >> 10), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "omni_mcp.cli.main", "sandbox", "run", *flags, "--",
         base_interpreter().binary, "-I", "-S", "-c", program(script, facts)],
        input=b"input", capture_output=True, timeout=60, check=False, close_fds=False,
    )  # fmt: skip
    lines = done.stderr.decode(errors="replace").splitlines()
    try:
        end = json.loads(lines[-1])
    except (IndexError, json.JSONDecodeError):
        return f"{done.stdout!r} {done.stderr!r}", f"the command ended with {done.returncode}"
    said = done.stdout.decode(errors="replace") + "\n".join(lines[:-1])
    if end["reason"] == "exit":
        return said, f"exit {end['exit_code']}"
    return said, f"signal {end['signal']}" if end["reason"] == "signal" else end["reason"]
