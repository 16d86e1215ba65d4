"""How fast a large run log answers: a page of 1,000 events, the newest 20 matches of a rare word, of one too.

The log is generated (log_fill.py); sixteen runs take turns in it. Sheets and filters are made then, as an idle gateway
makes them. Between two questions nothing is kept but what SQLite and the system keep, and each is about another run.
Run: `python tests/bench/log_scale.py [--events 10000000] [--json]`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from omni_mcp.contracts.call import Principal
from omni_mcp.engines.runlog.reader import LogReader
from omni_mcp.engines.runlog.store import open_ledger
from tests.bench.log_fill import ANN, LONG_AGO, NOW_AND_THEN, OF_OTHERS, OTHERS, fill
from tests.bench.rows import Row, at_most

EVENTS = 1_000_000
PAGE = 1_000
NEWEST = 20
TIMES = 60


def measure(directory: Path, events: int, *, said: Callable[[str], None] = lambda text: None) -> list[Row]:
    """Make a log of *events* below *directory*, unless there is one already, and question it."""
    file, keys = directory / "runlog.db", directory / "secrets"
    rows: list[Row] = []
    if not file.exists():
        took_s = fill(file, keys, events, said=said)
        rows.append(Row(f"{events:,} events generated", took_s, "s"))
        rows.append(Row("file for each event", file.stat().st_size / events, "B"))
    rows += _copied(file, keys, events)
    with LogReader(file) as log:
        return rows + _answers(log)


def _copied(file: Path, keys: Path, events: int) -> list[Row]:
    """Make the sheets and filters that are missing."""
    ledger = open_ledger(file, keys, events_per_run=events).ledger
    began = time.perf_counter()
    ledger.make_copies()
    took_s = time.perf_counter() - began
    ledger.connection.close()
    sheets = sum(path.stat().st_size for path in (file.parent / "sheets").glob("*.sheet"))
    return [Row("sheets and filters made", took_s, "s"), Row("sheets for each event", sheets / events, "B")]


def _answers(log: LogReader) -> list[Row]:
    dice = random.Random(1)
    count = log.last_gid()
    runs = [run for (run,) in log._all("SELECT id FROM run_keys", ())]
    full = [run for run in dice.sample(runs, min(len(runs), 4 * TIMES)) if log.events(run, after=2 * PAGE - 1, limit=1)]
    pages = iter(full * TIMES)

    def page() -> None:
        assert log.page_of_run(next(pages), limit=PAGE).last == PAGE

    def somewhere() -> None:
        after = dice.randrange(PAGE)
        assert log.page_of_run(next(pages), after=after, limit=PAGE).last == after + PAGE

    def objects() -> None:
        assert len(log.events(next(pages), limit=PAGE)) == PAGE

    def followed() -> None:
        assert log.follow_principal(OTHERS[0].key, after=dice.randrange(count - PAGE)).lines

    def stretch() -> None:
        assert len(log.events_since(dice.randrange(count - PAGE), limit=PAGE)) == PAGE

    def of_all(word: str) -> Callable[[], None]:
        return lambda: _expect(len(log.search(word, limit=NEWEST)), min(NEWEST, count // 50_000))

    def of_one(word: str, who: Principal) -> Callable[[], None]:
        return lambda: _expect(len(log.search(word, principal=who.key, limit=NEWEST)), min(1, count // 500_000))

    what = f"in {count:,} events"
    return [
        at_most(f"{what}: a page of {PAGE:,} of one run", _ms(page), "ms", 1.5),
        at_most(f"{what}: the same from anywhere", _ms(somewhere), "ms", 1.5),
        Row(f"{what}: the same as event objects", _ms(objects), "ms"),
        Row(f"{what}: {PAGE:,} events of all runs, as objects", _ms(stretch), "ms"),
        Row(f"{what}: a portion of a principal's stream", _ms(followed), "ms"),
        at_most(f"{what}: newest {NEWEST} of a rare word", _ms(of_all(NOW_AND_THEN)), "ms", 2),
        at_most(f"{what}: the same for one principal", _ms(of_one(NOW_AND_THEN, OTHERS[0])), "ms", 2),
        at_most(f"{what}: a word that is only in the oldest", _ms(of_all(LONG_AGO)), "ms", 2),
        Row(f"{what}: a word that is nowhere", _ms(lambda: _expect(len(log.search("nosuchword")), 0)), "ms"),
        Row(f"{what}: one principal's, a word that others use often", _ms(of_one(OF_OTHERS, ANN), times=5), "ms"),
    ]


def _expect(found: int, least: int) -> None:
    if found < least:
        raise RuntimeError(f"{found} matches where {least} are known to be")


def _ms(ask: Callable[[], None], *, times: int = TIMES) -> float:
    """Return the median of *times* questions, after one that is not counted."""
    ask()
    spent = []
    for _ in range(times):
        began = time.perf_counter()
        ask()
        spent.append((time.perf_counter() - began) * 1e3)
    return median(spent)


def main() -> None:
    """Print a table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=EVENTS)
    parser.add_argument("--keep", type=Path, help="a directory: the log is made there once and stays")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        place = options.keep or Path(directory)
        place.mkdir(parents=True, exist_ok=True)
        rows = measure(place, options.events, said=lambda text: print(text, file=sys.stderr))
    if options.json:
        print(json.dumps({"benchmark": "log_scale", "rows": [asdict(row) for row in rows]}))
        return
    for row in rows:
        met = {None: "", True: "ok", False: "MISS"}[row.met]
        print(f"{row.what:<75} {row.measured:>9.3g} {row.unit:<3} {row.reach:>8} {met}")


if __name__ == "__main__":
    main()
