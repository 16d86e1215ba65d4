"""How a memory of 100,000 items behaves: writing, opening again, recalls of many kinds, and the room its index takes.

The texts are made up of English words with about the frequencies of the language; every session has words of its own.
Writing and reading are processes of their own, so that the memory of each can be seen. Recalls are timed as a caller
inside the gateway sees them, threads included. Run: `python tests/bench/memory_scale.py [--items N] [--json]`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import accumulate, islice
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from omni_mcp.contracts.ids import new_id
from omni_mcp.contracts.memory import MemoryItem, MemoryScope, Readers, Recall
from omni_mcp.engines.memory.embedder import TABLE_FILE, StaticEmbedder
from omni_mcp.engines.memory.store import SqliteMemory, open_memory
from tests.bench.gateway import rss_kib
from tests.bench.rows import Row, at_most

ITEMS = 100_000
AT_ONCE = 1000
SESSION_TURNS = 40
PLACES: tuple[tuple[MemoryScope, str, float], ...] = (("project", "p", 0.6), ("user", "u", 0.25), ("agent", "a", 0.15))
READERS = Readers(places=tuple((scope, owner) for scope, owner, _ in PLACES), project="p")
NAMES = ("Ann", "Bob", "Chidi", "Dora", "Emil", "Farah")
START_NS = 1_700_000_000_000_000_000


class Language:
    """Makes turns and questions."""

    def __init__(self, seed: int) -> None:
        with np.load(TABLE_FILE, allow_pickle=False) as table:
            vocabulary = table["vocabulary"].tobytes().decode().split("\n")
        self._words = [word for word in vocabulary if word.isascii() and word.isalpha() and len(word) > 1]
        self._sums = list(accumulate(1 / (rank + 2.7) for rank in range(len(self._words))))
        self._random = random.Random(seed)

    def words(self, count: int) -> list[str]:
        return self._random.choices(self._words, cum_weights=self._sums, k=count)

    def rare(self, count: int) -> list[str]:
        return self._random.choices(self._words[len(self._words) // 2 :], k=count)

    def common(self, count: int) -> list[str]:
        return self._random.choices(self._words[:60], k=count)

    def turns(self) -> Iterator[tuple[str, str, str, int]]:
        """Yield text, subject, session and time without end."""
        number = 0
        while True:
            session = f"s{number}"
            topic = self.words(30) + self.rare(20)
            speakers = self._random.sample(NAMES, 2)
            for turn in range(SESSION_TURNS):
                own = self._random.choices(topic, k=self._random.randint(2, 8))
                words = own + self.words(self._random.randint(4, 28))
                self._random.shuffle(words)
                speaker = speakers[turn % 2]
                at_ns = START_NS + (number * 3600 + turn * 20) * 1_000_000_000
                yield f"{speaker}: {' '.join(words)}", speaker, session, at_ns
            number += 1

    def queries(self, each: int) -> dict[str, list[str]]:
        return {
            "rare words": [" ".join(self.rare(2)) for _ in range(each)],
            "common words": [" ".join(self.common(6)) for _ in range(each)],
            "a question": [
                f"what did {self._random.choice(NAMES)} say about {' '.join(self.words(7))}?" for _ in range(each)
            ],
            "many words": [" ".join(self.words(60)) for _ in range(each)],
            "10,000 characters": [" ".join(self.words(3000))[:10_000] for _ in range(each)],
        }


def item_of(place: tuple[MemoryScope, str, float], turn: tuple[str, str, str, int]) -> MemoryItem:
    text, subject, session, at_ns = turn
    return MemoryItem(
        id=new_id(), kind="episodic", scope=place[0], owner=place[1], project="p", text=text, subject=subject,
        session=session, at_ns=at_ns, created_at_ns=at_ns,
    )  # fmt: skip


async def write(file: Path, count: int) -> dict[str, float]:
    """Fill the memory, in commits of 1,000 items."""
    turns = Language(1).turns()
    spent_s = 0.0
    async with open_memory(file) as memory:
        for place in PLACES:
            left = round(count * place[2])
            while left:
                items = [item_of(place, turn) for turn in islice(turns, min(AT_ONCE, left))]
                began = time.perf_counter()
                left -= await memory.put_many(items)
                spent_s += time.perf_counter() - began
    return {"write_s": spent_s, "file_mib": file.stat().st_size / 2**20}


async def read(file: Path, each: int) -> dict[str, float]:
    """Open the memory and recall."""
    queries = Language(2).queries(each)
    found: dict[str, float] = {}
    StaticEmbedder().embed(["numpy is loaded"])
    gc.collect()
    before = rss_kib(os.getpid())
    async with open_memory(file) as memory:
        began = time.perf_counter()
        await recall_ms(memory, "what did Ann say")
        found["open_s"] = time.perf_counter() - began
        spent: list[float] = []
        cpu_s = time.process_time()
        for kind, texts in queries.items():
            times = sorted([await recall_ms(memory, text) for text in texts])
            spent += times
            found[f"{kind}: p50"], found[f"{kind}: p99"] = statistics.median(times), times[len(times) * 99 // 100]
        found["cpu_ms"] = (time.process_time() - cpu_s) * 1000 / len(spent)
        spent.sort()
        found["p50"], found["p99"] = statistics.median(spent), spent[len(spent) * 99 // 100]
        found["one place: p50"] = statistics.median(
            [
                await recall_ms(memory, text, Readers(places=(("agent", "a"),), project="p"))
                for text in queries["a question"]
            ]
        )
        found["index_mib"] = await memory.index_bytes() / 2**20
        found["growth_mib"] = (rss_kib(os.getpid()) - before) / 1024
        found |= await changes(memory, each)
    return found


async def changes(memory: SqliteMemory, each: int) -> dict[str, float]:
    """Time single changes, and the recall that follows each."""
    spent: dict[str, list[float]] = {"put": [], "recall after a put": [], "forget": []}
    for turn in islice(Language(3).turns(), each):
        began = time.perf_counter()
        item = await memory.put(item_of(PLACES[0], turn))
        spent["put"].append((time.perf_counter() - began) * 1000)
        spent["recall after a put"].append(await recall_ms(memory, turn[0][:60]))
        began = time.perf_counter()
        await memory.forget(item.id, readers=READERS)
        spent["forget"].append((time.perf_counter() - began) * 1000)
    return {f"{name}: p50": statistics.median(times) for name, times in spent.items()}


async def recall_ms(memory: SqliteMemory, query: str, readers: Readers = READERS) -> float:
    began = time.perf_counter()
    await memory.recall(Recall(query=query, readers=readers, k=10))
    return (time.perf_counter() - began) * 1000


def measure(items: int = ITEMS, each: int = 200) -> list[Row]:
    """Write and read in processes of their own."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "memory.db"
        found = phase("write", file, items) | phase("read", file, each)
    name = f"memory of {items:,} items"
    rows = [
        at_most(f"{name}: written", found["write_s"], "s", 60),
        Row(f"{name}: file", found["file_mib"], "MiB"),
        at_most(f"{name}: opened, first recall", found["open_s"], "s", 1),
        at_most(f"{name}: recall p50", found["p50"], "ms", 10),
        at_most(f"{name}: recall p99", found["p99"], "ms", 40),
        Row(f"{name}: recall, CPU", found["cpu_ms"], "ms"),
        at_most(f"{name}: index, growth of the process", found["growth_mib"], "MiB", 60),
        Row(f"{name}: index, arrays", found["index_mib"], "MiB"),
    ]
    return rows + [Row(f"{name}: {what}", value, "ms") for what, value in found.items() if ": p" in what]


def phase(name: str, file: Path, count: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--phase", name, "--file", str(file), "--count", str(count)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=ITEMS)
    parser.add_argument("--each", type=int, default=200, help="recalls of each kind")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--phase", choices=("write", "read"), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.phase:
        work = write if given.phase == "write" else read
        print(json.dumps(asyncio.run(work(given.file, given.count))))
        return 0
    rows = measure(given.items, given.each)
    if given.json:
        print(json.dumps({"benchmark": "memory_scale", "rows": [asdict(row) for row in rows]}))
        return 0
    for row in rows:
        print(f"{row.what:<60} {row.measured:>9.4g} {row.unit:<4} {row.reach:>6} {'MISS' if row.met is False else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
