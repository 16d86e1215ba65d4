"""What the search index lacks: events that were committed since, with their words once somebody had the time."""

from __future__ import annotations

from collections.abc import Sequence

from omni_mcp.engines.runlog.search_index import text_of


class Unindexed:
    """Kept by a ledger between two portions of the index. `bytes` counts the payloads."""

    def __init__(self) -> None:
        self.bytes = 0
        self._payloads: list[tuple[int, bytes]] = []
        self._texts: list[tuple[int, str]] = []

    def __len__(self) -> int:
        return len(self._payloads) + len(self._texts)

    def add(self, payloads: Sequence[tuple[int, bytes]], size: int) -> None:
        """Take (gid, payload) of a group that was committed."""
        self._payloads += payloads
        self.bytes += size

    def read(self) -> None:
        """Find the words of what was added: it is most of what a portion costs, and can be done before it is due."""
        self._texts += [(gid, text_of(payload)) for gid, payload in self._payloads]
        self._payloads.clear()

    def texts(self) -> list[tuple[int, str]]:
        """Return (gid, text) of everything, in order."""
        self.read()
        return self._texts
