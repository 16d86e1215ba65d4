"""`omni-mcp memory import` and `memory recall`: by what outsiders measure, beside a running gateway and without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from omni_mcp.engines.runlog.reader import LogReader
from omni_mcp.paths import find_home
from tests.memory_server.world import AGENT, CommandLine, remembering, texts, verified

ROWS: list[dict[str, Any]] = [
    {"key": "d1:1", "text": "Ann: we moved to Oslo", "subject": "Ann", "session": "d1", "at": "2026-05-08T13:56:00Z"},
    {"key": "d1:2", "text": "Bob: how is the flat?", "subject": "Bob", "session": "d1", "at": "2026-05-08 15:57+02:00"},
    {"key": "d1:3", "text": "Ann: small, with a stove", "subject": "Ann", "session": "d1", "at": 1778248680},
    {"text": "a note without anything else"},
]


def written(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n")
    return str(file)


async def items_of(line: CommandLine, project: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = await line.json("memory", "list", "--project", project, "--scope", "project")
    return found


async def test_rows_become_items_of_the_project_and_a_batch_names_their_keys(tmp_path: Path) -> None:
    line = CommandLine(tmp_path)
    rows = written(tmp_path / "rows.jsonl", ROWS)
    assert await line.json("memory", "import", rows, "--project", "p") == {"project": "p", "items": 4}
    await line.run("memory", "import", rows, "--project", "q")
    queries = written(
        tmp_path / "queries.jsonl",
        [
            {"id": "one", "query": "where does Ann live? Oslo?", "project": "p"},
            {"id": "two", "query": "", "project": "p"},
            {"id": "three", "query": '"; DROP', "project": "nowhere"},
            {"id": "four", "query": "note without anything"},
        ],
    )
    answers = [
        json.loads(row)
        for row in (await line.run("memory", "recall", "--batch", queries, "--k", "2", "--project", "q")).splitlines()
    ]
    assert [answer["id"] for answer in answers] == ["one", "two", "three", "four"]
    assert answers[0]["hits"][0]["key"] == "d1:1" and len(answers[0]["hits"]) == 2
    assert answers[0]["hits"][0]["score"] > answers[0]["hits"][1]["score"] > 0
    assert answers[1]["hits"] == answers[2]["hits"] == []
    [note] = [item for item in await items_of(line, "q") if "key" not in item]
    assert answers[3]["hits"][0]["key"] == note["id"]


async def test_numbers_may_stand_for_names_and_a_querys_id_comes_back_as_it_was(tmp_path: Path) -> None:
    line = CommandLine(tmp_path)
    rows = written(tmp_path / "rows.jsonl", [{"key": 7, "text": "a stove in Oslo", "session": 3}])
    await line.run("memory", "import", rows, "--project", "p")
    queries = written(tmp_path / "queries.jsonl", [{"id": 12, "query": "the stove", "project": "p"}])
    answer = json.loads(await line.run("memory", "recall", "--batch", queries))
    assert (answer["id"], answer["hits"][0]["key"]) == (12, "7")


async def test_times_keep_their_zone_and_rows_without_one_their_order(tmp_path: Path) -> None:
    line = CommandLine(tmp_path)
    await line.run("memory", "import", written(tmp_path / "rows.jsonl", [*ROWS, {"text": "z"}]), "--project", "p")
    times = {item["text"]: item["at"] for item in await items_of(line, "p")}
    assert [times[row["text"]][:16] for row in ROWS[:3]] == ["2026-05-08T13:56", "2026-05-08T13:57", "2026-05-08T13:58"]
    assert times[ROWS[3]["text"]] < times["z"]


async def test_the_same_file_again_replaces_and_does_not_double(tmp_path: Path) -> None:
    line = CommandLine(tmp_path)
    rows = written(tmp_path / "rows.jsonl", ROWS[:3])
    for _ in range(2):
        await line.run("memory", "import", rows, "--project", "p")
    assert sorted(item["version"] for item in await items_of(line, "p")) == [2, 2, 2]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ('{"text": "x", "speaker": "y"}', "$.speaker"), ('{"key": "x"}', "$.text"), ('{"text": ""}', "$.text"),
        ('{"text": "x", "at": "yesterday"}', "$.at"), ('{"text": "x", "at": 1e30}', "$.at"), ("[1]", "valid"),
        ('{"text": "x"', "unexpected"), ('{"text": "x", "key": "same"}', "line 1 has the same key"),
        ('{"text": "' + "x" * 16_385 + '"}', "16384"), ('{"text": "x", "at": "0000-01-01"}', "$.at"),
        ('{"text": "x", "at": true}', "$.at"), ('{"text": "\\ud800"}', "surrogate"),
    ],
)  # fmt: skip
async def test_a_row_that_does_not_fit_refuses_the_whole_file_and_is_named(tmp_path: Path, row: str, says: str) -> None:
    line = CommandLine(tmp_path)
    file = tmp_path / "rows.jsonl"
    file.write_text(f'{{"text": "fine", "key": "same"}}\n\n{row}\n')
    said = await line.run("memory", "import", str(file), "--project", "p", code=1)
    assert "rows.jsonl:3" in said and says in said
    failure = json.loads(await line.run("memory", "import", str(file), "--project", "p", "--json", code=1))
    assert failure["error"]["code"] == "config_invalid"
    assert not (tmp_path / "home" / "data" / "memory.db").exists()


@pytest.mark.parametrize(
    "query", ['{"id": "1"}', '{"id": "1", "query": "x"}', '{"id": "1", "query": "x", "project": "p", "k": 3}', "x"]
)
async def test_a_query_that_does_not_fit_is_named_before_any_answer(tmp_path: Path, query: str) -> None:
    line = CommandLine(tmp_path)
    await line.run("memory", "import", written(tmp_path / "rows.jsonl", ROWS), "--project", "p")
    file = tmp_path / "queries.jsonl"
    file.write_text(f'{{"id": "0", "query": "Oslo", "project": "p"}}\n{query}\n')
    said = await line.run("memory", "recall", "--batch", str(file), code=1)
    assert "queries.jsonl:2" in said and '"hits"' not in said


async def test_the_log_says_how_many_were_imported_and_none_of_their_words(tmp_path: Path) -> None:
    line = CommandLine(tmp_path)
    await line.run("memory", "import", written(tmp_path / "rows.jsonl", ROWS), "--project", "p")
    home = find_home({"OMNI_HOME": str(tmp_path / "home")})
    with LogReader(home.log_file) as log:
        [run] = log.runs()
        events = log.events(run["id"], limit=100)
    assert run["kind"] == "gateway"
    [event] = [event for event in events if event.code == "memory_written"]
    assert event.payload is not None and event.actor.startswith("operator:")
    assert {name: event.payload[name] for name in ("change", "count", "scope", "owner", "item")} == {
        "change": "imported", "count": 4, "scope": "project", "owner": "p", "item": None
    }  # fmt: skip
    assert b"Oslo" not in home.log_file.read_bytes()


async def test_an_import_beside_a_running_gateway_is_found_by_its_next_recall(tmp_path: Path) -> None:
    line = CommandLine(tmp_path)
    async with remembering(tmp_path) as here, here.client(principal=AGENT) as client:
        assert await texts(client, "Oslo") == []
        await line.run("memory", "import", written(tmp_path / "rows.jsonl", ROWS), "--project", "default")
        assert (await texts(client, "Oslo"))[0] == ROWS[0]["text"]
        verified(here)
        await line.run("memory", "import", written(tmp_path / "rows.jsonl", ROWS), "--project", "another")
        assert len(await texts(client, "Oslo", k=50)) <= 4


async def test_a_person_sees_what_was_found_and_why(tmp_path: Path) -> None:
    line = CommandLine(tmp_path)
    hostile = {"key": "h\x1b[2J", "text": "Oslo \x1b[31m\u202e red"}
    await line.run("memory", "import", written(tmp_path / "rows.jsonl", [*ROWS, hostile]), "--project", "p")
    said = await line.run("memory", "recall", "Oslo", "--project", "p", "--explain")
    assert "Ann: we moved to Oslo" in said and "words 0." in said
    assert "\x1b" not in said and "\u202e" not in said
    [first, *_] = await line.json("memory", "recall", "Ann Oslo", "--project", "p", "--budget", "25")
    assert first["item"]["key"] == "d1:1" and abs(sum(first["parts"].values()) - first["score"]) < 1e-4
    assert await line.json("memory", "recall", "Oslo", "--project", "p", "--budget", "3") == []


async def test_a_recall_without_a_memory_or_a_project_says_so(tmp_path: Path) -> None:
    line = CommandLine(tmp_path)
    assert "no memory yet" in await line.run("memory", "recall", "x", "--project", "p", code=1)
    assert "--project" in await line.run("memory", "recall", "x", code=2)
    assert "either" in await line.run("memory", "recall", code=2)
