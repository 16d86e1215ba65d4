"""ListenStream: one modern `subscriptions/listen`, which hears what its request named and nothing else."""

from __future__ import annotations

import asyncio
from typing import Any

from omni_mcp.contracts.json import JsonObject
from omni_mcp.protocol.eras import META_SUBSCRIPTION
from omni_mcp.protocol.rpc import notification
from omni_mcp.serving.changes import ListKind
from omni_mcp.serving.session import Outlet


class ListenStream:
    """One `subscriptions/listen`: a listener that stamps everything with the id of its request."""

    def __init__(
        self, outlet: Outlet, request_id: int | str, *, profile: str, kinds: frozenset[ListKind], uris: list[str]
    ) -> None:
        self.profile = profile
        self._outlet = outlet
        self._stamp: JsonObject = {META_SUBSCRIPTION: request_id}
        self._kinds = kinds
        self.uris = tuple(dict.fromkeys(uris))
        self.ended = asyncio.Event()

    def acknowledge(self) -> None:
        """Say first which of the wanted notifications will be sent."""
        honoured: dict[str, Any] = {f"{kind}ListChanged": True for kind in sorted(self._kinds)}
        if self.uris:
            honoured["resourceSubscriptions"] = list(self.uris)
        self.tell("notifications/subscriptions/acknowledged", {"notifications": honoured})

    def wants(self, kind: ListKind) -> bool:
        """Whether the request named this list."""
        return kind in self._kinds

    def tell(self, method: str, params: JsonObject) -> bool:
        """Send one stamped notification; a client that does not read ends its stream."""
        if self.ended.is_set() or not self._outlet.send(notification(method, {**params, "_meta": self._stamp})):
            self.ended.set()
            return False
        return True
