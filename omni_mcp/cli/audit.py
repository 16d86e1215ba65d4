"""`omni-mcp audit`, `erase`, `retention` and `db`: prove what is recorded, take it elsewhere, and let texts go."""

from __future__ import annotations

import asyncio
import getpass
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from omni_mcp.cli.audit_export import anchor, export_command, key_option
from omni_mcp.cli.audit_report import print_report
from omni_mcp.cli.memory import forget_and_tell, refuse_unfinished
from omni_mcp.cli.memory_forget import Forgotten, forget_written_by
from omni_mcp.cli.runs import answered_as, json_option, print_json, printable
from omni_mcp.config import load_settings
from omni_mcp.contracts.errors import LogCorrupt, LogUnavailable
from omni_mcp.engines.approvals.store import ApprovalStore
from omni_mcp.engines.artifacts.blobs import BlobStore
from omni_mcp.engines.runlog.anchor import KnownHead, find_anchor
from omni_mcp.engines.runlog.erase import Eraser, Erasure, refuse_missing
from omni_mcp.engines.runlog.keys import find_keys
from omni_mcp.engines.runlog.ledger import Ledger
from omni_mcp.engines.runlog.reader import LogReader
from omni_mcp.engines.runlog.reserve import Reserve
from omni_mcp.engines.runlog.signing import find_signing_key
from omni_mcp.engines.runlog.store import open_ledger, rebuild_projections
from omni_mcp.engines.runlog.verify import Fault, Report, verify_database
from omni_mcp.engines.runlog.verify_pack import is_pack, verify_pack
from omni_mcp.engines.state.database import open_state
from omni_mcp.paths import Home, find_home
from omni_mcp.replay.failed import copies_of

