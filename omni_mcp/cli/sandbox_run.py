"""`omni-mcp sandbox run`: one command in one fresh cell, with its streams, its limits and its exit code."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import click
from pydantic import ValidationError

from omni_mcp.cli.person import printable
from omni_mcp.cli.sandbox_copy import CannotCopy
from omni_mcp.cli.sandbox_report import (
    NO_SANDBOX,
    OPTION_OF,
    OUTPUT_LOST,
    SETTLE_LIMIT_S,
    Story,
    exit_code_of,
    tell,
    tell_refusal,
)
from omni_mcp.cli.sandbox_streams import InputPump, OutputPump, open_missing_descriptors
from omni_mcp.cli.sandbox_workspace import GivenWorkspace, WorkspaceRefused, WorkspaceUnsafe
from omni_mcp.contracts.errors import ConfigError
from omni_mcp.contracts.manifest import Posture
from omni_mcp.contracts.sandbox import Job, JobEnd, Streams
from omni_mcp.engines.sandbox.cells import open_sandbox
from omni_mcp.engines.sandbox.egress.grant import EgressGrant
from omni_mcp.engines.sandbox.first_connections import FirstConnections
from omni_mcp.engines.sandbox.profile_rules import variable_fault
from omni_mcp.engines.sandbox.profiles import Profile, find_profile
from omni_mcp.paths import bundled, find_home

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_WRONG_USAGE, _WRONG_SETTINGS = 2, 1
_MOST_OUTPUT_KIB = 128 * 1024


class _WithReport(click.Command):
    """A command whose `--json` holds for wrong usage too: the object is the last line of stderr then."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> click.Context:
        words = args[: args.index("--")] if "--" in args else list(args)
        with _told(as_json="--json" in words):
            return super().make_context(info_name, args, parent, **extra)


