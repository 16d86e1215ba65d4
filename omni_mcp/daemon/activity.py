"""HttpActivity: what is open over HTTP, so that a gateway that a client started does not end under one that uses it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class HttpActivity:
    """Counts what is open in an ASGI application."""

    app: Any
    open: int = 0
    last_s: float = field(default_factory=time.monotonic)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass an ASGI request on and count it while it is open."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        self.open += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.open -= 1
            self.last_s = time.monotonic()

    @property
    def idle_s(self) -> float:
        """Seconds since the last request ended; 0 while one is open."""
        return 0.0 if self.open else time.monotonic() - self.last_s
