"""Whatever interrupts the end of a connection, its server is gone when the pool is."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from omni_mcp.engines.upstream.connection import Timing
from omni_mcp.engines.upstream.envelope import ClientInfo
from omni_mcp.engines.upstream.pool import open_upstreams
from omni_mcp.engines.upstream.wire.lines import PipeChild
from omni_mcp.server_definition import ServerDefinition
from tests.upstream.world import QUICK, Children, accepted, python_server

WAIT_S = 30.0


class HeldChild(PipeChild):
    """A child that takes its time to end."""

    stopping: asyncio.Event
    may_end: asyncio.Event

    async def stop(self, *, grace_s: float = 1.0) -> str:
        self.stopping.set()
        await self.may_end.wait()
        return await super().stop(grace_s=grace_s)


class HeldChildren(Children):
    """Starts them."""

    def __init__(self) -> None:
        super().__init__()
        self.stopping, self.may_end = asyncio.Event(), asyncio.Event()

    async def launch(self, name: str, settings: ServerDefinition, environment: Mapping[str, str]) -> PipeChild:
        child = await super().launch(name, settings, environment)
        held = HeldChild(child._reader, child._writer, child._process)
        held.stopping, held.may_end = self.stopping, self.may_end
        return held


async def test_a_server_that_is_being_stopped_when_the_pool_closes_is_gone_when_it_has_closed() -> None:
    children, closing = HeldChildren(), asyncio.Event()

    async def use() -> None:
        async with open_upstreams(
            {"up": python_server("raw", "{}")}, launch=children.launch, secrets={}, info=ClientInfo(version="test"),
            accept=accepted, timing=Timing(idle_s=0.1, patience=QUICK.patience),
        ):  # fmt: skip
            await asyncio.wait_for(children.stopping.wait(), WAIT_S)
            closing.set()

    using = asyncio.create_task(use())
    await asyncio.wait_for(closing.wait(), WAIT_S)
    children.may_end.set()
    await asyncio.wait_for(using, WAIT_S)
    assert [process.returncode is not None for process in children.started] == [True]
