"""A hand-written client of any one version; it knows no transport and none of the gateway's code."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any, Protocol

from tests.matrix.caller import LIMIT_S, Caller, Json, Refused

Taker = Callable[[Json], None]

MODERN = "2026-07-28"
META = "io.modelcontextprotocol/"
ELICITS_SINCE = "2025-06-18"
ROUNDS_LIMIT = 8


class Road(Protocol):
    """How messages get to the gateway and back."""

    async def open(self, version: str, take: Taker) -> None:
        """Connect; what the gateway says is given to *take*."""
        ...

    async def send(self, message: Json) -> None:
        """Send one message; a request is answered whenever it is."""
        ...

    async def stand(self) -> None:
        """After the handshake: begin to hear what belongs to no request."""
        ...

    async def abandon(self, id: int) -> bool:
        """Cancel a request in the transport's own way; False if it has none."""
        ...

    async def close(self) -> None:
        """Leave."""
        ...


class Client(Caller):
    """A client without a library."""

    def __init__(self, version: str, road: Road) -> None:
        super().__init__()
        self.version = version
        self.modern = version == MODERN
        self._road = road
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Json]] = {}
        self._errands: set[asyncio.Task[None]] = set()
        self._listening: int | None = None

    @property
    def capabilities(self) -> Json:
        """Everything that a client of the version can declare."""
        found: Json = {"sampling": {}, "roots": {}}
        return found if self.version < ELICITS_SINCE else {**found, "elicitation": {}}

    async def open(self) -> None:
        """Connect and greet."""
        await self._road.open(self.version, self._take)
        if self.modern:
            return
        info = {"name": "matrix-client", "version": "1"}
        asked = {"protocolVersion": self.version, "capabilities": self.capabilities, "clientInfo": info}
        answer = await self.request("initialize", asked)
        assert answer["protocolVersion"] == self.version, answer
        await self.notify("notifications/initialized", {})
        await self._road.stand()
        await self.request("logging/setLevel", {"level": "debug"})

    async def close(self) -> None:
        """Leave."""
        for errand in self._errands:
            errand.cancel()
        await self._road.close()

    async def notify(self, method: str, params: Json) -> None:
        """Send a notification."""
        await self._road.send({"jsonrpc": "2.0", "method": method, "params": params})

    async def start(self, method: str, params: Json, **meta: Any) -> tuple[int, asyncio.Future[Json]]:
        """Send a request; returns its id and what will be its whole answer."""
        id = next(self._numbers)
        said = dict(meta)
        if self.modern:
            said |= {META + "protocolVersion": self.version, META + "clientCapabilities": self.capabilities}
        sent = {**params, "_meta": said} if said else params
        waiting = self._waiting[id] = asyncio.get_running_loop().create_future()
        await self._road.send({"jsonrpc": "2.0", "id": id, "method": method, "params": sent})
        return id, waiting

    async def request(self, method: str, params: Json, **meta: Any) -> Json:
        """Send a request and return its result.

        Raises:
            Refused: it was answered with an error.
        """
        _, waiting = await self.start(method, params, **meta)
        async with asyncio.timeout(LIMIT_S):
            return result_of(await waiting)

    async def call(self, tool: str, arguments: Json | None = None, **meta: Any) -> Json:
        """Call a tool, through as many rounds as it takes."""
        params: Json = {"name": tool, "arguments": arguments or {}}
        extra: Json = {}
        for _ in range(ROUNDS_LIMIT):
            result = await self.request("tools/call", {**params, **extra}, **meta)
            assert ("resultType" in result) is self.modern, result
            if result.get("resultType") != "input_required":
                return result
            said = {
                key: self.answer_to(one["method"], one.get("params", {}))
                for key, one in result.get("inputRequests", {}).items()
            }
            extra = {"inputResponses": said, "requestState": result["requestState"]}
        raise AssertionError("the tool asks and asks")

    async def begin(self, tool: str, arguments: Json, **meta: Any) -> int:
        """As the port: the id of the request."""
        id, _ = await self.start("tools/call", {"name": tool, "arguments": arguments}, **meta)
        return id

    async def cancel(self, begun: int) -> None:
        """As the port."""
        if not await self._road.abandon(begun):
            await self.notify("notifications/cancelled", {"requestId": begun})

    async def subscribe(self, uri: str) -> None:
        """Ask to hear of updates of a resource, and in the modern era of lists too."""
        if not self.modern:
            await self.request("resources/subscribe", {"uri": uri})
            return
        wanted = {"toolsListChanged": True, "resourceSubscriptions": [uri]}
        self._listening, _ = await self.start("subscriptions/listen", {"notifications": wanted})
        await self.until(lambda: self.heard("notifications/subscriptions/acknowledged"))

    async def unsubscribe(self, uri: str) -> None:
        """Undo `subscribe`."""
        if not self.modern:
            await self.request("resources/unsubscribe", {"uri": uri})
        elif self._listening is not None:
            await self.cancel(self._listening)

    def _take(self, message: Json) -> None:
        if "method" in message and "id" in message:
            self._errand(self._reply(message))
        elif "method" in message:
            self.take_note(message)
        elif (waiting := self._waiting.pop(message.get("id", 0), None)) is not None and not waiting.done():
            waiting.set_result(message)

    async def _reply(self, question: Json) -> None:
        assert not self.modern, f"a modern client is pushed {question['method']}"
        if question["method"] == "ping":
            answer: Json = {}
        else:
            answer = self.answer_to(question["method"], question.get("params", {}))
        await self._road.send({"jsonrpc": "2.0", "id": question["id"], "result": answer})

    def _errand(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)


def result_of(answer: Json) -> Json:
    """Return the result of an answer.

    Raises:
        Refused: it has none.
    """
    if "error" in answer:
        raise Refused(answer["error"]["code"], answer["error"]["message"])
    found: Json = answer["result"]
    return found
