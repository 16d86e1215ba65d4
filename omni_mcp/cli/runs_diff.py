"""`omni-mcp runs diff` and `runs golden`: where two runs differ first, and whether one still does what it did."""

from __future__ import annotations

from pathlib import Path

import click
import orjson

from omni_mcp.cli.audit_export import key_option, replaced
from omni_mcp.cli.runs import all_events, answered_as, json_option, print_json, printable
from omni_mcp.contracts.json import JsonObject, JsonValue
from omni_mcp.engines.runlog.difference import Absent, Difference, comparable, first_difference
from omni_mcp.engines.runlog.golden import difference_to, golden_file, golden_of, read_golden
from omni_mcp.engines.runlog.reader import LogReader
from omni_mcp.engines.runlog.signing import find_signing_key, get_signing_key
from omni_mcp.paths import find_home

VALUE_CHARS = 400


@click.command()
@click.argument("left", metavar="A")
@click.argument("right", metavar="B")
@json_option
@click.pass_context
def diff(ctx: click.Context, left: str, right: str, as_json: bool) -> None:
    """Say where run B first differs from run A; exit code 1 if it does.

    Equal means: up to ids, times, and the measured fields that docs/run-log.md lists.
    """
    with answered_as(as_json=as_json), LogReader(find_home().log_file) as log:
        names = log.run_id(left), log.run_id(right)
        one, other = (comparable(all_events(log, name)) for name in names)
    _print(first_difference(one, other), {"left": names[0], "right": names[1]}, as_json=as_json)
    if one != other:
        ctx.exit(1)


@click.group()
def golden() -> None:
    """Keep what a run did in a signed file, and hold later runs against it."""


@golden.command("write")
@click.argument("run")
@click.option("-o", "--out", "output", required=True, type=click.Path(dir_okay=False, path_type=Path))
@json_option
def write_golden(run: str, output: Path, as_json: bool) -> None:
    """Write what RUN did to one signed file."""
    home = find_home()
    with answered_as(as_json=as_json):
        with LogReader(home.log_file) as log:
            name = log.run_id(run)
            found = golden_of(name, all_events(log, name))
        key = get_signing_key(home.secrets)
        replaced(output, lambda out: out.write(golden_file(found, key)))
    if as_json:
        print_json({"file": str(output), "run": name, "events": len(found.events), "fingerprint": key.fingerprint})
        return
    click.echo(f"{len(found.events)} events written; signed with the key {key.fingerprint}")


@golden.command("check")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("run", required=False)
@key_option
@json_option
@click.pass_context
def check_golden(ctx: click.Context, file: Path, run: str | None, wanted: str | None, as_json: bool) -> None:
    """Check that FILE is as it was signed and, with RUN, that the run does the same; exit code 1 if not."""
    home = find_home()
    with answered_as(as_json=as_json):
        own = find_signing_key(home.secrets)
        found, signature = read_golden(file, wanted=wanted, own=own.fingerprint if own else None)
        facts: JsonObject = {"file": str(file), "signed_by": signature.fingerprint}
        difference = None
        if run is not None:
            with LogReader(home.log_file) as log:
                facts["run"] = log.run_id(run)
                difference = difference_to(found, all_events(log, facts["run"]))
    if run is None and not as_json:
        click.echo(f"as it was signed with the key {signature.fingerprint}: {len(found.events)} events")
        return
    _print(difference, facts, as_json=as_json)
    if difference is not None:
        ctx.exit(1)


def _print(difference: Difference | None, facts: JsonObject, *, as_json: bool) -> None:
    if as_json:
        told = None if difference is None else difference.as_json()
        print_json({"ok": difference is None, "equal": difference is None, **facts, "difference": told})
        return
    if difference is None:
        click.echo("equal")
        return
    click.echo(f"event {difference.seq} differs first at {printable(difference.path)}")
    click.echo(f"  A: {_value(difference.left)}\n  B: {_value(difference.right)}")


def _value(value: JsonValue) -> str:
    text = str(value) if isinstance(value, Absent) else orjson.dumps(value).decode()
    return printable(text if len(text) <= VALUE_CHARS else text[: VALUE_CHARS - 1] + "…")
