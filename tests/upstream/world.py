"""Worlds: a whole gateway in front of real servers, started for a test and gone after it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omni_mcp.assembly import open_gateway
from omni_mcp.config import Settings
from omni_mcp.contracts.manifest import Labels, Limits
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.catalog.names import unmarked_uri
from omni_mcp.engines.upstream.connection import Timing
from omni_mcp.engines.upstream.envelope import ClientInfo
from omni_mcp.engines.upstream.health import Patience
from omni_mcp.engines.upstream.listing import Listing
from omni_mcp.engines.upstream.pool import Hooks, Known, Upstreams, open_upstreams
from omni_mcp.engines.upstream.wire.lines import PipeChild
from omni_mcp.gateway import Gateway
from omni_mcp.server_definition import ServerDefinition
from omni_mcp.testing import ALLOW_ALL, HARMLESS, WAIT_S, LocalGateway, home_in, write_private
from omni_mcp.upstreams.usable_schemas import UsableSchemas

ROOT = Path(__file__).resolve().parent.parent.parent
WRITES = Labels(read_only=False, destructive=False, egress=False, reads_private=False, reads_untrusted=False)
QUICK = Timing(patience=Patience(backoff_s=0.01, backoff_limit_s=0.05, open_s=0.2, open_limit_s=0.5))


@dataclass
class Children:
    """Starts servers without a sandbox and remembers them."""

    started: list[asyncio.subprocess.Process] = field(default_factory=list)

    async def launch(self, name: str, settings: ServerDefinition, environment: Mapping[str, str]) -> PipeChild:
        """As `pool.Launch`."""
        process = await asyncio.create_subprocess_exec(
            settings.command, *settings.args, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environment}, cwd=ROOT,
        )  # fmt: skip
        self.started.append(process)
        assert process.stdin is not None and process.stdout is not None
        return PipeChild(process.stdout, process.stdin, process)


class Heard:
    """What the pool told; can be waited for."""

    def __init__(self) -> None:
        self.events: list[tuple[str, ...]] = []
        self._changed = asyncio.Event()
        self.gateway: Gateway | None = None

    def hooks(self) -> Hooks:
        """Return hooks that remember."""
        return Hooks(
            on_state=lambda server, status, detail: self._add("state", server, status),
            on_listing=self._listing,
            on_list_changed=lambda server: self._add("list_changed", server),
            on_resource=lambda server, uri: self._add("resource", server, uri),
            schema_faults=UsableSchemas().faults,
        )

    def _listing(self, server: str, listing: Listing) -> None:
        self._add("listing", server)
        if self.gateway is not None:
            self.gateway.reload_catalog()

    def _add(self, *event: str) -> None:
        self.events.append(event)
        self._changed.set()

    async def until(self, *event: str) -> None:
        """Wait until *event* was told."""
        async with asyncio.timeout(WAIT_S):
            while event not in self.events:
                self._changed.clear()
                await self._changed.wait()


@dataclass
class Here:
    """One world."""

    gateway: LocalGateway
    pool: Upstreams
    children: Children
    heard: Heard

    def client(self, **facts: Any) -> Any:
        """Connect a client; see `omni_mcp.testing.MemoryClient`."""
        return self.gateway.client(**facts)


def accepted(entry: Entry, **facts: Any) -> Entry:
    """An operator who trusts every definition."""
    known: dict[str, Any] = {"state": "accepted", "labels": HARMLESS, "limits": Limits(timeout_s=20), **facts}
    return replace(entry, digest="", **known)


def writing(entry: Entry) -> Entry:
    """An operator who says of every tool that it changes something."""
    return accepted(entry, labels=WRITES)


@asynccontextmanager
async def world(
    servers: Mapping[str, ServerDefinition], *, timing: Timing = QUICK, known: Known | None = None,
    accept: Any = accepted, secrets: Mapping[str, str] | None = None, **options: Any,
) -> AsyncIterator[Here]:  # fmt: skip
    """Open a gateway in front of *servers*, with their lists fetched once."""
    children, heard = Children(), Heard()
    with tempfile.TemporaryDirectory(prefix="omni-u-") as directory:
        home = home_in(Path(directory))
        write_private(home.policies / "test.cedar", ALLOW_ALL)
        async with (
            open_upstreams(
                servers, launch=children.launch, secrets=secrets or {}, info=ClientInfo(version="test"),
                accept=accept, own_uri=lambda uri: unmarked_uri(uri)[1], hooks=heard.hooks(), timing=timing,
                known=known, **options,
            ) as pool,
        ):  # fmt: skip
            for name in pool.completers:
                await asyncio.wait_for(pool.listed(name), WAIT_S)
            async with open_gateway(
                Settings(), home, sources=[pool.source], executors={"mcp_remote": pool.executor},
                completers=pool.completers, cells=False,
            ) as gateway:  # fmt: skip
                heard.gateway = gateway
                yield Here(LocalGateway(gateway, home), pool, children, heard)
    assert all(process.returncode is not None for process in children.started), "a server outlived its pool"


def python_server(name: str, *arguments: str, **facts: Any) -> ServerDefinition:
    """A server of `tests/upstream/servers`, over stdio."""
    return ServerDefinition(command=sys.executable, args=("-m", f"tests.upstream.servers.{name}", *arguments), **facts)


@contextmanager
def sdk_over_http() -> Iterator[str]:
    """Run the SDK's server in a process of its own; yields its base address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.upstream.servers.sdk", "http"], stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.terminate()
        process.wait(10)
        assert process.stdout is not None
        process.stdout.close()
