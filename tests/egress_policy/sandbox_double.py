"""A sandbox that runs nothing: it keeps the jobs, reports the connections it was told to, and answers as http_fetch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
from click.testing import CliRunner

from omni_mcp.cli.root import cli
from omni_mcp.config import ApprovalSettings, Settings
from omni_mcp.contracts.call import Call, Result
from omni_mcp.contracts.errors import NotFound
from omni_mcp.contracts.sandbox import Connection, Isolation, Job, JobEnd, Served, Streams
from omni_mcp.engines.sandbox.executor import SandboxExecutor
from omni_mcp.engines.sandbox.supplies import Supplies
from omni_mcp.engines.sandbox.workspaces import Workspaces
from omni_mcp.testing import ALLOW_ALL, LocalGateway, MemoryClient, error_of, local_gateway

BRIEFLY = Settings(approvals=ApprovalSettings(wait_s=0.02))
ANSWER: dict[str, Any] = {
    "status": 200, "url": "https://example.org/", "headers": {}, "size": 0, "truncated": False, "attempts": [],
}  # fmt: skip


class SandboxDouble:
    """Port `Sandbox`."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.connections: list[Connection] = []
        self.begun = asyncio.Event()
        self.never_ends = False

    def isolation(self) -> Isolation:
        return Isolation(posture="full")

    async def run(
        self,
        job: Job,
        *,
        streams: Streams | None = None,
        on_connection: Callable[[Connection], None] | None = None,
    ) -> JobEnd:
        self.jobs.append(job)
        for connection in self.connections:
            assert on_connection is not None
            on_connection(connection)
        self.begun.set()
        if self.never_ends:
            await asyncio.Event().wait()
        return JobEnd(reason="exit", exit_code=0, result=ANSWER, isolation=self.isolation())

    def serve(
        self,
        job: Job,
        *,
        on_stderr: Callable[[bytes], None],
        on_connection: Callable[[Connection], None] | None = None,
    ) -> AbstractAsyncContextManager[Served]:
        raise AssertionError("no call of a tool is a server")


class NoArtifacts:
    """Port `Artifacts`, empty."""

    async def put(self, data: bytes, **_: Any) -> Any:
        raise AssertionError("nothing is stored here")

    async def get(self, sha256: str, *, owner: str) -> Any:
        raise NotFound("nothing is stored here")

    async def list_refs(self, *, owner: str, limit: int = 100) -> list[Any]:
        return []


class _LateExecutor:
    """The gateway's own executor on the double: it needs the log, which is there once the gateway is open."""

    def __init__(self) -> None:
        self.inner: SandboxExecutor | None = None

    async def execute(self, call: Call) -> Result:
        assert self.inner is not None
        return await self.inner.execute(call)


@asynccontextmanager
async def a_gateway(
    sandbox: SandboxDouble, directory: Path, *, rules: str = ALLOW_ALL, supplies: Supplies | None = None,
    settings: Settings = BRIEFLY,
) -> AsyncIterator[LocalGateway]:  # fmt: skip
    """Open a whole gateway whose sandboxed tools run in *sandbox*."""
    executor = _LateExecutor()
    async with local_gateway(
        rules, settings=settings, executors={"sandbox_job": executor}, directory=directory, cells=False
    ) as here:
        executor.inner = SandboxExecutor(
            sandbox, NoArtifacts(), Workspaces(directory / "rooms"), log=here.gateway.log, supplies=supplies
        )
        yield here


async def fetch(client: MemoryClient, url: Any, tool: str = "tools__http_fetch") -> str | None:
    """Call once; returns the code of its failure, None for an answer."""
    return error_of(await client.call(tool, {"url": url})).get("code")


async def person(here: LocalGateway, *words: str) -> Any:
    """Run a command as a person beside the gateway does; returns what it prints."""
    environment = {"OMNI_HOME": str(here.home.config)}
    result = await asyncio.to_thread(CliRunner().invoke, cli, [*words, "--json"], env=environment)
    assert result.exit_code == 0, result.output
    return orjson.loads(result.stdout)


async def grant(here: LocalGateway, *words: str) -> str:
    """Give a standing grant and wait until it counts."""
    before = here.gateway.status()["standing_grants"]
    given = await person(here, "approvals", "grant", *words, "--expires", "7d", "--yes")
    async with asyncio.timeout(30):
        while here.gateway.status()["standing_grants"] != before + 1:
            await asyncio.sleep(0.002)
    return str(given["id"])
