"""A whole gateway in this process: real policy, log, sandbox and edge; only the outside world is faked.

    async with local_gateway('permit (principal, action, resource);') as here, here.client() as client:
        result = await client.call("tools__text_hash", {"text": "x"})

For our own tests and for authors of plugins.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson

from omni_mcp.assembly import open_gateway
from omni_mcp.config import Settings
from omni_mcp.contracts.approval import Approval
from omni_mcp.contracts.call import Answer, Call, Principal, Result
from omni_mcp.contracts.events import OUTCOME_KINDS, RunEvent
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.manifest import Binding, Labels, Limits
from omni_mcp.contracts.ports import Completer, Executor, Source
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.approvals.store import ApprovalStore
from omni_mcp.engines.identity.keys import KeyRing
from omni_mcp.engines.state.database import open_state
from omni_mcp.gateway import Gateway
from omni_mcp.paths import Home
from omni_mcp.plugins.promises import PromiseBroken as PromiseBroken
from omni_mcp.plugins.promises import executor_promises as executor_promises
from omni_mcp.plugins.promises import tool_promises as tool_promises
from omni_mcp.protocol.eras import META_CAPABILITIES, META_ERROR, META_VERSION, MODERN_VERSIONS
from omni_mcp.protocol.frames import FRAME_LIMIT_BYTES
from omni_mcp.serving.conversation import Conversation
from omni_mcp.serving.web_server import serve_http

ANN = Principal(kind="User", id="ann")
BOB = Principal(kind="User", id="bob")
WAIT_S = 30.0  # for anything that a test waits for: long, because only a broken test gets there
ALLOW_ALL = '@id("all") permit (principal, action, resource);'
HARMLESS = Labels(read_only=True, destructive=False, egress=False, reads_private=False, reads_untrusted=False)

Behaviour = Callable[[Call], Awaitable[Result]]
Client = Callable[[str, JsonObject], JsonObject]


class Canary:
    """The outside world: a server whose every use is counted and leaves a line in a file that any process can see.

    It is a source, an executor and a completer at once. What a tool does is its behaviour, after the line was left; a
    tool without one answers with its arguments.
    """

    def __init__(self, file: Path, *, server: str = "canary", binding: Binding = "mcp_remote") -> None:
        self._file = file
        self._server = server
        self._binding = binding
        self._entries: list[Entry] = []
        self._behaviours: dict[str, Behaviour] = {}
        self.calls: list[Call] = []
        self.executors: Mapping[str, Executor] = {binding: self}
        self.completers: Mapping[str, Completer] = {server: self}

    def tool(
        self, name: str, behaviour: Behaviour | None = None, *, schema: JsonObject | None = None, **facts: Any
    ) -> None:
        """Offer a tool; *facts* are further fields of its `Entry`, by default those of a harmless one."""
        definition: JsonObject = {"name": name, "inputSchema": schema or {"type": "object"}}
        definition |= facts.pop("definition", {})
        self._add("tool", name, definition, behaviour, facts)

    def resource(self, uri: str, behaviour: Behaviour | None = None, **facts: Any) -> None:
        """Offer a resource, or a template where *uri* has braces."""
        template = "{" in uri
        definition: JsonObject = {("uriTemplate" if template else "uri"): uri, "name": uri}
        self._add("resource_template" if template else "resource", uri, definition, behaviour, facts)

    def prompt(self, name: str, behaviour: Behaviour | None = None, **facts: Any) -> None:
        """Offer a prompt that takes one optional argument, `word`."""
        self._add("prompt", name, {"name": name, "arguments": [{"name": "word"}]}, behaviour, facts)

    def _add(
        self, kind: Any, name: str, definition: JsonObject, behaviour: Behaviour | None, facts: JsonObject
    ) -> None:
        known: JsonObject = {"labels": HARMLESS, "limits": Limits(timeout_s=20), "binding": self._binding, **facts}
        self._entries.append(Entry(kind=kind, server=self._server, name=name, definition=definition, **known))
        if behaviour is not None:
            self._behaviours[name] = behaviour

    @property
    def touched(self) -> list[str]:
        """What was used, as the file tells it."""
        return self._file.read_text().splitlines() if self._file.exists() else []

    def load(self) -> Iterable[Entry]:
        """As the port `Source`."""
        return list(self._entries)

    async def execute(self, call: Call) -> Result:
        """As the port `Executor`."""
        assert call.tool is not None
        self._touch(f"{call.kind} {call.name}")
        self.calls.append(call)
        behaviour = self._behaviours.get(call.tool.name)
        return await behaviour(call) if behaviour else _echo(call)

    async def complete(
        self, principal: Principal, entry: Entry, argument: JsonObject, context: JsonObject
    ) -> JsonObject:
        """As the port `Completer`."""
        self._touch(f"completion {entry.name}")
        return {"values": ["one", "two"], "hasMore": False}

    def _touch(self, line: str) -> None:
        with self._file.open("a") as file:
            file.write(line + "\n")


def _echo(call: Call) -> Answer:
    text = {"type": "text", "text": orjson.dumps(call.arguments).decode()}
    if call.kind == "resource":
        return Answer(body={"contents": [{"uri": call.name, "text": "here"}]}, where="remote")
    if call.kind == "prompt":
        return Answer(body={"messages": [{"role": "user", "content": text}]}, where="remote")
    return Answer(body={"content": [text], "isError": False}, where="remote")


class MemoryClient:
    """An MCP client without a socket: raw frames in, raw frames out, in any version of the protocol.

    Args:
        version: a modern version sends its envelope with each request, an older one begins with a handshake.
        answer: what the client says when the gateway asks it something: `(method, params) -> result`.
    """

    def __init__(
        self, gateway: Gateway, *, principal: Principal = ANN, profile: str = "default",
        version: str = MODERN_VERSIONS[-1], capabilities: JsonObject | None = None, answer: Client | None = None,
    ) -> None:  # fmt: skip
        self.version = version
        self.modern = version in MODERN_VERSIONS
        self.capabilities = capabilities or {}
        self.notifications: list[JsonObject] = []
        self.unasked: asyncio.Queue[Any] = asyncio.Queue()  # batches, and errors that name no request
        self.heard = asyncio.Event()  # set with every notification
        self._answer = answer
        self._numbers = itertools.count(1)
        self._waiting: dict[Any, asyncio.Future[JsonObject]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._talk = Conversation(
            gateway.edge, self, principal=principal, profile=profile, transport="memory",
            frame_limit_bytes=FRAME_LIMIT_BYTES,
        )  # fmt: skip

    @property
    def run(self) -> str | None:
        """The run of the handshake."""
        return self._talk.session.run

    async def greet(self) -> None:
        """Go through the handshake, if the version has one."""
        if self.modern:
            return
        info = {"name": "memory-client", "version": "1"}
        asked = {"protocolVersion": self.version, "capabilities": self.capabilities, "clientInfo": info}
        answer = await self.request("initialize", asked)
        assert answer["result"]["protocolVersion"] == self.version, answer
        await self.notify("notifications/initialized")

    async def leave(self) -> None:
        """End the connection."""
        await self._talk.end()
        if self._answering:
            await asyncio.wait(self._answering)

    def frame(self, method: str, params: JsonObject | None = None) -> JsonObject:
        """Return a request with the next id, not sent."""
        params = dict(params or {})
        if self.modern:
            envelope = {META_VERSION: self.version, META_CAPABILITIES: self.capabilities}
            params["_meta"] = {**envelope, **params.get("_meta", {})}
        return {"jsonrpc": "2.0", "id": next(self._numbers), "method": method, "params": params}

    async def tell(self, message: JsonObject | list[Any] | bytes) -> None:
        """Send the gateway anything."""
        await self._talk.take(message if isinstance(message, bytes) else orjson.dumps(message))

    async def start(self, method: str, params: JsonObject | None = None) -> tuple[int, asyncio.Future[JsonObject]]:
        """Send a request; returns its id and what will be its whole reply."""
        frame = self.frame(method, params)
        reply = self._waiting[frame["id"]] = asyncio.get_running_loop().create_future()
        await self.tell(frame)
        return frame["id"], reply

    async def request(self, method: str, params: JsonObject | None = None) -> JsonObject:
        """Send a request and return its whole reply: `result` or `error`."""
        _, reply = await self.start(method, params)
        return await asyncio.wait_for(reply, WAIT_S)

    async def call(self, tool: str, arguments: JsonObject | None = None, **params: Any) -> JsonObject:
        """Call a tool and return its result; its failures are results too."""
        reply = await self.request("tools/call", {"name": tool, "arguments": arguments or {}, **params})
        assert "result" in reply, reply
        result: JsonObject = reply["result"]
        return result

    async def listed(self, what: str) -> list[JsonObject]:
        """Return all of `tools`, `prompts`, `resources` or `resources/templates`."""
        found: list[JsonObject] = []
        cursor: JsonObject = {}
        while True:
            page = (await self.request(f"{what}/list", cursor))["result"]
            found += next(value for value in page.values() if isinstance(value, list))
            if "nextCursor" not in page:
                return found
            cursor = {"cursor": page["nextCursor"]}

    async def notify(self, method: str, params: JsonObject | None = None) -> None:
        """Send a notification."""
        await self.tell({"jsonrpc": "2.0", "method": method, "params": params or {}})

    def send(self, data: bytes) -> bool:
        """Take one message of the gateway: this client is its own outlet."""
        message = orjson.loads(data)
        if isinstance(message, list):
            self.unasked.put_nowait(message)
        elif "method" in message and "id" in message:
            task = asyncio.get_running_loop().create_task(self._reply(message))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)
        elif "method" in message:
            self.notifications.append(message)
            self.heard.set()
        elif (waiting := self._waiting.pop(message.get("id"), None)) is not None:
            if not waiting.done():
                waiting.set_result(message)
        else:
            self.unasked.put_nowait(message)
        return True

    async def _reply(self, question: JsonObject) -> None:
        assert self._answer is not None, f"the gateway asks {question['method']} and this client has no answer"
        result = self._answer(question["method"], question.get("params", {}))
        await self.tell({"jsonrpc": "2.0", "id": question["id"], "result": result})


class LocalGateway:
    """One running gateway, its home, and what a test wants to know of it."""

    def __init__(self, gateway: Gateway, home: Home) -> None:
        self.gateway = gateway
        self.home = home

    @asynccontextmanager
    async def client(self, **facts: Any) -> AsyncIterator[MemoryClient]:
        """Connect a client; *facts* as in `MemoryClient`."""
        client = MemoryClient(self.gateway, **facts)
        try:
            await client.greet()
            yield client
        finally:
            await client.leave()

    @asynccontextmanager
    async def http(self, *principals: Principal) -> AsyncIterator[tuple[str, list[str]]]:
        """Serve HTTP on a loopback port; yields the base address and a token for each of *principals*."""
        ring = KeyRing(self.home.keys_file)
        tokens = [ring.create(f"key{len(ring.keys())}", principal) for principal in principals]
        async with serve_http(self.gateway.http_app, "127.0.0.1", 0) as port:
            yield f"http://127.0.0.1:{port}", tokens

    def write_policy(self, text: str, name: str = "test.cedar") -> Path:
        """Write a file of rules; it is in force after the next `reload` or look of the watcher."""
        return write_private(self.home.policies / name, text)

    async def events(self, *, call: str | None = None) -> list[RunEvent]:
        """Return everything on record, oldest first; of one call if *call* says so."""
        found: list[RunEvent] = []
        for run in await self.gateway.log.runs(limit=1000):
            found += [event async for event in self.gateway.log.read(run["id"], limit=100_000)]
        return sorted((e for e in found if call is None or e.call == call), key=lambda event: event.gid)

    async def words(self, call: str) -> list[str]:
        """Return what happened to a call, a word an event; see `word_of`."""
        return [word_of(event) for event in await self.events(call=call)]

    async def outcomes(self) -> dict[str, list[str]]:
        """Return for every call on record how it ended: one word each, unless a promise is broken."""
        ended: dict[str, list[str]] = {}
        for event in await self.events():
            if event.kind == "tool_call" and event.call:
                ended.setdefault(event.call, [])
            elif event.kind in OUTCOME_KINDS and event.call:
                ended.setdefault(event.call, []).append(word_of(event))
        return ended

    async def until(self, code: str, *, count: int = 1) -> RunEvent:
        """Wait until *count* events of a kind or code are on record; returns the last of them."""
        return await self._until(lambda event: code in (event.kind, event.code), count)

    async def end_of(self, call: str) -> RunEvent:
        """Wait until a call has its outcome on record."""
        return await self._until(lambda event: event.call == call and event.kind in OUTCOME_KINDS, 1)

    async def _until(self, wanted: Callable[[RunEvent], bool], count: int) -> RunEvent:
        commits = self.gateway.log.subscribe()
        async with asyncio.timeout(WAIT_S):
            while True:
                found = [event for event in await self.events() if wanted(event)]
                if len(found) >= count:
                    return found[count - 1]
                await anext(commits)

    def answer(self, approve: bool, *, by: str = "person") -> Approval:
        """Answer the newest open question, from a connection of its own as the command line does."""
        store = ApprovalStore(open_state(self.home.state_file))
        try:
            question = store.open_questions()[-1]
            return store.decide(question.id, by=by, approve=approve)
        finally:
            store.close()


@asynccontextmanager
async def local_gateway(
    rules: str = "",
    *,
    settings: Settings | None = None,
    canary: Canary | None = None,
    sources: Sequence[Source] = (),
    executors: Mapping[str, Executor] | None = None,
    directory: Path | None = None,
    cells: bool = True,
) -> AsyncIterator[LocalGateway]:
    """Open a gateway with *rules* (Cedar text) as its whole policy beside the guardrails.

    Args:
        canary: the outside world.
        directory: its home, kept; by default a temporary one that is removed at the end.
        cells: False starts faster, and a call that needs a cell is refused.
    """
    with tempfile.TemporaryDirectory(prefix="omni-t-") as temporary:
        home = home_in(directory or Path(temporary))
        if rules:
            write_private(home.policies / "test.cedar", rules)
        world = [canary] if canary is not None else []
        async with open_gateway(
            settings or Settings(),
            home,
            sources=[*world, *sources],
            executors={**(canary.executors if canary else {}), **(executors or {})},
            completers=canary.completers if canary else {},
            cells=cells,
        ) as gateway:
            yield LocalGateway(gateway, home)


def home_in(directory: Path) -> Home:
    """Return the home in *directory*, with its private directories made."""
    root = directory / "home"
    home = Home(config=root, data=root / "data", runtime=directory / "run")
    for place in (home.config, home.policies, home.manifests):
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    return home


def write_private(file: Path, text: str) -> Path:
    """Write a file that only its owner can touch; the gateway refuses others."""
    file.touch(mode=0o600)
    file.write_text(text, encoding="utf-8")
    return file


def word_of(event: RunEvent) -> str:
    """One word for what an event says, such as `policy_decided:deny` or `tool_error:timeout`."""
    payload = event.payload or {}
    name = event.code or event.kind
    detail = payload.get("verdict") or payload.get("decision") or (payload.get("code") if not event.code else None)
    return f"{name}:{detail}" if detail else name


def error_of(reply: JsonObject) -> JsonObject:
    """Return what a result or an error reply says of its failure: `code`, `call`, `retry`; `{}` for a success."""
    if "error" in reply:
        data = reply["error"].get("data") or {}
        found: JsonObject = data.get(META_ERROR, {}) if isinstance(data, dict) else {}
        return found
    result = reply.get("result", reply)
    facts: JsonObject = result.get("_meta", {}).get(META_ERROR, {})
    return facts