_HEAD = re.compile(r"(\d{1,18}):([0-9a-f]{64})")
_AGE = re.compile(r"(\d{1,6})([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_NO_QUOTA = 2**62  # what the command line appends is never refused for a run's length


@click.group()
def audit() -> None:
    """Verify, export and anchor the run log."""


audit.add_command(export_command)
audit.add_command(anchor)


@audit.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option(
    "--head", "noted", metavar="COUNT:HASH", help="What an earlier verify or export printed: must be contained."
)
@key_option
@json_option
@click.pass_context
def verify(ctx: click.Context, file: Path | None, noted: str | None, wanted: str | None, as_json: bool) -> None:
    """Verify the run log, or FILE: a database or a pack. Exit code 1 if anything is wrong; names each event.

    A pack needs nothing but itself: no gateway, no network.
    """
    known = [] if noted is None else [_parsed_head(noted)]
    home = find_home()
    source = file or home.log_file
    with answered_as(as_json=as_json):
        report = _verified(home, source, known, wanted)
    if as_json:
        print_json({"file": str(source), **report.as_json()})
    else:
        print_report(report)
    if not report.ok:
        ctx.exit(1)


@click.command()
@click.option("--run", help="An id, the beginning of one, or `last`: its texts, and what it has remembered.")
@click.option("--call", help="Only this call of the run.")
@click.option("--memory", "item", metavar="ID", help="An item of the memory, and every call that carried its text.")
@click.option(
    "--reason", default="asked for on the command line", show_default=True, help="Recorded: no names, no texts."
)
@click.option("--yes", is_flag=True, help="Do it: there is no way back.")
@json_option
def erase(run: str | None, call: str | None, item: str | None, reason: str, yes: bool, as_json: bool) -> None:
    """Erase the texts of a run or call: payloads, search, artifacts, memory. That it happened, and the chain, stay."""
    if (run is None) == (item is None) or (call is not None and run is None):
        raise click.UsageError("give either --run, with or without --call, or --memory")
    if run is None:
        forget_and_tell((item or "",), yes=yes, as_json=as_json)
        return
    home = find_home()
    with LogReader(home.log_file) as log:
        wanted = log.run_id(run)
        copies = copies_of(log, wanted, call) if yes else []
    if not yes:
        raise click.UsageError(f"this cannot be undone; to erase the texts of run {wanted}, add --yes")
    with Reserve(home.data).released():
        with _eraser(home) as eraser:
            done = eraser.erase(wanted, call=call, reason=reason)
        _forget_questions(home, done, call)
    forgotten = asyncio.run(forget_written_by(home, wanted, call)) if home.memory_file.exists() else Forgotten()
    done.memory = forgotten.items
    _print_erasure(done, copies, as_json=as_json)
    refuse_unfinished(forgotten)


@click.group()
def retention() -> None:
    """Erase runs that are older than the limit."""


@retention.command("run")
@click.option("--older-than", help="Such as 12h, 30d or 8w.  [default: retention.days of omni.toml]")
@json_option
def retention_run(older_than: str | None, as_json: bool) -> None:
    """Erase every run whose last event is older, unless one of its calls is still open."""
    home = find_home()
    older_than = older_than or f"{load_settings(home.settings_file).retention.days}d"
    age = _AGE.fullmatch(older_than.strip().lower())
    if age is None:
        raise click.BadParameter(
            f"{older_than!r} is no age; write a number and s, m, h, d or w", param_hint="--older-than"
        )
    refuse_missing(home.log_file)
    with Reserve(home.data).released():
        with _eraser(home) as eraser:
            done = eraser.retention(older_than_s=int(age[1]) * _SECONDS[age[2]], older_than=age[0])
        _forget_questions(home, done, None)
    _print_erasure(done, (), as_json=as_json)


@click.group()
def db() -> None:
    """Maintain the database."""


@db.command("rebuild")
@json_option
def db_rebuild(as_json: bool) -> None:
    """Derive lists and the search index anew from the events. A running gateway refuses calls meanwhile."""
    with _ledger(find_home()) as ledger:
        rebuild_projections(ledger)
    if as_json:
        print_json({"rebuilt": True})


def _parsed_head(noted: str) -> KnownHead:
    found = _HEAD.fullmatch(noted.strip().lower())
    if found is None:
        hint = "it is COUNT:HASH, as `audit verify` and `audit export` print it"
        raise click.BadParameter(f"{noted!r} is no head; {hint}", param_hint="--head")
    return KnownHead(int(found[1]), bytes.fromhex(found[2]), "--head")


def _verified(home: Home, source: Path, known: Sequence[KnownHead], wanted: str | None) -> Report:
    """Verify *source*; the log of this home also against its anchor, which is read first: the log runs ahead of it."""
    keys = find_keys(home.secrets)
    if source != home.log_file and not source.is_file():
        raise LogUnavailable("there is no such file", detail=f"{source} is no file that can be read")
    if source != home.log_file and not (home.log_file.exists() and source.samefile(home.log_file)):
        if is_pack(source):
            own = find_signing_key(home.secrets)
            return verify_pack(source, wanted=wanted, own=own.fingerprint if own else None, keys=keys, known=known)
        return verify_database(source, keys, known)
    try:
        kept = find_anchor(home.secrets, keys) if keys else None
    except LogCorrupt as error:
        report = verify_database(source, keys, known)
        report.faults.append(Fault("", 0, f"{error.message}: {error.detail}"))
        return report
    report = verify_database(source, keys, [*known, kept] if kept else known)
    if kept is None:
        report.notes.append("there is no anchor to compare with, so an older copy of the log may not be seen")
    return report


def _print_erasure(done: Erasure, copies: Sequence[tuple[str, str]], *, as_json: bool) -> None:
    """Say what was erased; *copies* are calls as which some of it was made again, as (run, call)."""
    if as_json:
        print_json({**done.as_json(), "made_again": [{"run": run, "call": call} for run, call in copies]})
    else:
        click.echo(f"erased {done.events} events in {len(done.runs)} runs, {len(done.artifacts)} artifacts")
        if done.memory:
            click.echo(f"and forgot {len(done.memory)} items of the memory that it wrote")
        for run, call in copies:
            click.echo(f"made again, and still on record: omni-mcp erase --run {run} --call {call}")
    if not done.wal_truncated:
        raise click.ClickException(
            "the write-ahead log could not be cut because the log is being read all the time, so old bytes may "
            "still be in it; run the same command again"
        )
    if done.still_open:
        raise click.ClickException(
            f"{len(done.still_open)} calls of it are still under way, and what they write now is not erased; once they "
            "have ended, run the same command again"
        )


def _forget_questions(home: Home, done: Erasure, call: str | None) -> None:
    """A question shows a person the arguments of its call, so they go with the call."""
    if not home.state_file.exists():
        return
    store = ApprovalStore(open_state(home.state_file))
    try:
        for run in done.runs:
            done.wal_truncated &= store.erase_run(run, call)
    finally:
        store.close()


@contextmanager
def _ledger(home: Home) -> Iterator[Ledger]:
    refuse_missing(home.log_file)
    opened = open_ledger(home.log_file, home.secrets, events_per_run=_NO_QUOTA)
    try:
        for notice in opened.notices:
            click.echo(printable(notice), err=True)
        yield opened.ledger
    finally:
        opened.ledger.connection.close()


@contextmanager
def _eraser(home: Home) -> Iterator[Eraser]:
    with _ledger(home) as ledger:
        blobs = BlobStore(home.artifacts)
        try:
            yield Eraser(ledger, home.log_file, blobs, by=f"operator:{_user()}")
        finally:
            blobs.close()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
