"""Trust: whose certificates are believed when the proxy speaks TLS itself."""

from __future__ import annotations

import asyncio
import ssl


class Trust:
    """The given context, or the machine's certificate authorities, read at the first need.

    Reading them takes 30 to 60 ms of processor time, so it happens in a thread.
    """

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self._context = context

    async def get_context(self) -> ssl.SSLContext:
        """Return a client's context that checks certificate and name."""
        if self._context is None:
            self._context = await asyncio.to_thread(ssl.create_default_context)
        return self._context
