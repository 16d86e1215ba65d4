"""Crashes at random points, over random transports, until the seeds are used up; each is judged. `make faults`."""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))  # `tests` is found from anywhere

from tests.faults.field import POINTS, ROADS, Road, new_field
from tests.faults.judge import judge
from tests.faults.recorder import PUBLIC_NAME
from tests.faults.talk import Reply, call_http

CRASHES_PER_SEED, CALLS_AT_ONCE = 3, 8


@dataclass(frozen=True, slots=True)
class Crash:
    """One crash: the n-th time that *point* is reached, with so many calls under way."""

    point: str
    nth: int
    road: Road
    calls: int


def plan(seed: int) -> list[Crash]:
    """Return the crashes of a seed, always the same."""
    choose = random.Random(seed)
    crashes = []
    for _ in range(choose.randint(1, CRASHES_PER_SEED)):
        calls = choose.randint(1, CALLS_AT_ONCE)
        crashes.append(Crash(choose.choice(POINTS), choose.randint(1, calls), choose.choice(ROADS), calls))
    return crashes


def run_seed(seed: int) -> list[str]:
    """Crash one home again and again as planned, start it once more, and return each broken promise."""
    replies: list[Reply] = []
    with new_field() as field:
        for number, crash in enumerate(plan(seed)):
            marks = [f"s{seed}c{number}m{n}" for n in range(crash.calls)]
            replies += field.crash(crash.point, crash.nth, crash.road, marks)
        with field.serving() as running:
            replies.append(call_http(running, PUBLIC_NAME, f"s{seed}after"))
            served = [] if replies[-1].ok else ["promise 2: the gateway does not serve after its recovery"]
            broken, _ = judge(field.place, field.record, replies)
            return served + broken


def arguments() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many seeds to use (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first seed; a failure names the one to repeat")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Use up the seeds, print what was broken, and say whether anything was."""
    given = arguments().parse_args(argv)
    broken: dict[int, list[str]] = {}
    points: Counter[str] = Counter()
    for seed in range(given.first, given.first + given.seeds):
        points.update(crash.point for crash in plan(seed))
        found = run_seed(seed)
        if found:
            broken[seed] = found
            crashes = [asdict(crash) for crash in plan(seed)]
            print(f"seed {seed}: {crashes}", *(f"  {text}" for text in found), sep="\n", file=sys.stderr)
    if given.json:
        print(json.dumps({"seeds": given.seeds, "crashes": points, "broken": broken, "ok": not broken}))
    else:
        told = ", ".join(f"{point} {points[point]}" for point in POINTS)
        print(f"{given.seeds} seeds, {points.total()} crashes ({told}): {len(broken)} seeds broke a promise")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
