"""A bare place: fresh namespaces and a throw-away cgroup without our wall, where a probe must get through.

It shows that a probe bites. Nothing is ever tried on the host itself.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from omni_mcp.engines.sandbox.launcher import base_interpreter
from tests.escape.bare_init import FELL
from tests.escape.probe import Outcome, Probe

MEMORY_LIMIT_BYTES = 768 << 20  # what a probe takes at most is far below
PROCESS_LIMIT = 400
_ROOT = Path("/sys/fs/cgroup")
_NAMESPACES = ("--mount", "--pid", "--fork", "--kill-child", "--net", "--ipc", "--uts", "--cgroup")
_REPOSITORY = Path(__file__).parents[2]
_numbers = itertools.count()


def run_bare(probe: Probe) -> Outcome:
    """Run *probe* in a bare place of its own. As root only: an ordinary user has less to lose than a probe needs."""
    interpreter = base_interpreter()
    users = () if probe.initial else ("--user", "--map-root-user")
    with tempfile.TemporaryDirectory(prefix="omni-bare-") as base, _cgroup() as groups:
        order = {
            "base": base, "prefixes": interpreter.prefixes, "interpreter": interpreter.binary, "script": probe.script,
            "before": probe.before, "beside": probe.beside, "given": probe.given, "may_export": probe.may_export,
            "holds": probe.group == "life time",
        }  # fmt: skip
        join = " && ".join([*(f"echo $$ > {group}/cgroup.procs" for group in groups), 'exec "$@"'])
        command = ["sh", "-c", join, "sh", "unshare", *users, *_NAMESPACES, "--", interpreter.binary, "-S", "-m"]
        done = subprocess.run(
            [*command, "tests.escape.bare_init"], input=json.dumps(order), capture_output=True, text=True,
            timeout=60, check=False, cwd=_REPOSITORY, env={"PATH": os.environ["PATH"], "PYTHONPATH": str(_REPOSITORY)},
        )  # fmt: skip
    if done.returncode == FELL:
        return Outcome(said=done.stdout, ended="process 1 fell", breaches=("process 1 obeyed",))
    if done.returncode != 0:
        return Outcome(said=f"{done.stdout}{done.stderr}", ended=f"the place ended with {done.returncode}")
    seen = json.loads(done.stdout)
    return Outcome(said=seen["said"], ended=seen["ended"], breaches=tuple(seen["breaches"]))


@contextlib.contextmanager
def _cgroup() -> Iterator[list[Path]]:
    """Make a cgroup with hard limits, version 1 or 2, and remove it."""
    name = f"omni-bare-{os.getpid()}-{next(_numbers)}"
    if (_ROOT / "cgroup.controllers").exists():
        groups = {_ROOT / name: {"memory.max": MEMORY_LIMIT_BYTES, "memory.swap.max": 0, "pids.max": PROCESS_LIMIT}}
    else:
        groups = {
            _ROOT / "memory" / name: {"memory.limit_in_bytes": MEMORY_LIMIT_BYTES},
            _ROOT / "pids" / name: {"pids.max": PROCESS_LIMIT},
        }
    try:
        for group, values in groups.items():
            group.mkdir()
            for file, value in values.items():
                with contextlib.suppress(FileNotFoundError):  # no swap accounting
                    (group / file).write_text(str(value))
        yield list(groups)
    finally:
        for group in groups:
            _remove(group)


def _remove(group: Path) -> None:
    """Remove a cgroup whose last process may still be on its way out."""
    for _ in range(1000):
        try:
            group.rmdir()
        except OSError:
            os.sched_yield()
        else:
            return
    group.rmdir()
