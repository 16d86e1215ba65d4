"""A server as an operator defines and accepts it, in omni.toml and omni.lock, gives every feature to its clients."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest

from omni_mcp.assembly import open_gateway
from omni_mcp.config import Settings
from omni_mcp.contracts.errors import OmniError
from omni_mcp.engines.catalog.acceptance import accept, answer_to, waiting_of
from omni_mcp.engines.catalog.lock_listing import KeptListing, get_listing, listings_dir
from omni_mcp.engines.catalog.lockfile import LockFile
from omni_mcp.paths import Home
from omni_mcp.server_definition import ServerDefinition
from omni_mcp.serving.web_server import serve_http
from omni_mcp.testing import ALLOW_ALL, HARMLESS, WAIT_S, home_in, write_private
from tests.matrix.client import Client
from tests.matrix.features import FEATURES, Cell
from tests.matrix.pairs import End, Pair
from tests.matrix.peers.web import WebServer
from tests.matrix.roads import LinesRoad

# Whatever a server offers later waits for the operator, so no client finds it in its list.
NOT_HERE = {"list change"}


@pytest.mark.parametrize("server", [End("2025-11-25", "http"), End("2026-07-28", "http")], ids=str)
@pytest.mark.parametrize("client", [End("2025-06-18", "stdio"), End("2026-07-28", "stdio")], ids=str)
async def test_a_defined_and_accepted_server_gives_every_feature(client: End, server: End) -> None:
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="omni-x-") as directory:
        home = home_in(Path(directory))
        write_private(home.policies / "test.cedar", ALLOW_ALL)
        async with serve_http(WebServer(server.version), "127.0.0.1", 0) as port:
            definition = ServerDefinition(url=f"http://127.0.0.1:{port}/mcp", transport="http")
            async with open_gateway(Settings(servers={server.name: definition}), home) as gateway:
                accept_all(home, await listing_of(home, server.name))
                await gateway.reload_lock()
                one = Client(client.version, LinesRoad(gateway))
                await one.open()
                cell = Cell(Pair(client, server), one, nothing)
                for name in FEATURES.keys() - NOT_HERE:
                    try:
                        await FEATURES[name](cell)
                    except Exception as error:
                        failed.append(f"{name}: {type(error).__name__}: {error}")
                await one.close()

    assert failed == []


async def nothing(uri: str) -> None:
    """The gateway itself asks the server for updates when somebody subscribes."""


async def listing_of(home: Home, server: str) -> KeptListing:
    """Wait until the gateway has written down what the server offers."""
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                return get_listing(listings_dir(home.data), server)
            except OmniError:
                await asyncio.sleep(0.01)  # nobody announces the file


def accept_all(home: Home, listing: KeptListing) -> None:
    """Say yes to everything that a server offers."""
    lock = LockFile(home.lock_file)
    waiting = waiting_of(lock.read(), listing.server, listing.definitions(), listing.launch)
    answers = [answer_to(one, one.difference(), HARMLESS) for one in waiting]
    lock.edit(lambda now: accept(now, answers, by="1000", at="2026-11-21T12:00:00.000000Z"))
