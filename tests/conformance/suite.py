"""One run of the official suite against a URL, and what its checks say."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml

from tests.node.setup import Node

RUN_LIMIT_S = 420
STAMP = re.compile(r"-\d{4}-\d{2}-\d{2}T[\d-]+Z$")
ANNOUNCED = re.compile(r"^Running .*\((\d+) scenarios\)", re.MULTILINE)


class SuiteBroken(Exception):
    """The suite itself did not run to its end; the message holds what it said last."""


@dataclass(frozen=True, slots=True)
class Suite:
    """Which release runs what. `unscored` maps a scenario to the reason why it does not count."""

    title: str
    package: str
    arguments: tuple[str, ...]
    scored: frozenset[str] | None = None  # None: every scenario counts
    unscored: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scenario:
    """How one scenario ended. `failures` holds the text of each failed check, `warnings` of each doubtful one."""

    name: str
    passed: int
    failed: int
    scored: bool
    reason: str = ""
    failures: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether something was checked and nothing failed. A scenario that checked nothing shows nothing."""
        return self.failed == 0 and self.passed > 0


@dataclass(frozen=True, slots=True)
class Report:
    """The scenarios of one suite."""

    title: str
    scenarios: tuple[Scenario, ...]

    @property
    def scored_failures(self) -> tuple[Scenario, ...]:
        """What makes the run fail."""
        return tuple(scenario for scenario in self.scenarios if scenario.scored and not scenario.ok)

    def summary(self) -> str:
        """Return one line for people."""
        scored = [scenario for scenario in self.scenarios if scenario.scored]
        good = sum(scenario.ok for scenario in scored)
        checks = sum(scenario.passed for scenario in self.scenarios)
        failed = sum(scenario.failed for scenario in self.scenarios)
        warnings = sum(len(scenario.warnings) for scenario in self.scenarios)
        return (
            f"{self.title}: {good}/{len(scored)} scored scenarios; "
            f"{checks} checks passed, {failed} failed, {warnings} warnings in {len(self.scenarios)} scenarios"
        )

    def as_json(self) -> dict[str, object]:
        """Return everything, for `--json`."""
        rows = [{**asdict(scenario), "ok": scenario.ok} for scenario in self.scenarios]
        return {"title": self.title, "ok": not self.scored_failures, "summary": self.summary(), "scenarios": rows}


def every_suite(node: Node) -> list[Suite]:
    """Return the suites that we answer to: the stable release, and the frozen requirements of both revisions."""
    stable = Suite("conformance 0.1.16, all scenarios", "conformance-stable", ("--suite", "all"))
    return [stable, *(_requirements(node, revision) for revision in ("2025-11-25", "2026-07-28"))]


def _requirements(node: Node, revision: str) -> Suite:
    file = node.script("conformance-next").parent.parent / "requirements" / f"{revision}.yaml"
    wanted = yaml.safe_load(file.read_text())
    return Suite(
        f"conformance 0.2.0-alpha.12, requirements {revision}",
        "conformance-next",
        ("--requirements", revision),
        frozenset(wanted["server"]),
        {entry["scenario"]: entry["reason"] for entry in wanted["not_scored"] if entry["leg"] == "server"},
    )


def run_suite(node: Node, suite: Suite, url: str, out: Path, *, limit_s: float = RUN_LIMIT_S) -> Report:
    """Run *suite* against *url* and judge it by the checks that it wrote below *out*.

    Raises:
        SuiteBroken: it took longer than *limit_s*, or left fewer results than it announced.
    """
    out.mkdir(parents=True, exist_ok=True)
    command = [str(node.binary), str(node.script(suite.package)), "server", "--url", url, *suite.arguments, "-o", "."]
    said = _run(command, out, node.environment(), limit_s)
    report = Report(suite.title, tuple(read_results(suite, out)))
    announced = ANNOUNCED.search(said)
    expected = int(announced[1]) if announced else 0
    if not expected or len(report.scenarios) < expected:
        raise SuiteBroken(
            f"{suite.title}: {len(report.scenarios)} of {expected} scenarios left a result\n{said[-2000:]}"
        )
    missing = (suite.scored or frozenset()) - {scenario.name for scenario in report.scenarios}
    if missing:
        raise SuiteBroken(f"{suite.title}: no result of {', '.join(sorted(missing))}")
    return report


def _run(command: list[str], where: Path, environment: dict[str, str], limit_s: float) -> str:
    """Run to the end and return what it printed; its exit code says less than its checks do."""
    with (where / "output.txt").open("w+") as output:
        process = subprocess.Popen(
            command, cwd=where, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired as error:
            raise SuiteBroken(f"the suite took longer than {limit_s:g} s: {' '.join(command)}") from error
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output.seek(0)
        return output.read()


def read_results(suite: Suite, out: Path) -> Iterable[Scenario]:
    """Yield each scenario that left its checks below *out*, by name."""
    for file in sorted(out.glob("server-*/checks.json")):
        name = STAMP.sub("", file.parent.name).removeprefix("server-")
        # A scenario's own name may begin with "server-", as its directory then does twice.
        checks: list[dict[str, object]] = json.loads(file.read_text())
        scored = suite.scored is None or name in suite.scored
        yield Scenario(
            name=name,
            passed=sum(check["status"] == "SUCCESS" for check in checks),
            failed=sum(check["status"] == "FAILURE" for check in checks),
            scored=scored,
            reason="" if scored else suite.unscored.get(name, "not in the requirements"),
            failures=_texts(checks, "FAILURE"),
            warnings=_texts(checks, "WARNING"),
        )


def _texts(checks: list[dict[str, object]], status: str) -> tuple[str, ...]:
    return tuple(
        f"{check['id']}: {check.get('errorMessage') or check['description']}"
        for check in checks
        if check["status"] == status
    )
