"""HTTP+SSE of 2024-11-05: one GET stream brings everything from the server, POSTs take everything to it."""

from __future__ import annotations

import asyncio
from urllib.parse import urljoin

from omni_mcp.contracts.call import Era
from omni_mcp.engines.upstream.faults import may_have_acted
from omni_mcp.engines.upstream.wire.events import Event, EventParser
from omni_mcp.engines.upstream.wire.large import LargeParser
from omni_mcp.engines.upstream.wire.reading import FrameReader
from omni_mcp.engines.upstream.wire.seam import FRAME_LIMIT_BYTES, Outgoing, Receiver, WireFault
from omni_mcp.engines.upstream.wire.spool import Spool
from omni_mcp.engines.upstream.wire.streamable import SMALL_ANSWER_S, Headers
from omni_mcp.engines.upstream.wire.web import Reply, Web, place_of

ENDPOINT_TIMEOUT_S = 10.0
ERROR_BODY_BYTES = 64 * 1024


class EventStreamWire:
    """A `Wire` over the older transport. When its stream ends, so does everything under way."""

    closing_cancels = False
    outlives_its_server = False

    def __init__(
        self, url: str, *, headers: Headers, large: LargeParser, web: Web | None = None,
        limit_bytes: int = FRAME_LIMIT_BYTES,
    ) -> None:  # fmt: skip
        self._url = url
        self._place = place_of(url)
        self._web = web or Web(self._place)
        self._headers = headers
        self._large = large
        self._limit = limit_bytes
        self._target: asyncio.Future[str] | None = None
        self._pump: asyncio.Task[None] | None = None
        self._posts: set[asyncio.Task[None]] = set()
        self._receiver: Receiver | None = None

    async def open(self, receiver: Receiver) -> None:
        """Open the stream and wait for the place to post to.

        Raises:
            WireFault: there is no such stream, or it names no place of the same origin.
        """
        self._receiver = receiver
        self._target = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(ENDPOINT_TIMEOUT_S):
                reply = await self._web.send("GET", self._place.target, self._common({"accept": "text/event-stream"}))
                if reply.status != 200 or reply.media_type != "text/event-stream":
                    reply.close()
                    raise WireFault(f"no event stream: HTTP status {reply.status}", sent=False, status=reply.status)
                self._pump = asyncio.create_task(self._read(reply, receiver))
                await asyncio.shield(self._target)
        except TimeoutError:
            raise WireFault("the stream named no place to post to in time", sent=False) from None

    def settle(self, era: Era, version: str) -> None:
        """This transport names no version."""

    def stand(self) -> None:
        """There is one stream for everything."""

    async def send(self, message: Outgoing) -> None:
        """Post one message.

        Raises:
            WireFault: it was not taken.
        """
        if self._target is None or not self._target.done() or self._pump is None or self._pump.done():
            raise WireFault("the stream has ended", sent=False)
        try:
            async with asyncio.timeout(SMALL_ANSWER_S):
                headers = self._common({"content-type": "application/json"})
                reply = await self._web.send("POST", self._target.result(), headers, message.data)
                body = await reply.read(ERROR_BODY_BYTES) or b""
                reply.close()
        except TimeoutError:
            raise WireFault("the message was not taken in time", sent=True) from None
        if reply.status >= 300:
            text = body[:200].decode("utf-8", "replace")
            sent = may_have_acted(reply.status)
            raise WireFault(f"HTTP status {reply.status}: {text}", sent=sent, status=reply.status)

    def forget(self, id: int) -> None:
        """The stream holds nothing for one request."""

    async def close(self) -> None:
        """Close the stream."""
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)
        if self._target is not None:
            self._target.cancel()
        await self._web.close()

    async def _hand_on(self, reader: FrameReader, events: list[Event]) -> None:
        """Hand on what one chunk ended; a function of its own, so that no large event is kept until the next one."""
        for event in events:
            if event.name == "endpoint" and isinstance(event.data, bytes):
                self._set_target(event.data)
            elif event.data is None:
                await reader.refuse(event.head, event.tail)
            elif event.name == "message" and (isinstance(event.data, Spool) or event.data.strip()):
                await reader.take(event.data)

    async def _read(self, reply: Reply, receiver: Receiver) -> None:
        parser = EventParser(self._limit, self._large.room)
        reader = FrameReader(receiver, large=self._large, limit_bytes=self._limit)
        fault = WireFault("the stream has ended", sent=True)
        try:
            async for chunk in reply.chunks():
                await self._hand_on(reader, parser.feed(chunk))
        except WireFault as ended:
            fault = ended
        except Exception as error:  # a fault of ours must not leave callers waiting
            fault = WireFault(f"{type(error).__name__}: {error}", sent=True)
        finally:
            reply.close()
        assert self._target is not None
        if not self._target.done():
            self._target.set_exception(fault)
        else:
            receiver.lost(fault)

    def _set_target(self, data: bytes) -> None:
        """Take the place to post to, once; another origin would get our headers."""
        assert self._target is not None
        if self._target.done():
            return
        try:
            place = place_of(urljoin(self._url, data.decode("ascii").strip()))
        except ValueError:
            self._target.set_exception(WireFault("the stream names no URL to post to", sent=False))
            return
        if (place.secure, place.host, place.port) != (self._place.secure, self._place.host, self._place.port):
            self._target.set_exception(WireFault("the stream names another origin to post to", sent=False))
            return
        self._target.set_result(place.target)

    def _common(self, extra: dict[str, str]) -> list[tuple[str, str]]:
        headers = {name.lower(): value for name, value in self._headers().items()}
        return list({**headers, **extra}.items())
