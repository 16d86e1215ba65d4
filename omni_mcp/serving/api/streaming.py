"""Streams of events over HTTP: what is there, then what comes, until the client leaves or may not read any more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from omni_mcp.contracts import api
from omni_mcp.contracts.errors import BadRequest, OmniError
from omni_mcp.engines.runlog.store import SqliteRunLog
from omni_mcp.serving.api.access import Access
from omni_mcp.serving.api.asking import Asking, Handler
from omni_mcp.serving.api.routes import READ_RUN
from omni_mcp.serving.api.runs import own_run, seq_in
from omni_mcp.serving.event_answer import EVENT_HEADERS, WRITE_TIMEOUT_S
from omni_mcp.serving.run_sources import Page, Places, PrincipalSource, RunSource, Source
from omni_mcp.serving.run_streams import RunStreams, Waiting

HEARTBEAT_S = 10.0
PORTION_BYTES = 64 * 1024  # about what a page of the log is
RETRY_MS = 1000
LAST_EVENT_ID = "last-event-id"


class StreamRoutes:
    """Answers the routes of streams.

    Args:
        drains: set when the gateway stops.
    """

    def __init__(
        self, log: SqliteRunLog, streams: RunStreams, places: Places, access: Access, drains: asyncio.Event, *,
        heartbeat_s: float = HEARTBEAT_S, write_timeout_s: float = WRITE_TIMEOUT_S,
    ) -> None:  # fmt: skip
        self._log = log
        self._streams = streams
        self._places = places
        self._access = access
        self._drains = drains
        self._heartbeat_s = heartbeat_s
        self._write_timeout_s = write_timeout_s

    def handlers(self) -> Mapping[str, Handler]:
        """What serves each operation."""
        return {"stream_run": self._stream_run, "stream_all": self._stream_all}

    async def _stream_run(self, asking: Asking) -> None:
        last = asking.exchange.headers.get(LAST_EVENT_ID)
        facts = await own_run(self._log, asking.place["run"], asking.principal)
        try:
            after = seq_in(last)
        except BadRequest:
            after = -1
        if not 0 <= after <= facts["last_seq"]:
            raise BadRequest("Last-Event-ID is no event of this run", data={"path": "Last-Event-ID"})
        await self._serve(asking, RunSource(self._log, facts, after=after))

    async def _stream_all(self, asking: Asking) -> None:
        query: api.StreamQuery = asking.query
        last = asking.exchange.headers.get(LAST_EVENT_ID)
        if last is not None:
            after = self._places.open(last, asking.principal.key)
        else:
            after = await self._log.last_gid() if query.begin == "now" else 0
        await self._serve(asking, PrincipalSource(self._log, self._places, asking.principal, after=after))

    async def _serve(self, asking: Asking, source: Source) -> None:
        exchange = asking.exchange
        with self._streams.waiting(asking.principal.key, source.run) as waiting:
            await exchange.start(200, EVENT_HEADERS)
            await exchange.chunk(b"retry: %d\r\nid: %s\r\n\r\n" % (RETRY_MS, source.place.encode()))
            work = asyncio.ensure_future(self._pump(asking, source, waiting))
            leaving: asyncio.Future[Any] = asyncio.ensure_future(exchange.gone())
            try:
                await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
                if work.done() and not leaving.done() and (reason := _result(work)) is not None:
                    await self._within(exchange.chunk(b'event: end\r\ndata: {"reason":"%s"}\r\n\r\n' % reason.encode()))
                    await exchange.chunk(b"", more=False)
            finally:
                work.cancel()
                leaving.cancel()
                await asyncio.gather(work, leaving, return_exceptions=True)

    async def _pump(self, asking: Asking, source: Source, waiting: Waiting) -> str:
        """Send events until there is a reason to end, and return it."""
        exchange, right = asking.exchange, _Right(asking, self._access)
        may_end: asyncio.Future[Any] = asyncio.ensure_future(self._drains.wait())
        try:
            while True:
                if self._drains.is_set() or self._streams.ended:
                    return "gateway_stopped"
                waiting.woken.clear()
                if lost := right.lost():
                    return lost
                page = await source.next()
                if lost := right.lost():  # while it was read
                    return lost
                await self._send(exchange.chunk, page)
                if page.closed:
                    return "run_closed"
                if not page.more and not await self._woken(waiting, may_end):
                    await self._within(exchange.chunk(b": still here\r\nid: %s\r\n\r\n" % source.place.encode()))
        except OmniError as error:
            return error.code
        finally:
            may_end.cancel()

    async def _woken(self, waiting: Waiting, may_end: asyncio.Future[Any]) -> bool:
        """Wait for a reason to look again; False when it was only time to say that we are here."""
        woken: asyncio.Future[Any] = asyncio.ensure_future(waiting.woken.wait())
        try:
            done, _ = await asyncio.wait(
                {woken, may_end}, timeout=self._heartbeat_s, return_when=asyncio.FIRST_COMPLETED
            )
            return bool(done)
        finally:
            woken.cancel()

    async def _send(self, chunk: Callable[[bytes], Awaitable[None]], page: Page) -> None:
        """Send a page at once: what would wait for its turn here could be erased meanwhile, or be another's to see."""
        portion = b"".join(encoded(event_id, line) for event_id, line in page.events)
        if portion:
            await self._within(chunk(portion))

    async def _within(self, sending: Awaitable[None]) -> None:
        """A client that takes nothing for this long has gone."""
        async with asyncio.timeout(self._write_timeout_s):
            await sending


class _Right:
    """Whether who opened a stream may still read it; the policy is asked again when it is another one."""

    def __init__(self, asking: Asking, access: Access) -> None:
        self._asking = asking
        self._access = access
        self._version = access.policy_version

    def lost(self) -> str:
        """Return why not; nothing while it may be read."""
        if not self._asking.exchange.still_valid():
            return "unauthenticated"
        if self._version != self._access.policy_version:
            self._version = self._access.policy_version
            if not self._access.allows(self._asking.principal, READ_RUN):
                return "access_refused"
        return ""


def encoded(event_id: str, line: bytes) -> bytes:
    """Return one event as it goes to its own caller."""
    return b"id: %s\r\ndata: %s\r\n\r\n" % (event_id.encode(), line)


def _result(work: asyncio.Future[str]) -> str | None:
    """Return why the stream ended; None where its client took nothing any more."""
    error = work.exception() if not work.cancelled() else None
    if isinstance(error, TimeoutError):
        return None
    return None if work.cancelled() else work.result()
