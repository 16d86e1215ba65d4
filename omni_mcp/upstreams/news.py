"""News: what servers report, kept until the gateway looks; a call waits for what may concern it."""

from __future__ import annotations

import asyncio
from collections import Counter

from omni_mcp.contracts.errors import UpstreamUnavailable
from omni_mcp.engines.catalog.names import marked_uri
from omni_mcp.engines.upstream.listing import Listing

UPDATES_LIMIT = 10_000  # URIs that wait to be passed on
SETTLE_S = 5.0  # how long a call waits for the lists of a server that said that they changed


class News:
    """What servers report, kept until the gateway looks: which offer something else, which resources changed."""

    def __init__(self, *, settle_s: float = SETTLE_S) -> None:
        self._settle_s = settle_s
        self._listings: dict[str, Listing] = {}
        self._updates: dict[str, None] = {}
        self._some = asyncio.Event()
        self._noticed: Counter[str] = Counter()  # since the start, by server
        self._settled: Counter[str] = Counter()
        self._answered: Counter[str] = Counter()  # of servers whose listing is not in the catalog yet
        self._taken: set[str] = set()
        self._waiting: set[asyncio.Future[None]] = set()

    def listed(self, server: str, listing: Listing) -> None:
        """A server offers something else now."""
        self._listings[server] = listing
        self._some.set()

    def updated(self, server: str, uri: str) -> None:
        """A resource of a server changed; clients may know it by either URI."""
        if len(self._updates) < UPDATES_LIMIT:
            self._updates.update(dict.fromkeys((marked_uri(server, uri), uri)))
        self._some.set()

    async def next(self) -> tuple[dict[str, Listing], list[str]]:
        """Wait for news and return all there is: listings by server, and URIs. Call `caught_up` once they count."""
        await self._some.wait()
        self._some.clear()
        listings, self._listings = self._listings, {}
        updates, self._updates = list(self._updates), {}
        self._taken = set(listings)
        return listings, updates

    def noticed(self, server: str) -> None:
        """A server says that a list of its is another one now."""
        self._noticed[server] += 1

    def answered(self, server: str, notices: int) -> None:
        """A server was listed, or could not be: that many of its notices need no other look."""
        if server in self._listings or server in self._taken:
            self._answered[server] += notices
        elif notices:
            self._settle(server, notices)

    def caught_up(self) -> None:
        """What `next` returned last is in the catalog."""
        taken, self._taken = self._taken, set()
        for server in taken - self._listings.keys():
            self._settle(server, self._answered.pop(server, 0))

    def _settle(self, server: str, notices: int) -> None:
        self._settled[server] += notices
        waiting, self._waiting = self._waiting, set()
        for one in waiting:
            if not one.done():
                one.set_result(None)

    def is_settled(self, server: str) -> bool:
        """Whether what a server offers is known: it did not say that it changed, or was listed since."""
        return self._settled.get(server, 0) >= self._noticed.get(server, 0)

    async def settled(self, server: str) -> None:
        """Wait until what a server offers is known, as far as it has said by now that it changed.

        Raises:
            UpstreamUnavailable: it is not, for too long.
        """
        wanted = self._noticed[server]
        try:
            async with asyncio.timeout(self._settle_s):
                while self._settled[server] < wanted:
                    look = asyncio.get_running_loop().create_future()
                    self._waiting.add(look)
                    try:
                        await look
                    finally:
                        self._waiting.discard(look)
        except TimeoutError:
            raise UpstreamUnavailable(
                "the server behind it is changing what it offers; try again later",
                detail=f"{server} said that its lists changed, and was not listed within {self._settle_s:g} s",
                data={"retry_after_s": self._settle_s},
            ) from None
