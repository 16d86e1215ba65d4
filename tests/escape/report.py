"""Prints what got through and what did not, by group and by place: `python -m tests.escape.report`.

With `--json FILE` every single verdict is written too. Ends with 1 if anything got through that is not known to do so,
or gave no plain answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from omni_mcp.paths import bundled
from tests.escape.bare import run_bare
from tests.escape.command import run_by_command
from tests.escape.ordinary import USES
from tests.escape.probe import Probe, Verdict, judge
from tests.escape.suite import BITING, GROUPS, PROBES
from tests.escape.trial import grounds, use_in_cell, verdicts_of
from tests.escape.user_trials import user_chunks
from tests.sandbox.conftest import run_as_ordinary_user

COLUMNS = ("control", "full", "no-cgroup", "user", "command")
WANTED = {"control": "ESCAPED"}  # everywhere else: STOPPED
HERE = Path(__file__).parent


@dataclass(slots=True)
class Report:
    """The verdicts by column and probe, and what went wrong in ordinary use."""

    verdicts: dict[str, dict[str, Verdict]] = field(default_factory=dict)
    uses: dict[str, dict[str, str]] = field(default_factory=dict)

    def add(self, column: str, probe: Probe, verdict: Verdict) -> None:
        self.verdicts.setdefault(column, {})[probe.name] = verdict

    def failures(self) -> list[str]:
        """Return a line for each verdict that is not the wanted one."""
        lines = []
        for column, found in self.verdicts.items():
            for probe in PROBES:
                verdict = found.get(probe.name)
                if verdict is not None and verdict.word != WANTED.get(column, "STOPPED"):
                    known = " (known)" if column in probe.through_in else ""
                    lines.append(f"{column}: {probe.name}: {verdict.word}{known}: {verdict.why[:300]}")
        for column, found_uses in self.uses.items():
            for use in USES:
                fault = found_uses.get(use.name, "")
                if bool(fault) != (column in use.refused_in):
                    lines.append(f"{column}: ordinary use: {use.name}: {fault or 'works, and was said not to'}")
        return lines

    def table(self) -> Iterable[str]:
        """Yield the lines of a table in Markdown."""
        columns = [column for column in COLUMNS if column in self.verdicts]
        yield "| group | probes | " + " | ".join(columns) + " |"
        yield "|---" * (len(columns) + 2) + "|"
        for group in (*GROUPS, "all"):
            probes = [probe for probe in PROBES if group in (probe.group, "all")]
            cells = [self._count(column, probes) for column in columns]
            yield f"| {group} | {len(probes)} | " + " | ".join(cells) + " |"
        counts = [
            f"{sum(not fault for fault in self.uses[column].values())}/{len(USES)}" if column in self.uses else ""
            for column in columns
        ]
        yield f"| ordinary use works | {len(USES)} | " + " | ".join(counts) + " |"

    def _count(self, column: str, probes: list[Probe]) -> str:
        words = [self.verdicts[column][probe.name].word for probe in probes if probe.name in self.verdicts[column]]
        return f"{words.count(WANTED.get(column, 'STOPPED'))}/{len(words)}"  # type: ignore[arg-type]  # one of its words


def _controls(report: Report) -> None:
    if os.geteuid() != 0:
        return
    with ThreadPoolExecutor(2) as workers:
        for probe, outcome in zip(BITING, workers.map(run_bare, BITING), strict=True):
            report.add("control", probe, judge(probe, outcome))


async def _cells(report: Report) -> None:
    async with grounds(bundled("sandbox"), use_cgroups=[True, False]) as found:
        for posture, where in {where.sandbox.isolation().posture: where for where in found}.items():
            probes = [probe for probe in PROBES if posture not in probe.not_in]
            async for probe, verdict in verdicts_of(probes, where):
                report.add(posture, probe, verdict)
            report.uses[posture] = {use.name: await use_in_cell(use, where) for use in USES if not use.missing()}


def _user(report: Report) -> None:
    probes = {probe.name: probe for probe in PROBES}
    for names in user_chunks():
        found = run_as_ordinary_user(HERE / "user_trials.py", str(bundled("sandbox")), *names)
        for name, verdict in found.get("verdicts", {}).items():
            report.add("user", probes[name], Verdict(**verdict))
        if "uses" in found:
            report.uses["user"] = found["uses"]


def _command(report: Report) -> None:
    for probe, verdict in run_by_command(PROBES):
        report.add("command", probe, verdict)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="*", choices=("controls", "cells", "user", "command"))
    options = parser.parse_args()
    wanted = options.only or ("controls", "cells", "user", "command")
    report = Report()
    if "controls" in wanted:
        _controls(report)
    if "cells" in wanted:
        asyncio.run(_cells(report))
    if "user" in wanted:
        _user(report)
    if "command" in wanted:
        _command(report)
    print("\n".join(report.table()))
    failures = report.failures()
    print("\n" + ("\n".join(failures) or "nothing got through"))
    if options.json:
        seen = {c: {n: [v.word, v.why] for n, v in found.items()} for c, found in report.verdicts.items()}
        options.json.write_text(json.dumps({"verdicts": seen, "uses": report.uses}, indent=1))
    return 1 if any("(known)" not in line for line in failures) else 0


if __name__ == "__main__":
    sys.exit(main())
