"""A gateway in front of real servers, as it is put together for an operator, but that every definition is accepted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

from omni_mcp.assembly import open_gateway
from omni_mcp.config import Settings
from omni_mcp.contracts.call import Era
from omni_mcp.contracts.manifest import Limits
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.upstream.connection import Timing
from omni_mcp.engines.upstream.envelope import ClientInfo
from omni_mcp.engines.upstream.pool import Hooks, Known, Upstreams, open_upstreams
from omni_mcp.gateway import Gateway
from omni_mcp.paths import Home
from omni_mcp.server_definition import ServerDefinition
from omni_mcp.testing import HARMLESS, WAIT_S
from omni_mcp.upstreams.behind import own_uri
from omni_mcp.upstreams.news import News
from tests.upstream.world import Children

CALL_LIMIT_S = 30


def accepted(entry: Entry) -> Entry:
    """Accept a definition with the mildest labels, so that no shipped guardrail asks a person."""
    return replace(entry, digest="", state="accepted", labels=HARMLESS, limits=Limits(timeout_s=CALL_LIMIT_S))


@asynccontextmanager
async def in_front_of(
    servers: Mapping[str, ServerDefinition], settings: Settings, home: Home, *, eras: Mapping[str, Era] | None = None,
    timing: Timing | None = None,
) -> AsyncIterator[tuple[Gateway, Upstreams]]:  # fmt: skip
    """Open a gateway in front of *servers*, with their lists fetched once.

    Args:
        eras: of servers by name, where they are not to be probed.
    """
    news, children = News(), Children()
    known = Known(eras={servers[name].definition: era for name, era in (eras or {}).items()})
    async with open_upstreams(
        servers, launch=children.launch, secrets={}, info=ClientInfo(version="test"), accept=accepted,
        own_uri=own_uri, hooks=Hooks(on_listing=news.listed, on_resource=news.updated), known=known, timing=timing,
    ) as pool:  # fmt: skip
        async with asyncio.timeout(WAIT_S):
            await asyncio.gather(*(pool.listed(name) for name in pool.completers))
        unlisted = [name for name in pool.completers if pool.source.find(name) is None]
        assert not unlisted, pool.facts()
        async with open_gateway(
            settings, home, sources=[pool.source], executors={"mcp_remote": pool.executor}, completers=pool.completers,
            cells=False,
        ) as gateway:  # fmt: skip
            following = asyncio.create_task(_follow(gateway, news))
            try:
                yield gateway, pool
            finally:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
    assert all(process.returncode is not None for process in children.started), "a server outlived its pool"


async def _follow(gateway: Gateway, news: News) -> None:
    """Pass on what servers report, as the gateway does for those of its own settings."""
    while True:
        listings, updates = await news.next()
        if listings:
            gateway.reload_catalog()
        for uri in updates:
            gateway.changes.resource_updated(uri)
