"""The grounds on which trials are made: by a root gateway in each posture, and by an ordinary user's."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from omni_mcp.paths import bundled
from tests.escape.probe import Probe, Verdict, judge
from tests.escape.suite import PROBES
from tests.escape.trial import Ground, grounds, run_in_cell, stopped_together
from tests.escape.user_trials import user_chunks
from tests.sandbox.conftest import cgroups_of, lacking, run_as_ordinary_user

HERE = Path(__file__).parent
Trial = Callable[[Probe, Ground], Awaitable[Verdict]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One event loop for all tests of a file here, so that they can share a sandbox."""
    for item in items:
        if HERE in item.path.parents and pytest_asyncio.is_async_test(item):
            item.add_marker(pytest.mark.asyncio(loop_scope="module"), append=False)


@pytest.fixture(scope="package", autouse=True)
def nothing_stays() -> Iterator[None]:
    """After all of these tests no cgroup of a cell or of a bare place is left."""
    before = set(_cgroups())
    yield
    assert set(_cgroups()) <= before


def _cgroups() -> list[str]:
    return [*cgroups_of(os.getpid()), *cgroups_of(os.getpid(), "bare")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def by_posture() -> AsyncIterator[dict[str, Ground]]:
    """A ground for each posture that can be had here."""
    async with grounds(bundled("sandbox"), use_cgroups=[True, False]) as found:
        yield {where.sandbox.isolation().posture: where for where in found}


@pytest.fixture
def ground(by_posture: dict[str, Ground]) -> Callable[[str], Ground]:
    """Returns the ground of a posture, or skips where it cannot be had."""

    def find(posture: str) -> Ground:
        if posture not in by_posture:
            lacking("cgroup" if posture == "full" else "userns", f"posture {posture} cannot be had here")
        return by_posture[posture]

    return find


@pytest.fixture(scope="module")
def in_cell(by_posture: dict[str, Ground]) -> Trial:
    """Returns the verdict on one probe in a posture. The first that may share a cell is tried with all that may."""
    known: dict[str, dict[str, Verdict]] = {}

    async def find(probe: Probe, where: Ground) -> Verdict:
        posture = where.sandbox.isolation().posture
        if probe.shares and posture not in known:
            known[posture] = await stopped_together([other for other in PROBES if other.shares], where)
        return known.get(posture, {}).get(probe.name) or judge(probe, await run_in_cell(probe, where))

    return find


@pytest.fixture(scope="session")
def by_user() -> Callable[[str], dict[str, Any]]:
    """Returns what an ordinary user's trials found, those of one name among them; each is tried once, with others."""
    found: dict[str, dict[str, Any]] = {}

    def find(name: str) -> dict[str, Any]:
        if name not in found:
            some = next(chunk for chunk in user_chunks() if name in chunk)
            result = run_as_ordinary_user(HERE / "user_trials.py", str(bundled("sandbox")), *some)
            if result["isolation"]["posture"] == "none":
                lacking("userns", f"no sandbox for an ordinary user: {result['isolation']['missing']}")
            found.update(dict.fromkeys(some, result))
        return found[name]

    return find
