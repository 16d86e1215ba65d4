"""`omni-mcp sandbox run`: one command in one fresh cell, with its streams, its limits and its exit code."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
import signal
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import click
from pydantic import ValidationError

from omni_mcp.cli.sandbox_streams import InputPump, OutputPump, open_missing_descriptors
from omni_mcp.cli.sandbox_workspace import (
    Brought,
    CannotCopy,
    GivenWorkspace,
    WorkspaceRefused,
    WorkspaceUnsafe,
)
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.manifest import Posture
from omni_mcp.contracts.sandbox import Connection, Isolation, Job, JobEnd, Streams
from omni_mcp.engines.sandbox.cells import open_sandbox
from omni_mcp.engines.sandbox.profile_rules import variable_fault
from omni_mcp.engines.sandbox.profiles import Profile, find_profile
from omni_mcp.paths import bundled, find_home

TIMED_OUT, TOO_MUCH_OUTPUT, NO_SANDBOX, NOT_FOUND, KILLED, OUTPUT_LOST = 124, 125, 126, 127, 137, 141
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SETTLE_LIMIT_S = 1.0
_USAGE = ("memory_peak_bytes", "cpu_ms", "wall_ms", "bytes_out", "temperature", "limits_reached")
_OPTION_OF = {
    "timeout_s": "--wall", "memory_mib": "--memory", "processes": "--pids", "open_files": "--nofile",
    "file_size_mib": "--fsize", "disk_mib": "--disk", "output_limit_bytes": "--output", "cpu_s": "--cpu",
    "hosts": "--allow", "read": "--read",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be run, and how."""

    profile: Profile
    job: Job
    use_cgroups: bool
    use_namespaces: bool
    as_json: bool


@dataclass(slots=True, kw_only=True)
class Story:
    """What is known of one run so far. `end` stays None if the job was ended with us; `code` is our exit code."""

    isolation: Isolation | None = None
    connections: list[Connection] = field(default_factory=list)
    end: JobEnd | None = None
    code: int = NO_SANDBOX
    brought: Brought | None = None

    @property
    def reason(self) -> str:
        return self.end.reason if self.end is not None else "cancelled"

    @property
    def message(self) -> str:
        if self.end is not None:
            return self.end.message
        return "the output cannot be written" if self.code == OUTPUT_LOST else "interrupted"


