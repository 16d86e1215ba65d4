"""The official conformance suite against our own server: a gateway, a relay that adds the token, and one table."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))  # so that `python tests/conformance/run.py` finds `tests` from anywhere

from tests.conformance.behind import ROADS  # noqa: E402
from tests.conformance.client_leg import REVISIONS, run_client_suite  # noqa: E402
from tests.conformance.definitions import PROFILE  # noqa: E402  (after the path is set)
from tests.conformance.excused import excused, load_excuses, reasons_for, stale  # noqa: E402
from tests.conformance.relay import Relay  # noqa: E402
from tests.conformance.suite import Report, Suite, SuiteBroken, every_suite, run_suite  # noqa: E402
from tests.node.setup import Node, NodeMissing, install  # noqa: E402

START_LIMIT_S = 30
STOP_LIMIT_S = 15
EXIT_FAILED = 1


class GatewayBroken(Exception):
    """The gateway did not come up; the message holds what it said."""


@asynccontextmanager
async def gateway_url(log: Path, road: str | None = None) -> AsyncIterator[str]:
    """Start a gateway with the fixture behind it and a relay before it; yield the relay's URL.

    The fixture is inside the gateway's process, or a server that it reaches by *road*.

    The relay comes first because the gateway has to accept the relay's port in `Host`. The home is a directory of its
    own with a short name, because a unix socket's path ends at 108 bytes.
    """
    with tempfile.TemporaryDirectory(prefix="omni-") as home:
        async with _started(Path(home), log, ["--road", road] if road else []) as url:
            yield url


@asynccontextmanager
async def _started(home: Path, log: Path, options: Sequence[str]) -> AsyncIterator[str]:
    async with Relay(0, "") as relay:
        command = [sys.executable, "-m", "tests.conformance.serve", "--home", str(home / "home")]
        with log.open("wb") as said:
            process = await asyncio.create_subprocess_exec(
                *command, *options, "--relay-port", str(relay.port),
                cwd=ROOT, env={**os.environ, "XDG_RUNTIME_DIR": str(home)}, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=said, start_new_session=True,
            )  # fmt: skip
            try:
                ready = await _first_line(process, log)
                relay.point_at(ready["port"], ready["token"])
                yield f"http://127.0.0.1:{relay.port}/mcp/{PROFILE}"
            finally:
                await _end(process)


async def _first_line(process: asyncio.subprocess.Process, log: Path) -> dict[str, Any]:
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), START_LIMIT_S)
        found: dict[str, Any] = json.loads(line)
    except (TimeoutError, ValueError) as error:
        raise GatewayBroken(f"the gateway did not come up:\n{log.read_text()[-3000:]}") from error
    return found


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ask it to drain, then leave nothing of it."""
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), STOP_LIMIT_S)
        except TimeoutError:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


async def run_all(
    node: Node, suites: Sequence[Suite], work: Path, *, url: str | None, roads: Sequence[str | None]
) -> tuple[list[Report], list[str]]:
    """Run *suites*, each against a gateway of its own on each of *roads*, or all against *url*.

    Returns:
        The reports, and what is excused though it passes.
    """
    reports: list[Report] = []
    wrong: list[str] = []
    excuses = load_excuses()
    for road, suite in itertools.product(roads, suites):
        place = work / str(len(reports))
        place.mkdir()
        reasons = reasons_for(suite, road, excuses)
        asked = excused(suite, reasons)
        if road is not None:
            asked = replace(asked, title=f"{suite.title}, behind the gateway by {road}")
        if url is not None:
            reports.append(await asyncio.to_thread(run_suite, node, asked, url, place / "results"))
            continue
        async with gateway_url(place / "gateway.log", road) as own:
            reports.append(await asyncio.to_thread(run_suite, node, asked, own, place / "results"))
        wrong += [f"{asked.title}: {name} is excused and passes" for name in stale(reports[-1], reasons)]
    return reports, wrong


def table(reports: Sequence[Report]) -> str:
    """Return what people read: a row for each scenario, what failed, and a line for each suite."""
    lines = []
    for report in reports:
        lines += ["", report.title, f"  {'scenario':<44} {'passed':>6} {'failed':>6}  scored"]
        for scenario in report.scenarios:
            scored = "yes" if scenario.scored else f"no ({scenario.reason})"
            mark = " " if scenario.ok else "x"
            lines.append(f"{mark} {scenario.name:<44} {scenario.passed:>6} {scenario.failed:>6}  {scored}")
            lines += [f"      {failure[:300]}" for failure in scenario.failures]
            lines += [f"      warning: {warning[:300]}" for warning in scenario.warnings]
    return "\n".join([*lines, "", *(report.summary() for report in reports)])


def arguments() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="make conformance", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument(
        "--suite", type=int, action="append", choices=(1, 2, 3), help="only this suite; may be repeated"
    )
    parser.add_argument(
        "--road", choices=["all", *map(str, ROADS)], help="the fixture is a server behind the gateway, reached this way"
    )
    parser.add_argument("--clients", action="store_true", help="the client scenarios, for the side towards servers")
    parser.add_argument("--url", help="judge the server at this URL instead of a gateway of our own")
    parser.add_argument("--keep", type=Path, help="keep what the suites wrote in this new directory")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print, and say whether a scored scenario failed."""
    given = arguments().parse_args(argv)
    try:
        node = install()
        chosen = [suite for number, suite in enumerate(every_suite(node), 1) if number in (given.suite or (1, 2, 3))]
        with tempfile.TemporaryDirectory(prefix="omni-conformance-") as scratch:
            work = given.keep or Path(scratch)
            work.mkdir(parents=True, exist_ok=given.keep is None)
            if given.clients:
                reports = [run_client_suite(node, revision, work / revision) for revision in REVISIONS]
                return judged(reports, (), as_json=given.json)
            roads = [str(road) for road in ROADS] if given.road == "all" else [given.road]
            reports, wrong = asyncio.run(run_all(node, chosen, work, url=given.url, roads=roads))
    except NodeMissing as error:
        print(f"conformance: {error}", file=sys.stderr)
        return error.code
    except (GatewayBroken, SuiteBroken, FileExistsError) as error:
        print(f"conformance: {error}", file=sys.stderr)
        return EXIT_FAILED
    return judged(reports, wrong, as_json=given.json)


def judged(reports: Sequence[Report], wrong: Sequence[str], *, as_json: bool) -> int:
    """Print what was found and return the exit code."""
    failed = [scenario for report in reports for scenario in report.scored_failures]
    if as_json:
        found = {"ok": not failed and not wrong, "stale": wrong, "suites": [report.as_json() for report in reports]}
        print(json.dumps(found, indent=2))
    else:
        print("\n".join([table(reports), *wrong]))
    return EXIT_FAILED if failed or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
