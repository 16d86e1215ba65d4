"""What a server is asked to report: list changes and resource updates, in either era, as long as somebody cares."""

from __future__ import annotations

import asyncio
from collections import Counter

from omni_mcp.contracts.errors import Overloaded
from omni_mcp.contracts.json import JsonObject
from omni_mcp.engines.upstream.exchange import Exchange, Progress
from omni_mcp.engines.upstream.faults import Garbled, RemoteError
from omni_mcp.engines.upstream.talk import LIST_CHANGES, Talk
from omni_mcp.engines.upstream.wire.seam import WireFault

WATCHED_LIMIT = 1024
SUBSCRIBE_S = 10.0


class Watched:
    """Which resources of one server are watched, and by how many; survives reconnections."""

    def __init__(self) -> None:
        self._count: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._count)

    def __contains__(self, uri: str) -> bool:
        return uri in self._count

    @property
    def uris(self) -> list[str]:
        """In a fixed order."""
        return sorted(self._count)

    def add(self, uri: str) -> bool:
        """Count one more who cares; True for the first.

        Raises:
            Overloaded: too many resources of this server are watched.
        """
        if uri not in self._count and len(self._count) >= WATCHED_LIMIT:
            raise Overloaded(f"{WATCHED_LIMIT} resources of one server are watched already")
        self._count[uri] += 1
        return self._count[uri] == 1

    def remove(self, uri: str) -> bool:
        """Count one less; True for the last."""
        if uri not in self._count:
            return False
        self._count[uri] -= 1
        if self._count[uri] > 0:
            return False
        del self._count[uri]
        return True


class Reports:
    """Asks one talk for the reports that are wanted. Its methods are called by the owner of the connection only."""

    def __init__(self, talk: Talk, watched: Watched) -> None:
        self._talk = talk
        self._watched = watched
        self._listen: Exchange | None = None
        self._drain: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Ask for everything that is wanted now; what the server refuses is not reported, and nothing fails."""
        if self._talk.peer.era == "modern":
            await self._listen_anew()
            return
        for uri in self._watched.uris:
            await self._quietly("resources/subscribe", uri)

    async def changed(self, uri: str) -> None:
        """A resource is watched from now on, or no longer."""
        if self._talk.peer.era == "modern":
            await self._listen_anew()
        else:
            verb = "subscribe" if uri in self._watched else "unsubscribe"
            await self._quietly(f"resources/{verb}", uri)

    async def end(self) -> None:
        """Let go."""
        if self._drain is not None:
            self._drain.cancel()
            await asyncio.gather(self._drain, return_exceptions=True)

    async def _quietly(self, method: str, uri: str) -> None:
        if not self._talk.peer.has("resources", "subscribe"):
            return
        try:
            await self._talk.request(method, {"uri": uri}, timeout_s=SUBSCRIBE_S)
        except (RemoteError, Garbled, WireFault, TimeoutError):
            self._talk.oddities["not_subscribed"] += 1

    async def _listen_anew(self) -> None:
        """A modern subscription cannot be changed: the next one stands before the last one ends."""
        wanted = self._wanted()
        before, self._listen = self._listen, None
        old_drain, self._drain = self._drain, None
        if wanted:
            try:
                async with asyncio.timeout(SUBSCRIBE_S):
                    listen = await self._talk.start("subscriptions/listen", {"notifications": wanted})
                    news = await listen.next()
                    while not isinstance(news, Progress):
                        news = await listen.next()
                self._listen, self._drain = listen, asyncio.create_task(_drained(listen))
            except (RemoteError, Garbled, WireFault, TimeoutError):
                self._talk.oddities["not_listening"] += 1
        if before is not None:
            before.cancel("another subscription took its place")
        if old_drain is not None:
            old_drain.cancel()
            await asyncio.gather(old_drain, return_exceptions=True)

    def _wanted(self) -> JsonObject:
        peer = self._talk.peer
        wanted: JsonObject = {
            f"{kind}ListChanged": True for kind in LIST_CHANGES.values() if peer.has(kind, "listChanged")
        }
        if self._watched and peer.has("resources", "subscribe"):
            wanted["resourceSubscriptions"] = self._watched.uris
        return wanted


async def _drained(listen: Exchange) -> None:
    """Take what a subscription says of itself; its reports reach the listener of the talk."""
    try:
        await listen.answer()
    except (RemoteError, Garbled, WireFault):
        return
