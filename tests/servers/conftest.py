"""One world for all tests of a file, and a word where cells cannot be had."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.sandbox.conftest import usable
from tests.servers.sources import npx_path, npx_prefix, uv_read
from tests.servers.world import World, open_world, presets

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One event loop for all tests of a file here, so that they can share a world."""
    for item in items:
        if HERE in item.path.parents and pytest_asyncio.is_async_test(item):
            item.add_marker(pytest.mark.asyncio(loop_scope="module"), append=False)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """A world whose cells see this machine's Node.js and uv."""
    profiles = presets(npx_read=npx_prefix(), npx_path=npx_path(), uvx_read=uv_read())
    async with open_world(tmp_path_factory.mktemp("world"), profiles) as found:
        usable(found.sandbox)
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plain_world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """A world of the shipped presets as they are."""
    async with open_world(tmp_path_factory.mktemp("plain"), presets()) as found:
        usable(found.sandbox)
        yield found
