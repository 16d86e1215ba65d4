"""How well a recall finds the turns that answer a question: generated conversations, put into and asked of the store.

R@k is the share of the turns that answer which stand among the first k, averaged over the questions. BM25 alone, the
vectors alone and plain reciprocal rank fusion of the two are taken from the parts of the same recalls. What was tuned
looked at seed 1 only; seed 2 is held out. Run: `python tests/bench/memory_quality.py [--quick] [--json]`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from omni_mcp.contracts.ids import new_id
from omni_mcp.contracts.memory import Hit, MemoryItem, Readers, Recall
from omni_mcp.engines.memory.store import SqliteMemory, open_memory
from tests.bench.conversations import CATEGORIES, Conversation, Turn, conversations
from tests.bench.rows import Row, at_least

DEVELOPED_ON, HELD_OUT = 1, 2
CUTS = (5, 10)
METHODS = ("BM25 alone", "vectors alone", "plain RRF", "omni-mcp")
FUSION_DEPTH = 60  # the usual constant of reciprocal rank fusion: Cormack, Clarke and Büttcher, 2009
EVERYTHING = 1000
_NS_PER_S = 1_000_000_000

Recalls = dict[str, dict[str, list[tuple[float, ...]]]]  # of method, of category: for each question, of each cut


async def recalls_of(told: Sequence[Conversation], *, every: int = 1) -> Recalls:
    """Put *told* into a memory, a project each, and ask every so-many-th of their questions."""
    found: Recalls = {method: defaultdict(list) for method in METHODS}
    with tempfile.TemporaryDirectory() as directory:
        async with open_memory(Path(directory) / "memory.db") as memory:
            for conversation in told:
                await memory.put_many([item_of(turn, conversation.name) for turn in conversation.turns])
            for conversation in told:
                for question in conversation.questions[::every]:
                    hits = await _asked(memory, question.text, conversation.name)
                    for method, order in orders_of(hits).items():
                        found[method][question.category].append(_shares(order, question.evidence))
    return found


def item_of(turn: Turn, project: str) -> MemoryItem:
    """Return a turn as an item of a project."""
    at_ns = int(datetime.fromisoformat(turn.at).timestamp()) * _NS_PER_S
    return MemoryItem(
        id=new_id(), kind="episodic", scope="project", owner=project, project=project, text=turn.text, key=turn.key,
        subject=turn.subject, session=turn.session, at_ns=at_ns, created_at_ns=at_ns,
    )  # fmt: skip


async def _asked(memory: SqliteMemory, question: str, project: str) -> list[Hit]:
    readers = Readers(places=(("project", project),), project=project)
    return await memory.recall(Recall(query=question, readers=readers, k=EVERYTHING))


def orders_of(hits: Sequence[Hit]) -> dict[str, list[str]]:
    """Return the keys in the order of each method. BM25 finds what has one of the words, and nothing else."""
    with_words = [hit for hit in hits if hit.parts["words"] > 0]
    words = [_key(hit) for hit in sorted(with_words, key=lambda hit: -hit.parts["words"])]
    meaning = [_key(hit) for hit in sorted(hits, key=lambda hit: -hit.parts["meaning"])]
    fused: dict[str, float] = defaultdict(float)
    for order in (words, meaning):
        for place, key in enumerate(order, start=1):
            fused[key] += 1 / (FUSION_DEPTH + place)
    return {
        "BM25 alone": words,
        "vectors alone": meaning,
        "plain RRF": sorted(fused, key=lambda key: -fused[key]),
        "omni-mcp": [_key(hit) for hit in hits],
    }


def mean_of(found: Recalls, method: str, cut: int, category: str | None = None) -> float:
    """Return R@*cut* over all questions, or over those of one category."""
    place = CUTS.index(cut)
    chosen = found[method].values() if category is None else [found[method][category]]
    return fmean(shares[place] for each in chosen for shares in each)


def measure(*, quick: bool) -> list[Row]:
    """Measure the held-out conversations."""
    found = asyncio.run(recalls_of(conversations(HELD_OUT, count=2 if quick else 10), every=2))
    ours, words = (mean_of(found, method, 10) for method in ("omni-mcp", "BM25 alone"))
    return [
        at_least("memory: answers among the first 10", ours, "R@10", 0.7),
        Row("memory: the same with BM25 alone", words, "R@10"),
        at_least("memory: answers among the first 5", mean_of(found, "omni-mcp", 5), "R@5", 0.64),
    ]


def print_table(name: str, found: Recalls) -> None:
    """Print R@5/R@10 for each method and category."""
    counts = {category: len(found["omni-mcp"][category]) for category in CATEGORIES}
    heads = [f"{category} ({counts[category]})" for category in CATEGORIES]
    print(f"\n{name}: R@5/R@10 of {sum(counts.values())} questions")
    print(f"{'':<14}{'all':>12}" + "".join(f"{head:>18}" for head in heads))
    for method in METHODS:
        cells = [f"{mean_of(found, method, 5):.3f}/{mean_of(found, method, 10):.3f}".rjust(12)]
        for category in CATEGORIES:
            pair = "/".join(f"{mean_of(found, method, cut, category):.3f}" for cut in CUTS)
            cells.append(f"{pair:>18}")
        print(f"{method:<14}{''.join(cells)}")


def main() -> None:
    """Measure both sets and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two conversations of each set instead of ten")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    given = parser.parse_args()
    sets = {"developed on": DEVELOPED_ON, "held out": HELD_OUT}
    results = {
        name: asyncio.run(recalls_of(conversations(seed, count=2 if given.quick else 10)))
        for name, seed in sets.items()
    }
    if given.json:
        print(json.dumps({name: _as_json(found) for name, found in results.items()}))
        return
    for name, found in results.items():
        print_table(f"{name} (seed {sets[name]})", found)


def _as_json(found: Recalls) -> dict[str, dict[str, dict[str, float]]]:
    return {
        method: {
            category or "all": {f"R@{cut}": round(mean_of(found, method, cut, category), 4) for cut in CUTS}
            for category in (None, *CATEGORIES)
        }
        for method in METHODS
    }  # fmt: skip


def _shares(order: Sequence[str], evidence: Sequence[str]) -> tuple[float, ...]:
    return tuple(len(set(order[:cut]) & set(evidence)) / len(evidence) for cut in CUTS)


def _key(hit: Hit) -> str:
    return hit.item.key or hit.item.id


if __name__ == "__main__":
    main()
