"""A memory in a temporary directory, and short ways to make items."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from omni_mcp.contracts.ids import new_id
from omni_mcp.contracts.memory import Hits, MemoryItem, Readers, Recall
from omni_mcp.contracts.ports import Embedder, MemoryStore
from omni_mcp.engines.memory.embedder import StaticEmbedder
from omni_mcp.engines.memory.store import SqliteMemory, open_memory

PROJECT = "garden"
ANN = Readers(places=(("agent", "Agent::ann"), ("project", PROJECT)), project=PROJECT)
BOB = Readers(places=(("agent", "Agent::bob"), ("project", PROJECT)), project=PROJECT)
HOUR_NS = 3600 * 1_000_000_000


def item(text: str, **more: Any) -> MemoryItem:
    """Make an item of Ann's own, or what *more* says."""
    now = time.time_ns()
    facts: dict[str, Any] = {
        "id": new_id(), "scope": "agent", "owner": "Agent::ann", "project": PROJECT, "at_ns": now, "created_at_ns": now
    }  # fmt: skip
    return MemoryItem(text=text, **(facts | more))


async def recalled(store: MemoryStore, query: str, readers: Readers = ANN, **more: Any) -> Hits:
    return await store.recall(Recall(query=query, readers=readers, **more))


async def texts(store: MemoryStore, query: str, readers: Readers = ANN, **more: Any) -> list[str]:
    """Return the texts of what is found."""
    return [hit.item.text for hit in await recalled(store, query, readers, **more)]


@dataclass
class Clock:
    """A time that only the test moves."""

    now_ns: int = field(default_factory=time.time_ns)

    def __call__(self) -> int:
        return self.now_ns


@dataclass
class Place:
    """Where one test keeps its memory; `open` may be used again, also while it is open."""

    directory: Path
    embedder: Callable[[], Embedder]
    clock: Clock = field(default_factory=Clock)

    @property
    def file(self) -> Path:
        return self.directory / "memory.db"

    def open(self, **more: Any) -> AbstractAsyncContextManager[SqliteMemory]:
        facts: dict[str, Any] = {"embedder": self.embedder, "now_ns": self.clock}
        return open_memory(self.file, **(facts | more))

    def files_with(self, text: str) -> list[str]:
        """Return the files that hold *text*, or any of its words, whatever the case."""
        needles = [word.encode() for word in text.lower().split()]
        found: list[str] = []
        for file in self.directory.rglob("*"):
            content = file.read_bytes().lower() if file.is_file() else b""
            found.extend(f"{file.name}: {needle.decode()}" for needle in needles if needle in content)
        return found


@pytest.fixture(scope="session")
def one_embedder() -> StaticEmbedder:
    """The table, read once for all tests."""
    return StaticEmbedder()


@pytest.fixture
def place(tmp_path: Path, one_embedder: StaticEmbedder) -> Place:
    return Place(tmp_path, lambda: one_embedder)
