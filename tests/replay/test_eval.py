"""A suite of runs is made again: the pass rate is printed, and below its threshold the command fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from omni_mcp.contracts.errors import ConfigError
from omni_mcp.replay.suite import load_suite
from omni_mcp.testing import ALLOW_ALL
from tests.clients.running import OMNI, Place, new_place
from tests.replay.script import Script, run_script

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place() -> AsyncIterator[Place]:
    with new_place() as made:
        made.write_policy(ALLOW_ALL)
        yield made


async def _run(place: Place, script: Script) -> str:
    heard = await run_script([OMNI, "stdio", "--embedded"], place.environment, script)
    assert heard.code == 0, heard.stderr
    runs = await asyncio.to_thread(place.run_json, "runs", "list")
    return str(next(run["id"] for run in runs if run["kind"] == "session"))


async def _eval(place: Place, text: str) -> tuple[int, Any]:
    suite = place.root / "suite.yaml"
    suite.write_text(text)
    end = await asyncio.to_thread(place.end_of, "eval", str(suite), "--json")
    return end.returncode, json.loads(end.stdout)


async def test_a_suite_prints_its_pass_rate_and_fails_below_its_threshold(place: Place) -> None:
    found = await _run(place, Script(modern=True).call("tools__search_tools", query="read a file", limit=1))
    missing = await _run(place, Script(modern=True).call("nowhere__at_all"))
    await asyncio.to_thread(place.run, "runs", "golden", "write", found, "--out", str(place.root / "found.json"))
    text = f"""
suite: 1
name: small
threshold: {{threshold}}
cases:
  - name: found
    run: {found}
    expect:
      - call: 1
        outcome: tool_result
        fields: {{{{"$.is_error": false}}}}
        contains: {{{{"$.result.structuredContent.tools[0].name": "file"}}}}
  - name: golden
    golden: found.json
  - name: refused
    run: {missing}
    expect:
      - {{{{call: 1, outcome: policy_denied}}}}
  - name: wrong
    run: {missing}
    expect:
      - {{{{call: 1, outcome: tool_result}}}}
      - {{{{call: 2}}}}
"""
    enough, told = await _eval(place, text.format(threshold=0.75))
    too_few, again = await _eval(place, text.format(threshold=0.8))

    assert [case["passed"] for case in told["cases"]] == [True, True, True, False], told
    assert told["cases"][3]["faults"] == [
        "call 1 ended as policy_denied, and tool_result is expected", "call 2 was not made again"
    ]  # fmt: skip
    assert (enough, told["rate"], told["ok"]) == (0, 0.75, True)
    assert (too_few, again["ok"]) == (1, False)


async def test_an_edited_golden_file_fails_its_case_and_no_other(place: Place) -> None:
    run = await _run(place, Script(modern=True).call("nowhere__at_all"))
    golden = place.root / "edited.json"
    await asyncio.to_thread(place.run, "runs", "golden", "write", run, "--out", str(golden))
    golden.write_bytes(golden.read_bytes().replace(b"nowhere__at_all", b"nowhere__at_alL", 1))

    code, told = await _eval(
        place, f"suite: 1\nthreshold: 0.5\ncases:\n  - golden: edited.json\n  - run: {run}\n  - run: 019-none\n"
    )

    assert code == 1 and [case["passed"] for case in told["cases"]] == [False, True, False]


async def test_for_each_call_the_record_says_with_what_it_was_made(place: Place) -> None:
    model = {"provider": "acme", "id": "m-1", "params": {"temperature": 0}, "seed": 7}
    meta = {"io.omni-mcp/model": model}
    run = await _run(place, Script(modern=True).call("tools__search_tools", meta=meta, query="hash").call("no__tool"))

    shown = await asyncio.to_thread(place.run_json, "runs", "show", run)

    made, refused = shown["calls"]
    assert made["model"] == model and made["sealed"] and made["outcome"] == "tool_result"
    assert made["definition"]["version"] == "1.0.0" and made["definition"]["digest"].startswith("sha256:")
    assert made["executor"] == {"binding": "inproc_safe", "version": made["gateway"]}
    assert made["policy"].startswith("sha256:")
    assert refused["definition"] is None and refused["outcome"] == "policy_denied"


@pytest.mark.parametrize(
    "text",
    [
        "[]", "suite: 2\ncases: [{run: x}]", "suite: 1\ncases: []", "suite: 1\ncases: [{run: x, golden: y}]",
        "suite: 1\ncases: [{}]", "suite: 1\ncases: [{run: x, parity: false}]", "suite: 1\ncases: [{run: x, more: 1}]",
        "suite: 1\nname: &n x\ncases: [{run: *n}]", "suite: 1\ncases: [{run: x, run: y}]",
        "suite: 1\ncases: [{run: x}]\n---\nsuite: 1", "suite: 1\ncases: [{<<: {run: x}}]",
        "suite: 1\nthreshold: 2\ncases: [{run: x}]", "a: [", "!!python/object/apply:os.system ['true']", "\x00",
    ],
)  # fmt: skip
async def test_a_suite_that_says_something_else_is_refused_as_a_whole(tmp_path: Path, text: str) -> None:
    file = tmp_path / "suite.yaml"
    file.write_text(text)

    with pytest.raises(ConfigError):
        load_suite(file)


async def test_a_suite_of_few_bytes_cannot_grow_into_gigabytes(tmp_path: Path) -> None:
    """Each line names the one before it nine times."""
    lines = [
        "suite: 1",
        "a: &a [x, x]",
        *(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in pairwise("abcdefghij")),
    ]
    file = tmp_path / "suite.yaml"
    file.write_text("\n".join([*lines, "cases: *j"]))
    with pytest.raises(ConfigError) as refused:
        load_suite(file)
    assert "alias" in str(refused.value) or "anchor" in str(refused.value)


async def test_a_suite_that_is_wrong_says_in_which_line(tmp_path: Path) -> None:
    file = tmp_path / "suite.yaml"
    file.write_text("suite: 1\ncases:\n  - run: x\n  - run: x\n    parity: maybe\n")
    with pytest.raises(ConfigError) as refused:
        load_suite(file)
    assert [one.line for one in refused.value.problems] == [5]
