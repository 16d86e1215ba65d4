"""A furnished API: one for the tests of a module that leave it as it is, and a fresh one for those that do not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.api.world import Api, api_world, furnish


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    """Everything is allowed; ann has one of everything, and more with each test."""
    async with api_world(tmp_path_factory.mktemp("api")) as made:
        await furnish(made)
        yield made


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Api]:
    """The same, fresh."""
    async with api_world(tmp_path) as made:
        await furnish(made)
        yield made
