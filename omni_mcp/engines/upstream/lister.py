"""Lister: fetches the lists of one server whenever they may have changed, and keeps what was known if that fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from omni_mcp.contracts.errors import OmniError
from omni_mcp.engines.upstream.connection import Connection, Timing
from omni_mcp.engines.upstream.faults import Garbled, RemoteError
from omni_mcp.engines.upstream.listing import Listing, SchemaFaults, fetch
from omni_mcp.engines.upstream.wire.seam import WireFault


class Unlisted(Exception):
    """A server could not be listed. `reason` is for the operator."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


async def ask(connection: Connection, schema_faults: SchemaFaults) -> Listing:
    """Connect where there is no connection, and ask for all lists.

    Raises:
        Unlisted: there is no answer, or none that is one.
    """
    release = connection.hold()
    try:
        listing = await fetch(await connection.talk(), schema_faults)
    except OmniError as error:
        raise Unlisted(error.detail) from error
    except RemoteError as error:
        raise Unlisted(str(error)) from error
    except Garbled as fault:
        raise Unlisted(f"no valid list: {fault.reason}") from fault
    except WireFault as fault:
        raise Unlisted(fault.reason) from fault
    except TimeoutError as error:
        raise Unlisted("a list did not come in time") from error
    finally:
        release()
    connection.health.heard()
    return listing


class Lister:
    """When the lists of one server are due. `run` is its task.

    Args:
        connection: to the server; raises UpstreamUnavailable.
        slots: how many servers are listed at once.
        on_listing: told of every listing that came.
        on_tried: told after each try how many notices of the server it answers.
    """

    def __init__(
        self, connection: Callable[[], Connection], *, slots: asyncio.Semaphore, timing: Timing, is_known: bool,
        on_listing: Callable[[Listing], None], on_tried: Callable[[int], None], schema_faults: SchemaFaults,
    ) -> None:  # fmt: skip
        self._connection = connection
        self._slots = slots
        self._timing = timing
        self._on_listing = on_listing
        self._on_tried = on_tried
        self._schema_faults = schema_faults
        self._wanted = asyncio.Event()
        self._fetching = False
        self._failures = 0
        self.tried = asyncio.Event()
        self.noticed = 0  # notices that no try has answered yet
        self.fault = ""
        if not is_known:
            self._wanted.set()

    def want(self) -> None:
        """Have the lists fetched again, soon."""
        self._wanted.set()

    def notice(self) -> None:
        """The server says that a list is another one now."""
        self.noticed += 1
        self._wanted.set()

    def connected(self) -> None:
        """A connection stands anew: what changed meanwhile, or before we started, went unheard, unless it was made for
        the lists."""
        if not self._fetching:
            self._wanted.set()

    async def run(self) -> None:
        """Fetch whenever it is due, until cancelled."""
        while True:
            await self._due()
            await asyncio.sleep(self._timing.list_settle_s if self.tried.is_set() else 0)
            self._wanted.clear()
            noticed = self.noticed
            async with self._slots:
                await self._list()
            self.tried.set()
            self.noticed -= noticed
            self._on_tried(noticed)
            await asyncio.sleep(self._timing.list_pause_s)

    async def _due(self) -> None:
        """Wait until a listing is wanted, or one that failed may be tried again."""
        ceiling, first = self._timing.list_retry_limit_s, self._timing.list_retry_s
        retry_s = min(ceiling, first * 2.0 ** min(self._failures - 1, 30)) if self._failures else None
        try:
            async with asyncio.timeout(retry_s):
                await self._wanted.wait()
        except TimeoutError:
            return

    async def _list(self) -> None:
        self._failures += 1
        self._fetching = True
        try:
            listing = await ask(self._connection(), self._schema_faults)
        except Unlisted as fault:
            self.fault = fault.reason
        except OmniError as error:
            self.fault = error.detail
        else:
            self.fault, self._failures = "", 0
            self._on_listing(listing)
        finally:
            self._fetching = False
