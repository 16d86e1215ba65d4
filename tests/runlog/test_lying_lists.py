"""Lists and the index are derived: what somebody writes into them is named, and opens nobody's runs to others."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from omni_mcp.cli.root import cli
from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.ids import new_id
from omni_mcp.engines.runlog.keys import find_keys
from omni_mcp.engines.runlog.verify import verify_database
from omni_mcp.testing import ALLOW_ALL, ANN, BOB, local_gateway
from tests.runlog.conftest import ANNA, Place, answered, asked, new_run, said

EVE = Principal(kind="User", id="eve")


@contextmanager
def _changing(file: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        yield connection


def _faults(place: Place) -> list[str]:
    return [str(fault) for fault in verify_database(place.file, find_keys(place.keys)).faults]


async def _fill(place: Place) -> str:
    async with place.open() as log:
        run, call = await new_run(log), new_id()
        log.append(run, asked(call))
        log.append(run, asked(new_id()))
        log.append(run, said("a needle in here"))
        await log.append_outcome(run, answered(call)).durable()
    return run


async def test_a_run_whose_principal_was_changed_in_the_list_opens_to_nobody_else(place: Place) -> None:
    run = await _fill(place)
    with _changing(place.file) as connection:
        connection.execute("UPDATE runs SET principal = ?", (EVE.key,))
    async with place.open() as log:
        assert await log.runs(principal=EVE.key) == []
        assert await log.search("needle", principal=EVE.key) == []
        assert (await log.get_run(run))["principal"] == ANNA.key
        await log.append(run, said("a fresh needle")).durable()
        assert await log.search("fresh", principal=EVE.key) == []
    assert any("(principal)" in fault for fault in _faults(place))


async def test_a_run_whose_first_text_was_changed_too_is_nobodys(place: Place) -> None:
    run = await _fill(place)
    with _changing(place.file) as connection:
        connection.execute("DROP TRIGGER texts_no_update")
        connection.execute("UPDATE runs SET principal = ?", (EVE.key,))
        (body,) = connection.execute("SELECT body FROM texts WHERE gid = 1").fetchone()
        assert b"anna" in body
        connection.execute("UPDATE texts SET body = ? WHERE gid = 1", (body.replace(b"anna", b"eve"),))
    async with place.open() as log:
        assert await log.runs(principal=EVE.key) == [] and await log.search("needle", principal=EVE.key) == []
        assert (await log.get_run(run))["principal"] is None


async def test_through_the_gateway_a_changed_list_shows_nobody_anothers_run(tmp_path: Path) -> None:
    async with (
        local_gateway(ALLOW_ALL, directory=tmp_path, cells=False) as here,
        here.client(principal=ANN, version="2025-11-25") as ann,
    ):
        await ann.call("runs__list")
        run = ann.run
    with _changing(here.home.log_file) as connection:
        connection.execute("UPDATE runs SET principal = ? WHERE kind = 'session'", (BOB.key,))
    async with (
        local_gateway(ALLOW_ALL, directory=tmp_path, cells=False) as here,
        here.client(principal=BOB, version="2025-11-25") as bob,
    ):
        assert run is not None and run not in str(await bob.call("runs__list"))
        assert "no run" in str(await bob.call("runs__read", {"run": run}))


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("UPDATE runs SET project = 'x'", "(project)"),
        ("UPDATE runs SET calls = 7, erased = 1", "(calls, erased)"),
        ("UPDATE runs SET closed_seq = 2", "(closed_seq)"),
        ("DELETE FROM runs", "(missing)"),
        ("INSERT INTO runs (run, created_at_ns) VALUES (9, 1)", "(there is no such event)"),
        ("DELETE FROM open_calls", "the list of open calls"),
        ("INSERT INTO open_calls VALUES ('x', 1, 2)", "the list of open calls"),
        ("INSERT INTO search_0 (rowid, text) VALUES (3, 'planted')", "the search index of events 1 to"),
        ("DROP TABLE search_0", "the search index of events 1 to"),
        ("UPDATE search_state SET gid = 99", "does not know how far"),
        ("UPDATE search_state SET gid = 2", "the search index of events 1 to"),
        ("DELETE FROM search_state", "does not know how far"),
    ],
)
async def test_what_was_changed_in_a_list_is_named_and_a_rebuild_mends_it(
    place: Place, statement: str, named: str
) -> None:
    await _fill(place)
    assert _faults(place) == []
    with _changing(place.file) as connection:
        connection.execute(statement)
    assert any(named in fault and "db rebuild" in fault for fault in _faults(place)), _faults(place)
    rebuilt = CliRunner(env={"OMNI_HOME": str(place.directory)}).invoke(cli, ["db", "rebuild"])
    assert rebuilt.exit_code == 0, rebuilt.output
    assert _faults(place) == []


async def test_verification_changes_nothing_in_the_file(place: Place) -> None:
    await _fill(place)
    before = place.file.read_bytes()
    assert _faults(place) == []
    assert place.file.read_bytes() == before


async def test_a_search_index_that_lost_its_place_is_made_anew_at_the_start(place: Place) -> None:
    await _fill(place)
    with _changing(place.file) as connection:
        connection.execute("DELETE FROM search_state")
    async with place.open() as log:
        assert any("search index" in notice for notice in log.notices)
        assert len(await log.search("needle", principal=ANNA.key)) == 1
        await log.flush_index()
        assert len(await log.search("needle")) == 1
    assert _faults(place) == []


async def test_missing_and_changed_triggers_are_named_and_come_back_at_the_start(place: Place) -> None:
    await _fill(place)
    with _changing(place.file) as connection:
        connection.execute("DROP TRIGGER events_no_update")
        connection.execute("DROP TRIGGER texts_no_delete")
        connection.execute("CREATE TRIGGER texts_no_delete BEFORE DELETE ON texts BEGIN SELECT 1; END")
        connection.execute("CREATE TRIGGER spy AFTER INSERT ON open_calls BEGIN SELECT 1; END")
    assert _faults(place) == [
        "log: the trigger events_no_update is missing",
        "log: the trigger texts_no_delete was changed",
        "log: the trigger spy is not one of ours",
    ]
    async with place.open() as log:
        assert [notice.partition(";")[0] for notice in log.notices] == [
            "the trigger events_no_update is missing",
            "the trigger texts_no_delete was changed",
            "the trigger spy is not one of ours",
        ]
    with _changing(place.file) as connection:
        for statement in ("UPDATE events SET actor = 'x'", "DELETE FROM texts"):
            with pytest.raises(sqlite3.Error, match=r"append-only|omni_mcp_may_erase"):
                connection.execute(statement)
    assert _faults(place) == ["log: the trigger spy is not one of ours"]


def _run(place: Place, *words: str) -> Result:
    return CliRunner(env={"OMNI_HOME": str(place.directory)}).invoke(cli, words)


@pytest.mark.parametrize(
    "words", [("runs", "show", "last"), ("audit", "verify"), ("audit", "verify", "nothing-here.jsonl")]
)
def test_a_failure_is_one_json_object_too(place: Place, words: tuple[str, ...]) -> None:
    result = _run(place, *words, "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 1 and found["ok"] is False and found["error"]["code"] == "log_unavailable"


async def test_damage_is_told_as_one_json_object(place: Place, tmp_path: Path) -> None:
    await _fill(place)
    with _changing(place.file) as connection:
        connection.execute("DROP TRIGGER texts_no_update")
        connection.execute("UPDATE texts SET body = ? WHERE gid = 4", (bytes(16) + b"{",))
    shown = _run(place, "runs", "show", "last", "--json")
    assert shown.exit_code == 1 and json.loads(shown.stdout)["error"]["code"] == "log_corrupt"
    verified = _run(place, "audit", "verify", "--json")
    assert verified.exit_code == 1 and json.loads(verified.stdout)["ok"] is False
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{")
    verified = _run(place, "audit", "verify", str(broken), "--json")
    assert verified.exit_code == 1 and json.loads(verified.stdout)["error"]["code"] == "log_corrupt"