@click.command("run", context_settings={"allow_interspersed_args": False})
@click.option("--profile", "profile_name", default="shell", show_default=True, help="See: omni-mcp sandbox profiles")
@click.option("--workspace", type=click.Path(path_type=Path), help="A directory of yours, at /workspace.")
@click.option("--wall", type=float, help="Seconds that it may take.")
@click.option("--memory", type=int, help="MiB of memory, of all its processes together.")
@click.option("--pids", type=int, help="Processes and threads.")
@click.option("--nofile", type=int, help="Open files of one process.")
@click.option("--fsize", type=int, help="MiB of one file.")
@click.option("--disk", type=int, help="MiB that it may write.")
@click.option("--output", type=int, help="KiB of stdout and stderr together.")
@click.option("--cpu", type=float, help="Seconds of CPU time. Default: the profile's, or --wall if that is more.")
@click.option(
    "--allow", multiple=True, metavar="HOST:PORT", help="May be reached through the proxy; *.suffix:port too."
)
@click.option("--allow-network", multiple=True, metavar="CIDR", help="Private range that an allowed name may be in.")
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="Set an environment variable.")
@click.option("--read", multiple=True, metavar="DIR", help="Show a directory, read-only, at the same place.")
@click.option("--posture", type=click.Choice(get_args(Posture)), help="The least isolation that does.")
@click.option("--no-cgroup", is_flag=True, help="Do without cgroups.")
@click.option("--no-namespaces", is_flag=True, help="Do without namespaces; needs --posture landlock.")
@click.option("--json", "as_json", is_flag=True, help="How it ended, as the last line of stderr.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(command: tuple[str, ...], as_json: bool, workspace: Path | None, **options: Any) -> None:
    """Run a command in a fresh cell: no network, no files of yours, limits on everything.

    \b
    omni-mcp sandbox run -- python3 -c 'print(6 * 7)'
    omni-mcp sandbox run --wall 5 --memory 128 --workspace . -- python3 probe.py
    omni-mcp sandbox run --allow api.example.org:443 --json -- curl https://api.example.org/

    Exit codes: those of the command; 128+n if it died of its own signal n; 124 time is up; 125 too much output;
    137 killed by any other limit, or from outside; 126 no sandbox, or less than demanded; 127 no such command;
    130 and 143 after Ctrl-C and SIGTERM; 141 if the output cannot be written; 2 wrong usage.
    """
    open_missing_descriptors()
    try:
        plan = plan_of(command, options, as_json=as_json)
        with contextlib.ExitStack() as cleanup:
            given = None
            if workspace is not None:
                given = GivenWorkspace(workspace, plan.job.limits)
                cleanup.callback(given.close)
            code = asyncio.run(carry_out(plan, given))
        sys.exit(code)
    except WorkspaceRefused as error:
        raise click.UsageError(f"--workspace: {error}") from error
    except (CannotCopy, WorkspaceUnsafe) as error:
        click.echo(f"omni-mcp: --workspace: {error}", err=True)
        sys.exit(NO_SANDBOX)
    except KeyboardInterrupt:  # before the event loop took the signals over: nothing had been started
        sys.exit(128 + signal.SIGINT)


def plan_of(command: tuple[str, ...], options: dict[str, Any], *, as_json: bool) -> Plan:
    """Return what the options ask for.

    Raises:
        click.UsageError: one of them is wrong.
        ConfigError: the profile is faulty.
    """
    name = options["profile_name"]
    base = find_profile(name, bundled("sandbox") / "profiles", own=find_home().profiles)
    if base is None:
        raise click.UsageError(f"there is no sandbox profile {name!r}; see: omni-mcp sandbox profiles")
    for path in options["read"]:
        if not os.path.exists(path):
            raise click.UsageError(f"--read: {path} is not there")
    try:
        for network in options["allow_network"]:
            ipaddress.ip_network(network)
        profile = _with_options(base, options)
    except ValidationError as error:
        fault = error.errors()[0]
        option = next((_OPTION_OF[str(key)] for key in fault["loc"] if str(key) in _OPTION_OF), "options")
        raise click.UsageError(f"{option}: {fault['msg'].removeprefix('Value error, ')}") from error
    except ValueError as error:
        raise click.UsageError(f"--allow-network: {error}") from error
    job = Job(
        profile=name, argv=command, limits=profile.limits, posture=profile.posture, egress=profile.hosts,
        networks=options["allow_network"], environment=_variables(options["env"]),
    )  # fmt: skip
    return Plan(
        profile=profile, job=job, as_json=as_json,
        use_cgroups=not options["no_cgroup"], use_namespaces=not options["no_namespaces"],
    )  # fmt: skip


def _with_options(base: Profile, options: dict[str, Any]) -> Profile:
    wall_s, kibibytes = options["wall"], options["output"]
    limits = {
        "timeout_s": wall_s, "memory_mib": options["memory"], "processes": options["pids"],
        "open_files": options["nofile"], "file_size_mib": options["fsize"], "disk_mib": options["disk"],
        "output_limit_bytes": None if kibibytes is None else kibibytes * 1024,
        "cpu_s": options["cpu"] or max(base.limits.cpu_s, wall_s or 0.0),
    }  # fmt: skip
    chosen = {key: value for key, value in limits.items() if value is not None}
    read = [os.path.abspath(path) for path in options["read"]]
    changes = {
        "limits": {**base.limits.model_dump(), **chosen},
        "read": (*base.read, *read),
        "hosts": (*base.hosts, *options["allow"]),
        "certificates": base.certificates or bool(options["allow"]),
        "posture": options["posture"] or base.posture,
        "preload": (), "warm": 0,
    }  # fmt: skip
    return Profile.model_validate({**base.model_dump(), **changes})


def _variables(pairs: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        fault = variable_fault(name, value) if equals else f"{pair!r} is not NAME=VALUE"
        if fault:
            raise click.UsageError(f"--env: {fault}")
        found[name] = value
    return found


async def carry_out(plan: Plan, given: GivenWorkspace | None) -> int:
    """Run the job to its end, or until we are told to stop; returns our exit code. Nothing of the cell is left then."""
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[int] = loop.create_future()

    def stop_with(code: int) -> None:
        if not stop.done():
            stop.set_result(code)

    for number in _STOPPING:
        loop.add_signal_handler(number, stop_with, 128 + number)
    outputs = [OutputPump(target, lambda error: stop_with(OUTPUT_LOST)) for target in (1, 2)]
    story = Story()
    task = asyncio.ensure_future(_in_cell(plan, given, outputs, story))
    waited_for: list[asyncio.Future[Any]] = [task, stop]
    await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
    if not task.done():
        outputs[0].give_up()
        task.cancel()
        await asyncio.wait({task})
    if task.cancelled():
        story.code = stop.result()
    else:
        story.end = task.result()
        story.code = exit_code_of(story.end)
    if given is not None:
        story.brought = await asyncio.to_thread(given.bring_back)
    for output in outputs:
        await output.settle(_SETTLE_LIMIT_S)
    await _tell(plan, story, outputs[1])
    return story.code


async def _in_cell(plan: Plan, given: GivenWorkspace | None, outputs: list[OutputPump], story: Story) -> JobEnd:
    job = plan.job if given is None else replace(plan.job, mounts=(given.mount,))
    stdin = InputPump(0)
    try:
        async with open_sandbox(
            profiles={job.profile: plan.profile}, sandbox_dir=bundled("sandbox"), max_jobs=1,
            use_cgroups=plan.use_cgroups, use_namespaces=plan.use_namespaces,
            first=None if plan.profile.read else job.profile,
        ) as sandbox:  # fmt: skip
            story.isolation = sandbox.isolation()
            stdin.start()
            streams = Streams(stdin=stdin.reader, stdout=outputs[0].write, stderr=outputs[1].write)
            return await sandbox.run(job, streams=streams, on_connection=story.connections.append)
    finally:
        stdin.close()


def exit_code_of(end: JobEnd) -> int:
    """Return the exit code that says how the job ended.

    A limit that the job met before it ended by itself, with a code of its own, is told in the message only.
    """
    if end.reason == "timeout":
        return TIMED_OUT
    if end.reason == "output_limit":
        return TOO_MUCH_OUTPUT
    if end.reason in ("sandbox_unavailable", "overloaded"):
        return NO_SANDBOX
    if end.reason == "start_failed":
        return NOT_FOUND if end.usage else NO_SANDBOX  # without usage there never was a cell
    if end.reason == "signal":
        return 128 + (end.signal or 0)
    if end.reason in ("exit", "processes", "disk") and end.exit_code is not None:
        return end.exit_code
    return KILLED


async def _tell(plan: Plan, story: Story, stderr: OutputPump) -> None:
    if plan.as_json:
        lines = [json.dumps(report_of(plan, story))]
    else:
        lines = [f"not copied back: {thing}" for thing in (story.brought.left if story.brought is not None else ())]
        if story.end is not None and story.reason not in ("exit", "signal"):
            lines.append(f"{story.reason}: {story.message}")
        lines = [f"omni-mcp: {line}" for line in lines]
    if lines:
        text = ("" if stderr.at_line_start else "\n") + "\n".join(lines) + "\n"
        await asyncio.wait({asyncio.ensure_future(stderr.write(text.encode()))}, timeout=_SETTLE_LIMIT_S)


def report_of(plan: Plan, story: Story) -> JsonObject:
    """Return what `--json` prints. `code` is our own exit code, `exit_code` the job's."""
    end = story.end
    report: JsonObject = {
        "reason": story.reason,
        "code": story.code,
        "exit_code": end.exit_code if end is not None else None,
        "signal": end.signal if end is not None else None,
        "message": story.message,
        "limits": end.limits if end is not None else plan.job.limits.model_dump(),
        "isolation": story.isolation.as_json() if story.isolation is not None else None,
    }
    usage = end.usage if end is not None else {}
    report |= {key: usage.get(key) for key in _USAGE}
    report["connections"] = [asdict(connection) for connection in story.connections]
    if story.brought is not None:
        report["workspace"] = asdict(story.brought)
    return report
