"""Run by an ordinary user: makes the trials with some names, or all ordinary uses, and prints JSON."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.escape.ordinary import USES
from tests.escape.suite import PROBES
from tests.escape.trial import Ground, grounds, use_in_cell, verdicts_of

ORDINARY_USE = "ordinary use"
CHUNK = 48


def user_chunks() -> list[list[str]]:
    """Return the names of all that an ordinary user can try, so many at a time as one run has time for."""
    names = [probe.name for probe in PROBES if "user" not in probe.not_in]
    return [[ORDINARY_USE], *(names[start : start + CHUNK] for start in range(0, len(names), CHUNK))]


async def _verdicts(names: list[str], where: Ground) -> dict[str, Any]:
    probes = [probe for probe in PROBES if probe.name in names]
    return {probe.name: asdict(verdict) async for probe, verdict in verdicts_of(probes, where)}


async def main(sandbox_dir: Path, names: list[str]) -> None:
    async with grounds(sandbox_dir, use_cgroups=[True]) as (where,):
        isolation = where.sandbox.isolation()
        found: dict[str, Any] = {"isolation": isolation.as_json(), "uid": os.geteuid()}
        if isolation.posture != "none":
            found["verdicts"] = await _verdicts(names, where)
            if ORDINARY_USE in names:
                found["uses"] = {use.name: await use_in_cell(use, where) for use in USES}
    print(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2:]))
