"""An edge with everything behind it in memory: small stand-ins for the catalog, the policy, the log and the chain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import httpx2

from omni_mcp.contracts.call import Answer, Call, InputRequired, Principal, Result
from omni_mcp.contracts.errors import LogUnavailable, NotAllowed, OmniError, RateLimited
from omni_mcp.contracts.events import Draft
from omni_mcp.contracts.ids import new_id
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.policy import Decision
from omni_mcp.contracts.ports import RunLog
from omni_mcp.contracts.tool import Entry
from omni_mcp.protocol.capabilities import ServerInfo
from omni_mcp.protocol.frames import Request
from omni_mcp.serving.changes import Changes
from omni_mcp.serving.edge import Edge, EdgeLimits
from omni_mcp.serving.http import HttpFace, build_http, serve_http
from omni_mcp.serving.metrics import Metrics
from omni_mcp.serving.rejections import Rejections
from omni_mcp.serving.runbook import Runbook

ANN = Principal(kind="User", id="ann")
BOB = Principal(kind="User", id="bob")
OPS = Principal(kind="User", id="ops", roles=("operator",))
TOKENS = {"ann-token": ANN, "bob-token": BOB, "ops-token": OPS}
MODERN = "2026-07-28"
META = {"io.modelcontextprotocol/protocolVersion": MODERN, "io.modelcontextprotocol/clientCapabilities": {}}

ASK = {"message": "Sure?", "requestedSchema": {"type": "object", "properties": {}}}

Tool = Callable[[Call], Awaitable[Result]]


class Written:
    """A durable event."""

    def __init__(self, seq: int) -> None:
        self.seq = seq

    def durable(self) -> Awaitable[int]:
        async def at_once() -> int:
            return self.seq

        return at_once()


class MemoryLog:
    """Keeps drafts; can be told to fail."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Draft]] = []
        self.runs_made: list[tuple[str, Principal, JsonObject, str | None]] = []
        self.broken = False
        self._appended = asyncio.Event()
        self._queues: list[asyncio.Queue[tuple[str, int, bool]]] = []

    async def create_run(self, **facts: Any) -> str:
        if self.broken:
            raise LogUnavailable("the log cannot be written")
        run = new_id()
        self.runs_made.append((run, facts["principal"], facts["client"], facts.get("trace_id")))
        return run

    def append(self, run: str, draft: Draft, *, parent: Any = None, quiet: bool = False) -> Written:
        self.events.append((run, draft))
        self._appended.set()
        for queue in self._queues:
            queue.put_nowait((run, len(self.events), quiet))
        return Written(len(self.events))

    append_outcome = append

    async def subscribe(self, wants: Callable[[str, bool], bool] | None = None) -> AsyncIterator[tuple[str, int, bool]]:
        queue: asyncio.Queue[tuple[str, int, bool]] = asyncio.Queue()
        self._queues.append(queue)
        while True:
            run, seq, quiet = await queue.get()
            if wants is None or wants(run, quiet):
                yield run, seq, quiet

    async def until(self, code: str) -> None:
        """Wait for an event with *code*."""
        while code not in self.codes():
            await self.next()

    async def next(self) -> None:
        """Wait for one more event."""
        self._appended.clear()
        async with asyncio.timeout(30):
            await self._appended.wait()

    def codes(self) -> list[str]:
        return [draft.code or draft.kind for _, draft in self.events]


