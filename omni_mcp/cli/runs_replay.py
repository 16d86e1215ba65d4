"""`omni-mcp runs replay`: make a run again, or give its recorded answers to the same client, without the world."""

from __future__ import annotations

import getpass
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import click

from omni_mcp.cli.launch import control
from omni_mcp.cli.plugins import known_plugins
from omni_mcp.cli.runs import answered_as, json_option, print_json, printable
from omni_mcp.config import Settings, load_settings
from omni_mcp.contracts.errors import Conflict, Internal, NotFound
from omni_mcp.contracts.json import JsonObject
from omni_mcp.daemon.run import run_daemon, run_embedded
from omni_mcp.gateway import Gateway
from omni_mcp.logs import LineSink
from omni_mcp.paths import Home, find_home
from omni_mcp.replay.here import rerun_here
from omni_mcp.replay.offline import NO_PLUGINS, Offline, Opener, offline_gateway
from omni_mcp.replay.pins import Changed, changes
from omni_mcp.replay.recorded import RecordedRun, read_run
from omni_mcp.replay.rerun import Options

REPLAY_S = 24 * 3600.0  # as long as its calls take; who waits can interrupt
VALUE_CHARS = 200  # of a value that differs, in text for people


@click.command("replay")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--offline", is_flag=True, help="Serve a client from what was recorded: no server, no network, no tool.")
@click.option("--port", type=click.IntRange(0, 65535), help="With --offline: HTTP on this port; else stdin and stdout.")
@click.option("--profile", metavar="NAME", help="With --offline: the client's profile.  [default: that of the run]")
@click.option("--allow-writes", is_flag=True, help="Also make calls again that may change something.")
@click.option("--accept-changes", is_flag=True, help="Go on though something is not what it was then.")
@json_option
def replay(
    runs: tuple[str, ...], offline: bool, port: int | None, profile: str | None, allow_writes: bool,
    accept_changes: bool, as_json: bool,
) -> None:  # fmt: skip
    """Make the calls of RUN again, and say whether they come back as they came then.

    Each call is decided anew, and recorded in a run of its own. Only calls that read are made again, unless told
    otherwise. Exit code 1 names the first step and field that differs, or the definition, profile, policy or gateway
    that is not what it was.

    With --offline the same client script gets the same bytes from the record; over HTTP, session ids, event ids and
    dates are fresh.
    """
    if not offline and (port is not None or profile is not None):
        raise click.UsageError("--port and --profile are for --offline")
    if offline and (allow_writes or as_json):
        raise click.UsageError("--offline runs nothing, and its standard output belongs to the client")
    home = find_home()
    with answered_as(as_json=as_json):
        settings = load_settings(home.settings_file)
        recorded = [read_run(home, name) for name in runs]
        if offline:
            sys.exit(_serve_offline(settings, home, recorded, port, profile, accept_changes=accept_changes))
        options = Options(allow_writes=allow_writes, accept_changes=accept_changes, by=f"operator:{operator()}")
        reports = _there(home, recorded, options) or [
            report.as_json() for report in rerun_here(settings, home, [(run, options) for run in recorded])
        ]
    parity = all(report["parity"] for report in reports)
    if as_json:
        print_json({"ok": parity, "replays": reports})
    else:
        for report in reports:
            _print_report(report)
    if not parity:
        sys.exit(1)


def operator() -> str:
    """Return the name of who runs this command."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def _there(home: Home, runs: Sequence[RecordedRun], options: Options) -> list[JsonObject]:
    """Have the running gateway do it; nothing if none runs.

    Raises:
        Internal: it could not.
    """
    reports: list[JsonObject] = []
    for run in runs:
        asked = {"run": run.id, "by": options.by, "allow_writes": options.allow_writes,
                 "accept_changes": options.accept_changes}  # fmt: skip
        answer = control(home, "replay", timeout_s=REPLAY_S, arguments=asked)
        if answer is None and not reports:
            return []
        if answer is None or not answer.get("ok"):
            raise Internal(
                "the running gateway could not replay it", detail=str((answer or {}).get("error", "it ended"))
            )
        reports.append(answer["report"])
    return reports


def _print_report(report: JsonObject) -> None:
    """Say what became of a replay, for people."""
    for one in report["changed"]:
        click.echo(printable(f"changed: {Changed(**one)}"))
    if report["refused"]:
        click.echo(f"run {report['run']} was not made again; --accept-changes goes on")
        return
    for number, one in enumerate(report["calls"], 1):
        if one["ending"] == "skipped":
            click.echo(printable(f"step {number} {one['name']}: not made again, {one['why']}"))
        elif (found := one.get("difference")) is not None:
            click.echo(printable(f"step {number} {one['name']} differs at event {found['seq']}, {found['path']}:"))
            for word, side in (("then", "left"), ("now", "right")):
                click.echo(printable(f"  {word:<4} {str(found.get(side, '(nothing)'))[:VALUE_CHARS]}"))
    made = sum(one["ending"] != "skipped" for one in report["calls"])
    word = "parity" if report["parity"] else "NO parity"
    click.echo(
        f"{word}: {made} calls made again, {len(report['calls']) - made} not; run {report['replay'] or '(none)'}"
    )


def _serve_offline(
    settings: Settings, home: Home, runs: Sequence[RecordedRun], port: int | None, profile: str | None, *,
    accept_changes: bool,
) -> int:  # fmt: skip
    calls = [call for run in runs for call in run.calls]
    if not calls:
        raise NotFound("there is no call in what is to be replayed")
    plugins = known_plugins(settings, home).tools if settings.plugins.tools else NO_PLUGINS
    with tempfile.TemporaryDirectory(prefix="omni-r-") as scratch:
        offline = offline_gateway(settings, home, runs, scratch=Path(scratch), plugins=plugins)
        checked = replace(offline, opener=_checking(offline, runs, accept_changes=accept_changes))
        sink = LineSink(file=None)
        try:
            if port is not None:
                code = _serve_http(checked, port, sink)
            else:
                code = run_embedded(
                    checked.settings, checked.home, sink=sink, agent=None, profile=profile or calls[0].profile,
                    principal=calls[0].principal, opener=checked.opener,
                )  # fmt: skip
        finally:
            sink.close()
    for name in offline.answers.unmatched:
        click.echo(printable(f"not recorded: a call of {name}"), err=True)
    click.echo(f"{offline.answers.given} of {len(calls)} recorded calls were asked again", err=True)
    return code or int(bool(offline.answers.unmatched))


def _serve_http(offline: Offline, port: int, sink: LineSink) -> int:
    server = offline.settings.server.model_copy(update={"port": port})

    def announce(facts: JsonObject) -> None:
        sink.write(f"the replay listens on {facts['url']}")

    settings = offline.settings.model_copy(update={"server": server})
    return run_daemon(settings, offline.home, sink=sink, announce=announce, opener=offline.opener)


def _checking(offline: Offline, runs: Sequence[RecordedRun], *, accept_changes: bool) -> Opener:
    @asynccontextmanager
    async def opener(settings: Settings, home: Home) -> AsyncIterator[Gateway]:
        async with offline.opener(settings, home) as gateway:
            found = changes((call for run in runs for call in run.calls), gateway)
            if found and not accept_changes:
                raise Conflict(_told(found))
            yield gateway

    return opener


def _told(found: Sequence[Changed]) -> str:
    return "; ".join([*map(str, found), "the run cannot be given again as it was; --accept-changes goes on"])
