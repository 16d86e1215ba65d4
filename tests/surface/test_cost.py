"""The estimate against real tokenizers: `calibration.jsonl` holds definitions of nine servers and their true counts.

Their letters are all `a` or `A` and their digits `0` (the estimate looks at nothing else), so no text of others stands
here. How they were counted: docs/surfaces.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from omni_mcp.cli.tools_cost import bill_of
from omni_mcp.engines.catalog.cost import tokens_of, tool_tokens

ROWS: list[dict[str, Any]] = [
    json.loads(line) for line in (Path(__file__).parent / "calibration.jsonl").read_text().splitlines()
]
TOKENIZERS = ("o200k_base", "cl100k_base", "claude_2")


def true_count(row: dict[str, Any]) -> float:
    return float(sum(row[name] for name in TOKENIZERS)) / len(TOKENIZERS)


def errors(estimate: Any) -> list[float]:
    return sorted(abs(estimate(row["shape"]) - true_count(row)) / true_count(row) for row in ROWS)


def test_half_of_the_definitions_are_within_two_percent_and_nearly_all_within_six() -> None:
    found = errors(tokens_of)
    assert len(found) > 40
    assert median(found) <= 0.02
    assert found[int(0.95 * len(found))] <= 0.06
    assert found[-1] <= 0.10


def test_characters_by_four_would_not_pass() -> None:
    found = errors(lambda text: len(text) / 4)
    assert median(found) > 0.08 and found[int(0.95 * len(found))] > 0.2


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_the_sum_over_all_servers_is_right_for_each_tokenizer(tokenizer: str) -> None:
    truth = sum(row[tokenizer] for row in ROWS)
    assert abs(sum(tokens_of(row["shape"]) for row in ROWS) - truth) / truth < 0.06


def test_what_a_model_is_not_shown_costs_nothing() -> None:
    shown = {"name": "x", "description": "Reads a file.", "inputSchema": {"type": "object"}}
    rest = {"outputSchema": {"type": "object"}, "annotations": {"readOnlyHint": True}, "_meta": {"a": "b" * 1000}}
    assert tool_tokens("s__x", {**shown, **rest}) == tool_tokens("s__x", shown)
    assert tool_tokens("s__a_longer_name_of_it", shown) > tool_tokens("s__x", shown)


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [("", 0, 0), ("a" * 10_000, 300, 1200), ("9" * 300, 90, 300), ("-" * 300, 100, 300), ("日本語" * 100, 150, 450)],
)
def test_odd_texts_are_counted_in_bounds(text: str, least: int, most: int) -> None:
    assert least <= tokens_of(text) <= most


def test_a_bill_is_ordered_by_what_costs_most() -> None:
    small, large = {"name": "a__x", "description": "x"}, {"name": "b__y", "description": "word " * 50}
    other = {"name": "a__z", "description": "word " * 5}
    bill = bill_of([small, large, other])
    assert [(server, list(tools)) for server, tools in bill.servers.items()] == [
        ("b", ["b__y"]),
        ("a", ["a__z", "a__x"]),
    ]
    assert list(bill_of([small], only_server="s").servers) == ["s"]