@contextlib.contextmanager
def _told(*, as_json: bool) -> Iterator[None]:
    """Tell of wrong usage and faulty settings here and leave, if it is to be *as_json*."""
    try:
        yield
    except click.UsageError as error:
        if not as_json:
            raise
        error.show()
        tell_refusal("usage", _WRONG_USAGE, error.format_message())
        sys.exit(_WRONG_USAGE)
    except ConfigError as error:
        if not as_json:
            raise
        click.echo("omni-mcp: " + "\n".join(printable(str(one)) for one in error.problems), err=True)
        tell_refusal("settings", _WRONG_SETTINGS, error.message)
        sys.exit(_WRONG_SETTINGS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be run, and how."""

    profile: Profile
    job: Job
    use_cgroups: bool
    use_namespaces: bool
    as_json: bool


@click.command("run", cls=_WithReport, context_settings={"allow_interspersed_args": False})
@click.option("--profile", "profile_name", default="shell", show_default=True, help="See: omni-mcp sandbox profiles")
@click.option("--workspace", type=click.Path(path_type=Path), help="A directory of yours, at /workspace.")
@click.option("--wall", type=float, help="Seconds that it may take.")
@click.option("--memory", type=int, help="MiB of memory, of all its processes together.")
@click.option("--pids", type=int, help="Processes and threads.")
@click.option("--nofile", type=int, help="Open files of one process.")
@click.option("--fsize", type=int, help="MiB of one file.")
@click.option("--disk", type=int, help="MiB that it may write.")
@click.option("--output", type=click.IntRange(1, _MOST_OUTPUT_KIB), help="KiB of stdout and stderr together.")
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
        with _told(as_json=as_json), contextlib.ExitStack() as cleanup:
            plan = plan_of(command, options, as_json=as_json)
            given = None
            if workspace is not None:
                given = _given(workspace, plan)
                cleanup.callback(given.close)
            code = asyncio.run(carry_out(plan, given))
        sys.exit(code)
    except (CannotCopy, WorkspaceUnsafe) as error:
        click.echo(f"omni-mcp: --workspace: {error}", err=True)
        if as_json:
            tell_refusal("refused", NO_SANDBOX, f"--workspace: {error}")
        sys.exit(NO_SANDBOX)
    except KeyboardInterrupt:  # before the event loop took the signals over: nothing had been started
        sys.exit(128 + signal.SIGINT)


def _given(workspace: Path, plan: Plan) -> GivenWorkspace:
    try:
        return GivenWorkspace(workspace, plan.job.limits)
    except WorkspaceRefused as error:
        raise click.UsageError(f"--workspace: {error}") from error


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
        profile = _with_options(base, options)
    except ValidationError as error:
        fault = error.errors()[0]
        option = next((OPTION_OF[str(key)] for key in fault["loc"] if str(key) in OPTION_OF), "options")
        raise click.UsageError(f"{option}: {fault['msg'].removeprefix('Value error, ')}") from error
    try:
        EgressGrant(hosts=(), networks=options["allow_network"])
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
    wall_s, cpu_s, kibibytes = options["wall"], options["cpu"], options["output"]
    limits = {
        "timeout_s": wall_s, "memory_mib": options["memory"], "processes": options["pids"],
        "open_files": options["nofile"], "file_size_mib": options["fsize"], "disk_mib": options["disk"],
        "output_limit_bytes": None if kibibytes is None else kibibytes * 1024,
        "cpu_s": max(base.limits.cpu_s, wall_s or 0.0) if cpu_s is None else cpu_s,
    }  # fmt: skip
    chosen = {key: value for key, value in limits.items() if value is not None}
    read = [_absolute(path) for path in options["read"]]
    changes = {
        "limits": {**base.limits.model_dump(), **chosen},
        "read": (*base.read, *read),
        "hosts": (*base.hosts, *options["allow"]),
        "certificates": base.certificates or bool(options["allow"]),
        "posture": options["posture"] or base.posture,
        "preload": (), "warm": 0,
    }  # fmt: skip
    return Profile.model_validate({**base.model_dump(), **changes})


def _absolute(path: str) -> str:
    try:
        return os.path.abspath(path)
    except OSError as error:  # where we stand was removed
        raise click.UsageError(f"--read: {path}: {error.strerror}") from error


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

    for number in _stopping():
        loop.add_signal_handler(number, stop_with, 128 + number)
    story = Story()

    def lose(error: OSError) -> None:
        story.lost = error
        stop_with(OUTPUT_LOST)

    outputs = [OutputPump(target, lose) for target in (1, 2)]
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
        await _bring_back(given, story)
    await asyncio.gather(*(output.settle(SETTLE_LIMIT_S) for output in outputs))
    if stop.done() and stop.result() == OUTPUT_LOST:
        story.code = OUTPUT_LOST
    await tell(story, plan.job, outputs[1], as_json=plan.as_json)
    return story.code


def _stopping() -> Iterator[signal.Signals]:
    """Yield the signals that end us: not SIGHUP where whoever started us wants it ignored (`nohup`)."""
    return (one for one in _STOPPING if one != signal.SIGHUP or signal.getsignal(one) != signal.SIG_IGN)


async def _bring_back(given: GivenWorkspace, story: Story) -> None:
    """Copy the workspace back, unless we are told to stop (once more, if the job was stopped too)."""
    loop = asyncio.get_running_loop()

    def stop_with(code: int) -> None:
        given.stop()
        story.code = code

    for number in _stopping():
        loop.add_signal_handler(number, stop_with, 128 + number)
    story.brought = await asyncio.to_thread(given.bring_back)
    if story.brought.cut and story.code == 0:
        story.code = OUTPUT_LOST


async def _in_cell(plan: Plan, given: GivenWorkspace | None, outputs: list[OutputPump], story: Story) -> JobEnd:
    job = plan.job if given is None else replace(plan.job, mounts=(given.mount,))
    stdin, connections = InputPump(0), FirstConnections(story.note)
    try:
        async with open_sandbox(
            profiles={job.profile: plan.profile}, sandbox_dir=bundled("sandbox"), max_jobs=1,
            use_cgroups=plan.use_cgroups, use_namespaces=plan.use_namespaces,
            first=None if plan.profile.read else job.profile,
        ) as sandbox:  # fmt: skip
            story.isolation = sandbox.isolation()
            stdin.start()
            streams = Streams(stdin=stdin.reader, stdout=outputs[0].write, stderr=outputs[1].write)
            return await sandbox.run(job, streams=streams, on_connection=connections.note)
    finally:
        stdin.close()
        connections.close()
