"""What a verification found, in text for people."""

from __future__ import annotations

from itertools import groupby

import click

from omni_mcp.cli.runs import printable
from omni_mcp.engines.runlog.verify import Report, Tombstone

TOMBSTONES_SHOWN = 20


def print_report(report: Report) -> None:
    """Print each fault, each stretch of erased events, what could not be checked, and the verdict."""
    for fault in report.faults:
        click.echo(printable(str(fault)))
    stretches = _stretches(report.erased)
    for line in stretches[:TOMBSTONES_SHOWN]:
        click.echo(printable(line))
    if len(stretches) > TOMBSTONES_SHOWN:
        click.echo(f"… and {len(stretches) - TOMBSTONES_SHOWN} more stretches of erased events; --json names them all")
    if report.erased:
        click.echo(f"{len(report.erased)} events were erased; their links hold")
    for note in report.notes:
        click.echo(printable(note))
    if not report.heads_checked:
        click.echo("heads were not checked: their key is not here, so an end that was cut off may not be seen")
    if report.signer:
        click.echo(f"signed with the key {report.signer}")
    verdict = "verified" if report.ok else f"NOT verified: {len(report.faults)} faults"
    counted = f"{report.runs} runs, {report.events} events"
    if report.artifacts:
        counted += f", {report.artifacts} artifacts"
    click.echo(f"{verdict}: {counted}" + (f", head {report.head}" if report.head else ""))


def _stretches(erased: list[Tombstone]) -> list[str]:
    """Return one line for each stretch of events that one erasure emptied."""
    lines = []
    numbered = enumerate(erased)
    for (run, by, _), group in groupby(numbered, key=lambda pair: (pair[1].run, pair[1].by, pair[1].seq - pair[0])):
        seqs = [tombstone.seq for _, tombstone in group]
        which = f"event {seqs[0]}" if len(seqs) == 1 else f"events {seqs[0]} to {seqs[-1]}"
        lines.append(f"run {run} {which}: erased by event {by}")
    return lines
