"""ASGI in few words: read a body with a cap, send an answer, look at headers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import orjson

from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.errors import OmniError, RateLimited, TooLarge
from omni_mcp.contracts.json import JsonValue

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
HeaderList: TypeAlias = Sequence[tuple[bytes, bytes]]

JSON_TYPE = (b"content-type", b"application/json")
ON_GONE = "omni.on_gone"  # an ASGI extension of our own server: `tell` says who is told when the client has gone
AT_ONCE = "omni.at_once"  # another: `body` takes a whole body, `answer` writes a whole answer; ASGI does both in parts
HEADERS = "omni.headers"  # in a scope of our own server: what `headers_of` returns for it, where that is known
# Headers of which a second one could make two readers disagree.
SINGLE = frozenset({
    "host", "origin", "authorization", "x-api-key", "content-type", "content-length", "mcp-session-id", "last-event-id",
    "mcp-protocol-version", "mcp-method", "mcp-name",
})  # fmt: skip


class ClientGone(Exception):
    """The client closed the connection before its request was complete."""


class DoubleHeader(Exception):
    """A header that may come once came twice."""


def headers_of(scope: Scope) -> dict[str, str]:
    """Return the headers with lower-case names and values without surrounding whitespace (RFC 9110, 5.5).

    Raises:
        DoubleHeader: one that decides something was sent twice.
    """
    known: dict[str, str] | None = scope.get(HEADERS)
    if known is not None:
        return known
    pairs = scope["headers"]
    found = {name.decode("latin-1").lower(): value.decode("latin-1").strip(" \t") for name, value in pairs}
    if len(found) < len(pairs):
        names = Counter(name.decode("latin-1").lower() for name, _ in pairs)
        for name, count in names.items():
            if count > 1 and (name in SINGLE or name.startswith("mcp-param-")):
                raise DoubleHeader(name)
    return found


@dataclass(slots=True)
class Exchange:
    """One HTTP request and the way to answer it."""

    scope: Scope
    receive: Receive
    send: Send
    headers: dict[str, str]
    request_id: str
    principal: Principal | None = None
    still_valid: Callable[[], bool] = lambda: True  # whether the token still stands for the same principal
    started: bool = False

    @property
    def method(self) -> str:
        """The HTTP method."""
        return str(self.scope["method"])

    @property
    def path(self) -> str:
        """The path, from the request line and nothing else."""
        return str(self.scope["path"])

    def expected_bytes(self, limit_bytes: int) -> int:
        """How large the body says it is; *limit_bytes* if it does not say, or says more."""
        declared = self.headers.get("content-length", "")
        return min(int(declared[:20]), limit_bytes) if declared.isdigit() else limit_bytes

    async def body(self, limit_bytes: int) -> bytes:
        """Read the whole body.

        Raises:
            TooLarge: it is over *limit_bytes*, by its length header or as it came.
            ClientGone: it never ended.
        """
        extensions = self.scope.get("extensions")
        if extensions and AT_ONCE in extensions:
            whole: bytes | None = extensions[AT_ONCE]["body"](self.scope)
            if whole is not None:
                if len(whole) > limit_bytes:
                    raise TooLarge(f"the body is over {limit_bytes} bytes")
                return whole
        declared = self.headers.get("content-length", "0")
        if declared.isdigit() and int(declared[:20]) > limit_bytes:
            raise await self._too_large(limit_bytes)
        message = await self.receive()
        if message["type"] == "http.request" and not message.get("more_body"):
            data: bytes = message.get("body", b"")
            if len(data) > limit_bytes:
                raise TooLarge(f"the body is over {limit_bytes} bytes")
            return data
        parts, size = [], 0
        while True:
            if message["type"] == "http.disconnect":
                raise ClientGone
            part = message.get("body", b"")
            size += len(part)
            if size > limit_bytes:
                raise await self._too_large(limit_bytes, done=not message.get("more_body"))
            parts.append(part)
            if not message.get("more_body"):
                return b"".join(parts)
            message = await self.receive()

    async def _too_large(self, limit_bytes: int, *, done: bool = False) -> TooLarge:
        """Throw away as much again, so that a client that is a little over can still read why it was refused."""
        dropped = 0
        while not done and dropped < limit_bytes:
            message = await self.receive()
            dropped += len(message.get("body", b""))
            done = message["type"] == "http.disconnect" or not message.get("more_body")
        return TooLarge(f"the body is over {limit_bytes} bytes")

    async def gone(self) -> None:
        """Return when the client has closed the connection."""
        while (await self.receive())["type"] != "http.disconnect":
            pass

    def on_gone(self, told: Callable[[], None]) -> Callable[[], None]:
        """Call *told* when the client has closed the connection; returns how to stop hearing of that."""
        extensions = self.scope.get("extensions")
        if extensions and ON_GONE in extensions:
            stop: Callable[[], None] = extensions[ON_GONE]["tell"](told)
            return stop
        waiting = asyncio.ensure_future(self.gone())
        waiting.add_done_callback(lambda done: None if done.cancelled() else told())

        def stop_waiting() -> None:
            waiting.cancel()

        return stop_waiting

    async def start(self, status: int, headers: HeaderList) -> None:
        """Send status and headers; every answer carries its X-Request-ID."""
        self.started = True
        await self.send({
            "type": "http.response.start", "status": status,
            "headers": [*headers, (b"x-request-id", self.request_id.encode())],
        })  # fmt: skip

    async def chunk(self, data: bytes, *, more: bool = True) -> None:
        """Send a part of the body."""
        await self.send({"type": "http.response.body", "body": data, "more_body": more})

    async def answer(self, status: int, body: bytes = b"", headers: HeaderList = ()) -> None:
        """Send a whole answer."""
        extensions = self.scope.get("extensions")
        if extensions and AT_ONCE in extensions and not self.started:
            whole = [*headers, (b"x-request-id", self.request_id.encode())]
            if extensions[AT_ONCE]["answer"](self.scope, status, whole, body):
                self.started = True
                return
        await self.start(status, [*headers, (b"content-length", str(len(body)).encode())])
        await self.chunk(body, more=False)

    async def answer_until_taken(self, status: int, body: bytes, headers: HeaderList = ()) -> None:
        """Send a whole answer, and return when the client has taken most of it."""
        await self.start(status, [*headers, (b"content-length", str(len(body)).encode())])
        await self.chunk(body)
        await self.chunk(b"", more=False)  # a chunk is sent when the one before it has left

    def answer_json(self, status: int, body: bytes, headers: HeaderList = ()) -> Awaitable[None]:
        """Send a whole answer that is JSON."""
        return self.answer(status, body, [JSON_TYPE, *headers])

    def refuse(self, status: int, detail: str, headers: HeaderList = ()) -> Awaitable[None]:
        """Send an error in the form that everything off the protocol's own routes has."""
        return self.answer_json(status, json_bytes({"detail": detail}), headers)


async def refuse_room(exchange: Exchange, error: OmniError) -> None:
    """Answer that there is no room for a body: for this principal (429), or for anybody (503)."""
    await exchange.refuse(429 if isinstance(error, RateLimited) else 503, error.message, [(b"retry-after", b"1")])


def json_bytes(value: JsonValue) -> bytes:
    """Encode *value*."""
    return orjson.dumps(value)


def accepts(headers: dict[str, str]) -> tuple[bool, bool]:
    """Return (takes JSON, takes an event stream). No Accept header takes both (RFC 9110, 12.5.1)."""
    value = headers.get("accept")
    return (True, True) if value is None else _accepted(value)


@lru_cache  # a client sends the same one with each request
def _accepted(value: str) -> tuple[bool, bool]:
    kinds = {part.partition(";")[0].strip().lower() for part in value.split(",")}
    anything = "*/*" in kinds
    return (
        anything or "application/json" in kinds or "application/*" in kinds,
        anything or "text/event-stream" in kinds or "text/*" in kinds,
    )
