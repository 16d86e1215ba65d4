"""The commands over the log, run as a person runs them, beside an open gateway and without one."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from omni_mcp.cli.root import cli
from omni_mcp.contracts.ids import new_id
from omni_mcp.engines.runlog.store import open_run_log
from omni_mcp.engines.secrets.masking import SecretMasker
from omni_mcp.paths import Home, find_home
from tests.runlog.conftest import answered, asked, new_run, said


@pytest.fixture
def home(tmp_path: Path) -> Home:
    found = find_home({"OMNI_HOME": str(tmp_path)})
    found.data.mkdir()
    return found


def _run(home: Home, *words: str) -> Result:
    return CliRunner(env={"OMNI_HOME": str(home.config)}).invoke(cli, words)


def _json(home: Home, *words: str) -> object:
    result = _run(home, *words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


async def _fill(home: Home) -> tuple[str, str]:
    async with open_run_log(
        home.log_file, keys=home.secrets, masker=SecretMasker({"k": "s3cr3t-value"}), gateway_version="test"
    ) as log:
        run, call = await new_run(log, title="first"), new_id()
        log.append(run, asked(call, path="notes.txt", key="s3cr3t-value"))
        log.append(run, said("evil \x1b[31mred\u202e text\r\n"))
        await log.append_outcome(run, answered(call)).durable()
    return run, call


async def test_a_run_is_listed_shown_and_found(home: Home) -> None:
    run, call = await _fill(home)
    assert [found["id"] for found in _json(home, "runs", "list")] == [run]  # type: ignore[attr-defined]
    for name in (run, run[:10], "last"):
        shown = _json(home, "runs", "show", name)
        assert shown["run"]["id"] == run and [event["seq"] for event in shown["events"]] == [1, 2, 3, 4]  # type: ignore[index]
    text = _run(home, "runs", "show", "last").stdout
    assert "tool_call" in text and "notes.txt" in text and call in text and "[masked: $.arguments.key]" in text
    assert "s3cr3t-value" not in text
    assert [event["call"] for event in _json(home, "runs", "search", "notes.txt")] == [call]  # type: ignore[attr-defined]


async def test_no_control_character_of_a_payload_reaches_the_terminal(home: Home) -> None:
    await _fill(home)
    for words in (("runs", "show", "last"), ("runs", "search", "evil")):
        text = _run(home, *words).stdout
        assert "evil" in text
        assert not [char for char in text.replace("\n", "") if not char.isprintable()]


async def test_verify_names_what_is_wrong_and_exits_with_1(home: Home, tmp_path: Path) -> None:
    run, _ = await _fill(home)
    assert _run(home, "audit", "verify").exit_code == 0
    assert _json(home, "audit", "verify")["ok"] is True  # type: ignore[index]
    file = tmp_path / "all.jsonl"
    assert _json(home, "audit", "export", "--all", "-o", str(file))["events"] == 4  # type: ignore[index]
    assert _run(home, "audit", "verify", str(file)).exit_code == 0
    assert _run(home, "audit", "export", "last", "-o", str(tmp_path / "one.jsonl")).exit_code == 0
    connection = sqlite3.connect(home.log_file)
    connection.execute("DROP TRIGGER events_no_update")
    connection.execute("UPDATE events SET actor = 'x' WHERE seq = 2")
    connection.commit()
    connection.close()
    result = _run(home, "audit", "verify")
    assert result.exit_code == 1 and f"run {run} event 2: changed" in result.stdout
    verdict = json.loads(_run(home, "audit", "verify", "--json").stdout)
    assert [(fault["run"], fault["seq"]) for fault in verdict["faults"] if fault["seq"]] == [(run, 2)]
    assert "the trigger events_no_update is missing" in {fault["what"] for fault in verdict["faults"]}


async def test_erasing_asks_for_a_yes_and_then_works_beside_an_open_gateway(home: Home) -> None:
    run, call = await _fill(home)
    refused = _run(home, "erase", "--run", "last")
    assert refused.exit_code == 2 and "--yes" in refused.output
    async with open_run_log(home.log_file, keys=home.secrets, masker=SecretMasker({}), gateway_version="test") as log:
        done = _json(home, "erase", "--run", run[:12], "--call", call, "--yes")
        assert (done["events"], done["wal_truncated"]) == (2, True)  # type: ignore[index]
        assert _json(home, "erase", "--run", run, "--yes")["events"] == 2  # type: ignore[index]
        assert await log.append(run, said("next")).durable() == 7
    assert "erased by event" in _run(home, "runs", "show", run).stdout
    assert _run(home, "audit", "verify").exit_code == 0
    assert _json(home, "retention", "run", "--older-than", "30d")["runs"] == []  # type: ignore[index]
    assert _run(home, "retention", "run", "--older-than", "soon").exit_code == 2
    assert _json(home, "db", "rebuild") == {"rebuilt": True}
    assert [found["last_seq"] for found in _json(home, "runs", "list")] == [7]  # type: ignore[attr-defined]


async def test_without_a_log_every_command_says_so_and_makes_nothing(home: Home) -> None:
    for words in (
        ("runs", "list"), ("runs", "show", "last"), ("audit", "verify"), ("erase", "--run", "x", "--yes"),
        ("retention", "run"), ("db", "rebuild"),
    ):  # fmt: skip
        result = _run(home, *words)
        assert result.exit_code == 1 and "no run log yet" in result.output
    assert list(home.data.iterdir()) == []


async def test_an_unclear_or_unknown_run_is_refused_with_the_next_step(home: Home) -> None:
    await _fill(home)
    async with open_run_log(home.log_file, keys=home.secrets, masker=SecretMasker({}), gateway_version="test") as log:
        await new_run(log)
    assert "more than one run" in _run(home, "runs", "show", "0").output
    for name in ("zzz", "%", "", "_"):
        result = _run(home, "runs", "show", name)
        assert result.exit_code == 1 and "runs list" in result.output