class MemoryCatalog:
    """Names for entries, the same in every profile that is known."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.version = "1"
        self.all = list(entries)
        self.profiles = {"default", "tools"}

    def entries(self, profile: str, kind: str, *, project: str = "") -> list[tuple[str, Entry]]:
        if profile not in self.profiles:
            return []
        return [(public(entry), entry) for entry in self.all if entry.kind == kind]

    def find(self, profile: str, kind: str, name: str, *, project: str = "") -> Entry | None:
        found = dict(self.entries(profile, kind)).get(name)
        if found is None and kind == "resource" and name.startswith("note://"):
            return next((entry for entry in self.all if entry.kind == "resource_template"), None)
        return found

    def get(self, kind: str, server: str, name: str) -> Entry | None:
        return next((e for e in self.all if e.key == (kind, server, name)), None)


def public(entry: Entry) -> str:
    if entry.kind in ("tool", "prompt"):
        return f"{entry.server}__{entry.name}"
    return entry.name


class ListPolicy:
    """Allows what is in no set of forbidden names."""

    def __init__(self) -> None:
        self.version = "p1"
        self.hidden: dict[str, set[str]] = {}  # principal id -> names of entries
        self.asked: list[tuple[str, str]] = []

    def visible(self, *, action: str, principal: Principal, entries: Sequence[Entry]) -> list[bool]:
        return [entry.name not in self.hidden.get(principal.id, set()) for entry in entries]

    def decide(self, *, action: str, principal: Principal, entry: Entry | None, name: str, **_: Any) -> Decision:
        self.asked.append((action, name))
        allowed = entry is not None and entry.name not in self.hidden.get(principal.id, set())
        return Decision(verdict="allow" if allowed else "deny", policy_version=self.version)


class Tokens:
    """Identities."""

    def __init__(self, tokens: dict[str, Principal]) -> None:
        self.tokens = tokens

    def principal_of(self, token: str) -> Principal | None:
        return self.tokens.get(token)


class Suggestions:
    """A completer that echoes."""

    async def complete(
        self, principal: Principal, entry: Entry, argument: JsonObject, context: JsonObject
    ) -> JsonObject:
        return {"values": [argument["value"] + "!", entry.name], "total": 2, "hasMore": False}


def tool(name: str, **more: Any) -> Entry:
    schema = more.pop("schema", {"type": "object"})
    return Entry(kind="tool", server="t", name=name, definition={"name": name, "inputSchema": schema, **more})


def standard_entries() -> list[Entry]:
    header_schema = {"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "Region"}}}
    return [
        tool("echo", description="Gives back.", **{"x-vendor": {"kept": None}}),
        tool("slow"),
        tool("talk"),
        tool("ask"),
        tool("round"),
        tool("fail"),
        tool("routed", schema=header_schema),
        Entry(kind="resource", server="n", name="note://a", definition={"uri": "note://a", "name": "a"}),
        Entry(kind="resource_template", server="n", name="note://{id}",
              definition={"uriTemplate": "note://{id}", "name": "note"}),
        Entry(kind="prompt", server="p", name="greet", definition={"name": "greet", "arguments": [{"name": "who"}]}),
    ]  # fmt: skip


@dataclass
class World:
    """Everything behind one edge, open to the test."""

    page_size: int = 250
    calls: list[Call] = field(default_factory=list)
    ended: list[tuple[str, OmniError]] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    tools: dict[str, Tool] = field(default_factory=dict)
    started: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event = field(default_factory=asyncio.Event)
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    limits: EdgeLimits = field(default_factory=EdgeLimits)
    session_idle_s: float = 1800.0
    sessions: int = 100
    admissions: int = 1000
    admitted: list[str] = field(default_factory=list)
    owners: dict[str, str] = field(default_factory=dict)  # URI -> id of the only principal that may see it
    tokens: dict[str, Principal] = field(default_factory=lambda: dict(TOKENS))

    def __post_init__(self) -> None:
        self.log = MemoryLog()
        self.catalog = MemoryCatalog(standard_entries())
        self.policy = ListPolicy()
        self.changes = Changes()
        self.metrics = Metrics()
        self.runbook = Runbook(cast(RunLog, self.log))
        self.rejections = Rejections(cast(RunLog, self.log), "gateway-run", counted=self.metrics.rejected)
        self.now_ns = 1_000_000_000
        self.edge = Edge(
            handle=self.handle, catalog=self.catalog, policy=self.policy, log=cast(RunLog, self.log),
            runbook=self.runbook, rejections=self.rejections, changes=self.changes,
            state_key=b"k" * 32,
            info=ServerInfo(name="omni-mcp", version="0.0.0", instructions="Hello."), metrics=self.metrics,
            completer_of=lambda entry: Suggestions(), end_round=lambda call, error: self.ended.append((call, error)),
            limits=self.limits, admit=self.admit, may_see=self.may_see, now_ns=lambda: self.now_ns,
        )  # fmt: skip

    def admit(self, principal: Principal) -> None:
        """Stands for the rate of requests that are no calls."""
        self.admitted.append(principal.id)
        if len(self.admitted) > self.admissions:
            raise RateLimited("too many requests in a minute", data={"retry_after_s": 1.0})

    async def may_see(self, principal: Principal, entry: Entry, uri: str) -> bool:
        """Stands for who owns what a URI names."""
        return self.owners.get(uri, principal.id) == principal.id

    async def handle(self, call: Call) -> Result:
        """Stands for the chain."""
        self.calls.append(call)
        entry = self.catalog.find(call.profile, call.kind, call.name)
        if entry is None or entry.name in self.policy.hidden.get(call.principal.id, set()):
            raise NotAllowed(call.name, detail="hidden from the client: the secret rule")
        if call.kind == "resource":
            return Answer(body={"contents": [{"uri": call.name, "text": "text of " + call.name}]})
        if call.kind == "prompt":
            who = call.arguments.get("who", "you")
            return Answer(body={"messages": [{"role": "user", "content": {"type": "text", "text": f"Hello {who}"}}]})
        return await (self.tools.get(entry.name) or getattr(self, f"tool_{entry.name}"))(call)

    async def tool_echo(self, call: Call) -> Result:
        return text_answer(call.arguments)

    async def tool_slow(self, call: Call) -> Result:
        self.started.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.append(call.id)
            self.stopped.set()
            raise
        return text_answer("done")

    async def tool_talk(self, call: Call) -> Result:
        for number in range(3):
            await call.link.progress(number + 1, 3, f"step {number + 1}")
        await call.link.log("debug", "whispered", "talk")
        await call.link.log("warning", {"said": "aloud"}, "talk")
        return text_answer("talked")

    async def tool_ask(self, call: Call) -> Result:
        answer = await call.link.ask("elicitation/create", ASK)
        return text_answer(answer)

    async def tool_round(self, call: Call) -> Result:
        if call.round is None:
            question = {
                "method": "elicitation/create",
                "params": {"mode": "form", "message": "Name?", "requestedSchema": {"type": "object", "properties": {}}},
            }
            return InputRequired(
                requests={"name": question},
                state={"step": 1},
                intent_seq=7,
                carry={"definition": "d"},
                expires_at_ns=self.now_ns + 10**9,
            )
        return text_answer({"round": call.round.number, "state": call.round.state, "got": call.round.responses,
                            "seq": call.round.intent_seq, "carry": call.round.carry})  # fmt: skip

    async def tool_fail(self, call: Call) -> Result:
        raise RuntimeError("a secret inside the gateway")

    def http(self, *, identities: Any = None) -> HttpFace:
        settings = SimpleNamespace(
            hosts=("gateway.test",), origins=("https://page.test",), request_limit_bytes=256 * 1024,
            sessions=self.sessions, session_idle_s=self.session_idle_s,
        )  # fmt: skip
        return build_http(self.edge, identities or Tokens(self.tokens), settings,
                          status=lambda: {"log": {"healthy": not self.log.broken}})  # fmt: skip

    @asynccontextmanager
    async def served(self, **more: Any) -> AsyncIterator[str]:
        """Serve over a real loopback port; yields the base address."""
        face = self.http(**more)
        async with serve_http(face, "127.0.0.1", 0) as port:
            yield f"http://127.0.0.1:{port}"
            await self.edge.drain(timeout_s=1.0)
            face.close()

    @asynccontextmanager
    async def client(self, token: str | None = "ann-token", **more: Any) -> AsyncIterator[httpx2.AsyncClient]:
        """A plain HTTP client with a token, over a real port."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with (
            self.served(**more) as base,
            httpx2.AsyncClient(base_url=base, headers=headers, timeout=60) as http,
        ):
            yield http

    @asynccontextmanager
    async def direct(self, token: str | None = "ann-token", **more: Any) -> AsyncIterator[httpx2.AsyncClient]:
        """The same in process: faster, but an answer is only seen when it is whole."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        transport = httpx2.ASGITransport(app=self.http(**more), raise_app_exceptions=True)
        async with httpx2.AsyncClient(
            transport=transport, base_url="http://127.0.0.1:6464", headers=headers, timeout=60
        ) as http:
            yield http
            await self.edge.drain(timeout_s=1.0)


def text_answer(value: Any) -> Answer:
    return Answer(body={"content": [{"type": "text", "text": repr(value)}], "structuredContent": {"value": value}})


def modern(method: str, params: JsonObject | None = None, *, id: Any = 1, **meta: Any) -> JsonObject:
    """A modern request."""
    return {"jsonrpc": "2.0", "id": id, "method": method, "params": {**(params or {}), "_meta": {**META, **meta}}}


def modern_headers(body: JsonObject) -> dict[str, str]:
    """The headers that must go with it."""
    found = {"MCP-Protocol-Version": MODERN, "Mcp-Method": body["method"],
             "Accept": "application/json, text/event-stream"}  # fmt: skip
    name = body["params"].get("name") or body["params"].get("uri")
    return {**found, "Mcp-Name": name} if isinstance(name, str) else found


def initialize(version: str = "2025-11-25", *, capabilities: JsonObject | None = None, id: Any = 0) -> JsonObject:
    """A handshake."""
    return {"jsonrpc": "2.0", "id": id, "method": "initialize", "params": {
        "protocolVersion": version, "capabilities": capabilities or {}, "clientInfo": {"name": "test", "version": "1"},
    }}  # fmt: skip


def request(method: str, params: JsonObject | None = None, *, id: Any = 1) -> JsonObject:
    """A handshake request."""
    return {"jsonrpc": "2.0", "id": id, "method": method, "params": params or {}}


__all__ = ["ANN", "BOB", "META", "MODERN", "TOKENS", "Request", "World", "initialize", "modern", "modern_headers",
           "request", "text_answer", "tool"]  # fmt: skip
