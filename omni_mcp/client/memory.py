"""The memory, as the client sees it. Arguments are those of the memory's own tools."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from omni_mcp.client.connection import Connection
from omni_mcp.contracts.json import JsonObject

ROOT = "/api/memory"


class Memory:
    """What is remembered for whoever holds the token."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def remember(self, text: str, **facts: Any) -> JsonObject:
        """Keep *text*; *facts* are such as `kind`, `scope`, `key`, `subject`, `tags`, `expires_in_s`."""
        return self._connection.send("POST", ROOT, body={"text": text, **facts})

    def share(self, text: str, **facts: Any) -> JsonObject:
        """Keep *text* for everybody in the project."""
        return self._connection.send("POST", f"{ROOT}/share", body={"text": text, **facts})

    def recall(self, query: str, **facts: Any) -> JsonObject:
        """Find what fits *query* best; *facts* are such as `k`, `budget_chars`, `explain`."""
        return self._connection.send("POST", f"{ROOT}/recall", body={"query": query, **facts})

    def promote(self, **source: Any) -> JsonObject:
        """Keep an event (`run`, `seq`) or an artifact (`artifact`) of yours."""
        return self._connection.send("POST", f"{ROOT}/promote", body=source)

    def list(self, *, limit: int = 50, cursor: str | None = None) -> JsonObject:
        """Return the newest items first."""
        return self._connection.send("GET", ROOT, query={"limit": limit, "cursor": cursor})

    def duplicates(self) -> JsonObject:
        """Return pairs that say nearly the same."""
        return self._connection.send("GET", f"{ROOT}/duplicates")

    def get(self, item: str) -> JsonObject:
        """Return one item."""
        return self._connection.send("GET", f"{ROOT}/{quote(item, safe='')}")

    def revise(self, item: str, **changes: Any) -> JsonObject:
        """Change an item."""
        return self._connection.send("PATCH", f"{ROOT}/{quote(item, safe='')}", body=changes)

    def forget(self, item: str) -> JsonObject:
        """Remove an item for good."""
        return self._connection.send("DELETE", f"{ROOT}/{quote(item, safe='')}")
