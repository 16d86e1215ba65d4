"""Run by an ordinary user: makes the trials with some names, or some ordinary uses, and prints JSON."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.escape.ordinary import USES, Use
from tests.escape.suite import PROBES
from tests.escape.trial import Ground, grounds, use_in_cell, verdicts_of

QUICK_USES = ("workspace", "loopback-tcp", "signals", "exit-1")  # tried with every change; all of them in long tests
CHUNK = 48


def user_chunks() -> list[list[str]]:
    """Return the names of all that an ordinary user can try, so many at a time as one run has time for."""
    names = [probe.name for probe in PROBES if "user" not in probe.not_in]
    quick = [trial_of(use) for use in USES if use.name in QUICK_USES]
    others = [trial_of(use) for use in USES if use.name not in QUICK_USES]
    return [quick, others, *(names[start : start + CHUNK] for start in range(0, len(names), CHUNK))]


def trial_of(use: Use) -> str:
    """Return the name that an ordinary use has among trials: some probes are called as uses are."""
    return f"use of {use.name}"


async def _verdicts(names: list[str], where: Ground) -> dict[str, Any]:
    probes = [probe for probe in PROBES if probe.name in names]
    return {probe.name: asdict(verdict) async for probe, verdict in verdicts_of(probes, where)}


async def main(sandbox_dir: Path, names: list[str]) -> None:
    async with grounds(sandbox_dir, use_cgroups=[True]) as (where,):
        isolation = where.sandbox.isolation()
        found: dict[str, Any] = {"isolation": isolation.as_json(), "uid": os.geteuid()}
        if isolation.posture != "none":
            found["verdicts"] = await _verdicts(names, where)
            found["uses"] = {use.name: await use_in_cell(use, where) for use in USES if trial_of(use) in names}
    print(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2:]))
