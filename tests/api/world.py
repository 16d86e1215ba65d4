"""Two callers of one gateway's JSON API, and something of every kind that belongs to the first."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from omni_mcp.config import ApprovalSettings, Settings
from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.manifest import Labels
from omni_mcp.engines.identity.keys import KeyRing
from omni_mcp.serving.api.routes import ROUTES, ApiRoute
from omni_mcp.testing import ALLOW_ALL, ANN, BOB, Canary, LocalGateway, local_gateway

DESTROYS = Labels(read_only=False, destructive=True, egress=False, reads_private=False, reads_untrusted=False)
ADDRESS = "http://127.0.0.1:6464"
FILE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\nContent-Type: text/plain\r\n\r\n'
FILE_END = b"\r\n--b--\r\n"
FILE_TYPE = {"Content-Type": "multipart/form-data; boundary=b"}


def a_file(data: bytes = b"hello") -> bytes:
    """A multipart body with one file."""
    return FILE + data + FILE_END


@dataclass
class Api:
    """A gateway and its callers, in process."""

    here: LocalGateway
    ann: httpx2.AsyncClient
    bob: httpx2.AsyncClient
    nobody: httpx2.AsyncClient
    canary: Canary
    things: dict[str, str] = field(default_factory=dict)  # of ann, by the name that paths have for them

    @property
    def has_memory(self) -> bool:
        return self.here.gateway.catalog.get("tool", "memory", "remember") is not None


@asynccontextmanager
async def api_world(
    directory: Path, rules: str = ALLOW_ALL, *, settings: Settings | None = None, keep: Path | None = None
) -> AsyncIterator[Api]:
    """Open a gateway whose clients are ann and bob; calls that a person must answer do not wait."""
    canary = Canary(directory / "touched")
    canary.tool("echo")
    canary.tool("break", labels=DESTROYS)
    canary.resource("note://one")
    canary.prompt("greet")
    chosen = settings or Settings(approvals=ApprovalSettings(wait_s=0))
    async with AsyncExitStack() as stack:
        here = await stack.enter_async_context(
            local_gateway(rules, settings=chosen, canary=canary, directory=keep, cells=False)
        )
        ann, bob, nobody = [await stack.enter_async_context(caller(here, who)) for who in (ANN, BOB, None)]
        yield Api(here, ann, bob, nobody, canary)


@asynccontextmanager
async def caller(here: LocalGateway, who: Principal | None) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the API with a token for *who*."""
    ring = KeyRing(here.home.keys_file)
    token = ring.create(f"key{len(ring.keys())}", who) if who is not None else None
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    transport = httpx2.ASGITransport(app=here.gateway.http_app)
    async with httpx2.AsyncClient(transport=transport, base_url=ADDRESS, headers=headers, timeout=30) as client:
        yield client


async def furnish(world: Api) -> dict[str, str]:
    """Give ann one of everything, and return the ids by the names that they have in paths."""
    post = world.ann.post
    thread = (await post("/api/threads", json={"title": "plans"})).json()["id"]
    run = (await post("/api/runs", json={"title": "first", "thread": thread})).json()["id"]
    said = {"kind": "user_message", "text": "where is the quince?"}
    await post(f"/api/runs/{run}/events", json={"events": [said]})
    call = (await post("/api/calls", json={"name": "canary__echo", "arguments": {"x": 1}, "run": run})).json()["call"]
    stored = await post("/api/artifacts", params={"run": run}, content=a_file(), headers=FILE_TYPE)
    waiting = await post("/api/calls", json={"name": "canary__break", "run": run})
    found = {
        "thread": thread, "run": run, "call": call, "sha256": stored.json()["sha256"],
        "approval": waiting.json()["data"]["approval"], "project": ANN.project,
    }  # fmt: skip
    if world.has_memory:
        kept = await post("/api/memory", json={"text": "the quince is in the pantry"})
        found["item"] = kept.json()["id"]
    world.things = found
    return found


def path_of(route: ApiRoute, names: dict[str, str]) -> str:
    """Return the path of *route* with its names filled in."""
    return route.path.format(**{name: names.get(name, "nothing") for name in route.names})


def request_of(route: ApiRoute, names: dict[str, str]) -> dict[str, Any]:
    """Return what a request of *route* must bring, over its path, to succeed."""
    bodies: dict[str, Any] = {
        "create_thread": {"title": "another"},
        "begin_run": {"title": "another"},
        "report_events": {"events": [{"kind": "assistant_message", "text": "on the shelf"}]},
        "make_call": {"name": "canary__echo", "arguments": {"a": [1, 2]}},
        "remember": {"text": "a fact"},
        "share": {"text": "a shared fact"},
        "recall": {"query": "fruit"},
        "promote": {"run": names.get("run"), "seq": 2},
        "revise": {"text": "it is gone"},
    }
    if route.body is bytes:
        return {"content": a_file(b"other bytes"), "headers": FILE_TYPE}
    if route.operation in bodies:
        return {"json": bodies[route.operation]}
    return {"params": {"query": "quince"}} if route.operation == "search_events" else {}


def routes(*, memory: bool) -> list[ApiRoute]:
    """Every route that answers at once."""
    return [one for one in ROUTES if one.media != "text/event-stream" and (memory or one.tag != "memory")]
