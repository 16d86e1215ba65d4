"""`omni-mcp audit export` and `audit anchor`: evidence that leaves this machine, and what it is compared with."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

import click

from omni_mcp.cli.audit_report import print_report
from omni_mcp.cli.runs import answered_as, json_option, print_json, printable
from omni_mcp.contracts.errors import OmniError
from omni_mcp.engines.artifacts.blobs import BlobStore
from omni_mcp.engines.runlog.anchor_file import anchor_faults, known_head, read_anchor, take_anchor
from omni_mcp.engines.runlog.export import Exported, NoBlobs, StoredBytes, described, export
from omni_mcp.engines.runlog.keys import find_keys
from omni_mcp.engines.runlog.reader import LogReader
from omni_mcp.engines.runlog.signing import find_signing_key, get_signing_key, parsed_fingerprint
from omni_mcp.engines.runlog.trust import distrust
from omni_mcp.engines.runlog.verify import Fault, verify_database
from omni_mcp.paths import Home, find_home

T = TypeVar("T")

key_option = click.option(
    "--key",
    "wanted",
    metavar="FINGERPRINT",
    callback=lambda ctx, param, value: _fingerprint(value),
    help="Whose signature it must bear, as the export printed it.",
)


@click.command("export")
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option("--all", "everything", is_flag=True, help="All runs.")
@click.option(
    "-o", "--out", "--output", "output", required=True, type=click.Path(dir_okay=False, path_type=Path),
    help="The file to write.",
)  # fmt: skip
@json_option
def export_command(runs: tuple[str, ...], everything: bool, output: Path, as_json: bool) -> None:
    """Write each RUN, or all runs, to one signed archive that `audit verify` checks anywhere.

    It holds events, artifacts, schemas, heads and the public key. Tell whoever gets it the fingerprint by another way.
    """
    if everything == bool(runs):
        raise click.UsageError("give either RUN... or --all")
    home = find_home()
    with answered_as(as_json=as_json):
        wanted: list[str] | None = None
        with LogReader(home.log_file) as log:
            if runs:
                wanted = [log.run_id(run) for run in runs]
        done = _export_to(home, output, wanted)
    if as_json:
        print_json({"file": str(output), "run_ids": wanted, **described(done)})
        return
    click.echo(
        f"{done.runs} runs, {done.events} events and {done.artifacts} artifacts written to {printable(str(output))}"
    )
    if done.absent:
        click.echo(f"{len(done.absent)} artifacts that the events name are gone: erased, or never kept")
    click.echo(f"signed with the key {done.fingerprint}\nthe log's head {done.head}")


@click.group()
def anchor() -> None:
    """Keep heads and counts elsewhere, so that a log that was cut is noticed."""


@anchor.command("write")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@json_option
def write_anchor(file: Path, as_json: bool) -> None:
    """Write how far the log is, and how each run ends, signed, to FILE. Keep it on another machine."""
    home = find_home()
    with answered_as(as_json=as_json):
        key = get_signing_key(home.secrets)
        made, line = take_anchor(home.log_file, key)
        replaced(file, lambda out: out.write(line))
    if as_json:
        print_json({"file": str(file), "head": made.head, "runs": len(made.runs), "fingerprint": key.fingerprint})
        return
    click.echo(f"anchored {made.count} events of {len(made.runs)} runs; signed with the key {key.fingerprint}")


@anchor.command("check")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@key_option
@json_option
@click.pass_context
def check_anchor(ctx: click.Context, file: Path, wanted: str | None, as_json: bool) -> None:
    """Verify the log, and that it still contains everything that the anchor in FILE knows."""
    home = find_home()
    with answered_as(as_json=as_json):
        made, signature = read_anchor(file)
        own = find_signing_key(home.secrets)
        keys = find_keys(home.secrets)
        report = verify_database(home.log_file, keys, [known_head(made, file)])
        missing = [fault for fault in anchor_faults(home.log_file, made) if fault not in report.faults]
        report.faults += missing
        report.signer = signature.fingerprint
        if reason := distrust(signature, wanted=wanted, own=own.fingerprint if own else None):
            report.faults.append(Fault("", 0, f"the anchor proves nothing: {reason}"))
    if as_json:
        print_json({"file": str(file), "anchored": {"at": made.at, "head": made.head}, **report.as_json()})
    else:
        print_report(report)
    if not report.ok:
        ctx.exit(1)


def _fingerprint(text: str | None) -> str | None:
    if text is None:
        return None
    found = parsed_fingerprint(text)
    if found is None:
        raise click.BadParameter(f"{text!r} is no fingerprint; `audit export` prints one: 64 hex digits")
    return found


def _export_to(home: Home, output: Path, runs: Sequence[str] | None) -> Exported:
    with _blobs(home) as blobs:
        key = get_signing_key(home.secrets)
        return replaced(output, lambda out: export(home.log_file, out, runs=runs, blobs=blobs, key=key))


@contextmanager
def _blobs(home: Home) -> Iterator[StoredBytes]:
    if not home.artifacts.is_dir():
        yield NoBlobs()
        return
    blobs = BlobStore(home.artifacts)
    try:
        yield blobs
    finally:
        blobs.close()


def replaced(output: Path, write: Callable[[BinaryIO], T]) -> T:
    """Write beside *output* and rename: a failure leaves no half file. Mode 0600: it holds what the log holds."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{output.name}.", dir=output.absolute().parent)
    except OSError as error:
        raise click.ClickException(f"cannot write {output}: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "w+b") as out:
            done = write(out)
            out.flush()
            os.fsync(out.fileno())
        Path(name).replace(output)
    except (OSError, OmniError):
        Path(name).unlink(missing_ok=True)
        raise
    return done
