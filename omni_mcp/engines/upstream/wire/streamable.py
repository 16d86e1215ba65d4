"""Streamable HTTP: every message is a POST; answers come as JSON or as events, other messages on a standalone stream.

Sources: MCP 2025-11-25 and 2026-07-28, basic/transports.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from functools import partial

from omni_mcp.contracts.call import Era
from omni_mcp.engines.upstream.faults import may_have_acted
from omni_mcp.engines.upstream.wire.events import Event, EventParser
from omni_mcp.engines.upstream.wire.large import LargeParser
from omni_mcp.engines.upstream.wire.reading import FrameReader, hand_on_small
from omni_mcp.engines.upstream.wire.seam import FRAME_LIMIT_BYTES, Outgoing, Receiver, WireFault
from omni_mcp.engines.upstream.wire.spool import Spool, ends_of, gathered
from omni_mcp.engines.upstream.wire.web import Asked, Reply, Web, place_of
from omni_mcp.protocol.eras import at_least
from omni_mcp.protocol.frames import Response
from omni_mcp.protocol.headers import VERSION_HEADER

RESUMES_LIMIT = 10  # in a row without a new event
RETRY_S = 1.0  # where the server names none
RETRY_LIMIT_S = 30.0
ERROR_BODY_BYTES = 64 * 1024
SMALL_ANSWER_S = 10.0  # for a message that gets no answer but a status
REDIRECTS_LIMIT = 3
HEADS_KEPT = 64

Headers = Callable[[], Mapping[str, str]]


class StreamableWire:
    """A `Wire` over HTTP.

    Args:
        url: of the server's one endpoint.
        headers: what the operator adds to every request, read each time; holds secrets.
    """

    outlives_its_server = True

    def __init__(
        self, url: str, *, headers: Headers, large: LargeParser, web: Web | None = None,
        limit_bytes: int = FRAME_LIMIT_BYTES,
    ) -> None:  # fmt: skip
        self._place = place_of(url)
        self._web = web or Web(self._place)
        self._target = self._place.target
        self._headers = headers
        self._large = large
        self._limit = limit_bytes
        self._receiver: Receiver | None = None
        self._era: Era | None = None
        self._version = ""
        self._session: str | None = None
        self._work: dict[int, asyncio.Task[None]] = {}
        self._asked: dict[int, Asked] = {}
        self._heads: dict[object, bytes] = {}
        self._standing: asyncio.Task[None] | None = None

    @property
    def closing_cancels(self) -> bool:
        """In the modern era a closed answer is a cancelled request."""
        return self._era == "modern"

    async def open(self, receiver: Receiver) -> None:
        """Nothing is connected before the first message."""
        self._receiver = receiver

    def settle(self, era: Era, version: str) -> None:
        """Learn the version that every further request names."""
        self._era, self._version = era, version

    def stand(self) -> None:
        """Open the standalone stream of a handshake server."""
        if self._era == "handshake" and at_least(self._version, "2025-03-26") and self._standing is None:
            self._standing = asyncio.create_task(self._stand())

    async def send(self, message: Outgoing) -> None:
        """Send one message; a request's exchange goes on in a task of its own, where it takes one.

        Raises:
            WireFault: a message that gets no answer was not taken.
        """
        if message.id is not None:
            if not self._ask_at_once(message.id, message):
                self._ask(message.id, message)
            return
        async with asyncio.timeout(SMALL_ANSWER_S):
            reply = await self._post(message)
            try:
                if reply.status >= 300:
                    raise await self._fault(reply)
                await reply.read(ERROR_BODY_BYTES)
            finally:
                reply.close()

    def forget(self, id: int) -> None:
        """Close the answer of a request."""
        task = self._work.get(id)
        if task is not None:
            task.cancel()
        asked = self._asked.pop(id, None)
        if asked is not None:
            asked.forget()

    async def close(self) -> None:
        """End the session, with a word to the server, and every connection."""
        tasks = [*self._work.values(), *([self._standing] if self._standing else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for id in list(self._asked):
            self.forget(id)
        if self._session is not None:
            try:
                async with asyncio.timeout(1.0):
                    reply = await self._web.send("DELETE", self._target, self._common({}))
                    await reply.read(ERROR_BODY_BYTES)
            except (WireFault, TimeoutError):
                pass  # the server forgets the session by itself
        await self._web.close()

    def _forget_task(self, id: int, task: asyncio.Task[None]) -> None:
        self._work.pop(id, None)

    def _ask_at_once(self, id: int, message: Outgoing) -> bool:
        """Send a request over a kept connection; False if there is none. What most answers take needs no task."""
        if message.method == "initialize":
            return False
        try:
            asked = self._web.post_at_once(self._head(message), message.data, partial(self._heard, id, message))
        except WireFault:
            return False  # the task tells of it
        if asked is None:
            return False
        self._asked[id] = asked
        return True

    def _heard(self, id: int, message: Outgoing, is_complete: bool) -> None:
        assert self._receiver is not None
        body = self._asked[id].taken_json() if is_complete else None
        if body is None:
            self._ask(id, message, self._asked[id])
            return
        del self._asked[id]
        watch = _Watch(self._receiver, id)
        try:
            hand_on_small(watch, body, id)
        except Exception as error:  # a fault of ours must not leave the caller waiting
            self._receiver.failed(id, WireFault(f"{type(error).__name__}: {error}", sent=True))
            return
        if not watch.answered:
            self._receiver.failed(id, WireFault("no answer came", sent=True))

    def _ask(self, id: int, message: Outgoing, asked: Asked | None = None) -> None:
        task = asyncio.create_task(self._exchange(id, message, asked))
        self._work[id] = task
        task.add_done_callback(partial(self._forget_task, id))

    async def _exchange(self, id: int, message: Outgoing, asked: Asked | None) -> None:
        assert self._receiver is not None
        self._asked.pop(id, None)  # not before: a task that is cancelled before its first step closes nothing
        try:
            reply = await self._post(message, asked)
            try:
                await self._answer(id, message.method, reply)
            finally:
                reply.close()
        except WireFault as fault:
            self._receiver.failed(id, fault)
        except Exception as error:  # a fault of ours must not leave the caller waiting
            self._receiver.failed(id, WireFault(f"{type(error).__name__}: {error}", sent=True))

    async def _answer(self, id: int, method: str, reply: Reply) -> None:
        assert self._receiver is not None
        if method == "initialize" and reply.status == 200:
            self._session = _session_of(reply)
        if reply.media_type == "text/event-stream" and reply.status == 200:
            await self._events(id, reply)
            return
        if reply.status != 200 and reply.media_type != "application/json":
            raise await self._fault(reply)
        limit = self._limit if reply.status == 200 else ERROR_BODY_BYTES
        watch = _Watch(self._receiver, id, takes_nameless=not self._tells_session_lost(reply))
        body = await gathered(reply.chunks(), limit_bytes=limit, room=self._large.room)
        if body is None:
            self._receiver.junk("too_large", id)
            return
        if reply.status == 200 or (isinstance(body, bytes) and body.lstrip().startswith(b"{")):
            await FrameReader(watch, large=self._large, limit_bytes=limit).take(body, id)
        if not watch.answered:
            if reply.status != 200:
                raise self._status_fault(reply, ends_of(body)[0])
            raise WireFault("no answer came", sent=True)

    async def _events(self, id: int, reply: Reply) -> None:
        """Read the events of one answer; where the stream ends early, go on with another (handshake era)."""
        assert self._receiver is not None
        watch = _Watch(self._receiver, id)
        parser = EventParser(self._limit, self._large.room)
        fault = await self._read(reply, parser, watch, id)
        resumes, seen = 0, parser.last_id
        while not watch.answered:
            if parser.last_id is None or self._era == "modern":
                raise fault or WireFault("the stream ended without the answer", sent=True)
            resumes = 0 if parser.last_id != seen else resumes + 1
            seen = parser.last_id
            if resumes > RESUMES_LIMIT:
                raise fault or WireFault("the stream ended again and again without the answer", sent=True)
            await asyncio.sleep(_retry_s(parser))
            fault = await self._resume(parser, watch, id)

    async def _resume(self, parser: EventParser, watch: _Watch, id: int) -> WireFault | None:
        try:
            extra = {"accept": "text/event-stream", "last-event-id": parser.last_id or ""}
            reply = await self._web.send("GET", self._target, self._common(extra))
        except WireFault as unreachable:
            return unreachable
        try:
            if reply.status != 200 or reply.media_type != "text/event-stream":
                raise WireFault(f"the answer could not be resumed: status {reply.status}", sent=True)
            again = EventParser(self._limit, self._large.room)
            again.last_id, again.retry_s = parser.last_id, parser.retry_s
            fault = await self._read(reply, again, watch, id)
            parser.last_id, parser.retry_s = again.last_id, again.retry_s
            return fault
        finally:
            reply.close()

    async def _read(
        self, reply: Reply, parser: EventParser, receiver: Receiver, within: int | None
    ) -> WireFault | None:
        """Hand on the events of one stream until it ends; returns why, if it did not end as it should."""
        reader = FrameReader(receiver, large=self._large, limit_bytes=self._limit)
        try:
            async for chunk in reply.chunks():
                await _hand_on(reader, parser.feed(chunk), within)
                if isinstance(receiver, _Watch) and receiver.answered:
                    return None  # some servers leave the stream open
        except WireFault as fault:
            return fault
        return None

    async def _stand(self) -> None:
        """Hold one GET stream for what belongs to no request; a server without one says so."""
        assert self._receiver is not None
        parser = EventParser(self._limit, self._large.room)
        failures = 0
        while failures <= RESUMES_LIMIT:
            extra = {"accept": "text/event-stream"}
            if parser.last_id is not None:
                extra["last-event-id"] = parser.last_id
            try:
                reply = await self._web.send("GET", self._target, self._common(extra))
                try:
                    if reply.status == 404 and self._session is not None:
                        self._receiver.lost(WireFault("the server forgot the session", sent=True, session_lost=True))
                        return
                    if reply.status != 200 or reply.media_type != "text/event-stream":
                        return
                    failures = 0
                    again = EventParser(self._limit, self._large.room)
                    again.last_id, again.retry_s = parser.last_id, parser.retry_s
                    parser = again
                    await self._read(reply, parser, self._receiver, None)
                finally:
                    reply.close()
            except WireFault:
                failures += 1
            await asyncio.sleep(min(_retry_s(parser) * 2**failures, RETRY_LIMIT_S))

    async def _post(self, message: Outgoing, asked: Asked | None = None) -> Reply:
        for _ in range(REDIRECTS_LIMIT + 1):
            if asked is not None:
                reply, asked = await asked.reply(), None
            else:
                reply = await self._web.send("POST", self._target, self._posted(message), message.data)
            if reply.status not in (307, 308):
                return reply
            reply.close()
            self._target = self._redirected(reply.headers.get("location", ""))
        raise WireFault("too many redirects", sent=False)

    def _redirected(self, location: str) -> str:
        """Follow a redirect inside the origin only: another one must not get our headers."""
        try:
            place = place_of(location if "://" in location else f"{self._origin()}{location}")
        except ValueError as error:
            raise WireFault("a redirect to no URL", sent=False) from error
        if (place.secure, place.host, place.port) != (self._place.secure, self._place.host, self._place.port):
            raise WireFault("a redirect to another origin; set that URL if it is meant", sent=False)
        return place.target

    def _origin(self) -> str:
        return f"{'https' if self._place.secure else 'http'}://{self._place.authority}"

    def _head(self, message: Outgoing) -> bytes:
        """Return the head of a POST, made once for all that are alike."""
        given = self._headers()
        key = (self._target, self._version, self._session, tuple(given.items()), tuple(message.headers.items()))
        head = self._heads.get(key)
        if head is None:
            if len(self._heads) >= HEADS_KEPT:
                self._heads.clear()
            head = self._heads[key] = self._web.head_of("POST", self._target, self._posted(message))
        return head

    def _posted(self, message: Outgoing) -> list[tuple[str, str]]:
        accepted = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
        return self._common({**accepted, **message.headers})

    def _common(self, extra: Mapping[str, str]) -> list[tuple[str, str]]:
        headers = {name.lower(): value for name, value in self._headers().items()}
        headers.update({name.lower(): value for name, value in extra.items()})
        if self._version:
            headers[VERSION_HEADER] = self._version
        if self._session is not None:
            headers["mcp-session-id"] = self._session
        return list(headers.items())

    async def _fault(self, reply: Reply) -> WireFault:
        body = await reply.read(ERROR_BODY_BYTES)
        return self._status_fault(reply, body or b"")

    def _tells_session_lost(self, reply: Reply) -> bool:
        return reply.status == 404 and self._session is not None and self._era == "handshake"

    def _status_fault(self, reply: Reply, body: bytes) -> WireFault:
        """Say what a status means."""
        text = body[:200].decode("utf-8", "replace").strip()
        return WireFault(
            f"HTTP status {reply.status}" + (f": {text}" if text else ""),
            sent=may_have_acted(reply.status),
            status=reply.status,
            session_lost=self._tells_session_lost(reply),
            retry_after_s=_retry_after_s(reply),
        )


class _Watch:
    """A receiver before the receiver: knows when the request of one exchange has been answered.

    Args:
        takes_nameless: whether an error without an id, in the answer to this request, answers it.
    """

    def __init__(self, receiver: Receiver, id: int, *, takes_nameless: bool = True) -> None:
        self._receiver = receiver
        self._id = id
        self._answers = (id, "") if takes_nameless else (id,)
        self.answered = False

    def take(self, frame: object, within: int | None) -> bool:
        if isinstance(frame, Response) and frame.id in self._answers:
            self.answered = True
            if frame.id == "" and frame.error is not None:
                frame = Response(self._id, error=frame.error)
        return self._receiver.take(frame, within)  # type: ignore[arg-type]

    def junk(self, reason: str, id: int | str | None) -> None:
        if id == self._id:
            self.answered = True
        self._receiver.junk(reason, id)

    def failed(self, id: int, fault: WireFault) -> None:
        self._receiver.failed(id, fault)

    def lost(self, fault: WireFault) -> None:
        self._receiver.lost(fault)


async def _hand_on(reader: FrameReader, events: list[Event], within: int | None) -> None:
    """Hand on what one chunk ended; a function of its own, so that no large event is kept until the next one comes."""
    for event in events:
        if event.name != "message":
            continue
        if event.data is None:
            await reader.refuse(event.head, event.tail)
        elif isinstance(event.data, Spool) or event.data.strip():
            await reader.take(event.data, within)


def _session_of(reply: Reply) -> str | None:
    found = reply.headers.get("mcp-session-id")
    if found and found.isascii() and found.isprintable() and " " not in found and len(found) <= 1024:
        return found
    return None


def _retry_s(parser: EventParser) -> float:
    return min(RETRY_S if parser.retry_s is None else max(parser.retry_s, 0.01), RETRY_LIMIT_S)


def _retry_after_s(reply: Reply) -> float | None:
    text = reply.headers.get("retry-after", "")
    if text.isdigit() and len(text) < 8:
        return float(text)
    try:
        return max(
            0.0, parsedate_to_datetime(text).timestamp() - parsedate_to_datetime(reply.headers["date"]).timestamp()
        )
    except (ValueError, TypeError, KeyError):
        return None
