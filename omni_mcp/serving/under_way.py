"""UnderWay: a request that is answered in the task of its transport, and can be awaited and cancelled like one."""

from __future__ import annotations

import asyncio

from omni_mcp.protocol.rpc import Reply


class UnderWay(asyncio.Future[Reply]):
    """Ends with the request's reply. To cancel it cancels what *host* does now; the host goes on afterwards."""

    def __init__(self, host: asyncio.Task[object]) -> None:
        super().__init__(loop=host.get_loop())
        self._host = host
        self.was_cancelled = False

    def cancel(self, msg: object = None) -> bool:
        """Cancel the request, as `asyncio.Task.cancel`."""
        if self.done() or self.was_cancelled:
            return False
        self.was_cancelled = True
        self._host.cancel()
        return True

    def end(self, reply: Reply | None) -> None:
        """The request is over; without a reply it was cancelled."""
        if self.was_cancelled:
            self._host.uncancel()
        if reply is None:
            super().cancel()
        else:
            self.set_result(reply)
