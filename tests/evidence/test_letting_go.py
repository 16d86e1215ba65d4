"""E12 through the front door: what a gateway recorded and then let go is in no byte, and the evidence still holds."""

from __future__ import annotations

import sqlite3

import pytest

from tests.evidence.conftest import Evidence


def _files_with(evidence: Evidence, *words: str) -> set[str]:
    found = set()
    for file in evidence.home.data.rglob("*"):
        content = file.read_bytes().lower() if file.is_file() else b""
        found |= {f"{file.name}: {word}" for word in words if word.encode() in content}
    return found


async def test_after_erase_no_byte_of_a_run_is_left_and_verify_names_the_tombstone(evidence: Evidence) -> None:
    last = evidence.events(evidence.ann)[-1].seq
    assert {hit.split(": ")[1] for hit in _files_with(evidence, "quince", "a long answer")} == {
        "quince",
        "a long answer",
    }
    done = evidence.json("erase", "--run", evidence.ann, "--yes")
    assert done["wal_truncated"] and len(done["artifacts"]) == 1
    assert _files_with(evidence, "quince", "a long answer") == set()
    assert _files_with(evidence, "medlar"), "another's run is untouched"
    verdict = evidence.omni("audit", "verify")
    assert verdict.exit_code == 0
    assert f"run {evidence.ann} events 1 to {last}: erased by event {last + 1}" in verdict.stdout
    report = evidence.json("audit", "verify")
    assert [(one["run"], one["seq"], one["erased_by"]) for one in report["erased"]] == [
        (evidence.ann, seq, last + 1) for seq in range(1, last + 1)
    ]


async def test_retention_lets_go_of_what_is_old_and_keeps_what_is_not(evidence: Evidence) -> None:
    assert evidence.json("retention", "run", "--older-than", "1h")["runs"] == []
    connection = sqlite3.connect(evidence.home.log_file)
    runs = {run for (run,) in connection.execute("SELECT id FROM run_keys")}
    connection.close()
    done = evidence.json("retention", "run", "--older-than", "0s")
    assert set(done["runs"]) == runs
    assert _files_with(evidence, "quince", "medlar", "a long answer") == set()
    report = evidence.json("audit", "verify")
    assert report["ok"] and {one["run"] for one in report["erased"]} == runs
    assert evidence.json("runs", "search", "quince") == []


async def test_whose_key_is_gone_verifies_no_head_and_says_so(evidence: Evidence) -> None:
    (evidence.home.secrets / "log-head.key").unlink()
    told = evidence.omni("audit", "verify")
    assert told.exit_code == 0, told.output
    assert "heads were not checked" in told.stdout


@pytest.mark.parametrize("place", ["text", "event"])
async def test_one_changed_byte_after_an_erasure_is_still_named(evidence: Evidence, place: str) -> None:
    assert evidence.omni("erase", "--run", evidence.bob, "--yes").exit_code == 0
    connection = sqlite3.connect(evidence.home.log_file, isolation_level=None)
    for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
        connection.execute(f"DROP TRIGGER {name}")
    key = connection.execute("SELECT run FROM run_keys WHERE id = ?", (evidence.bob,)).fetchone()[0]
    gid = connection.execute("SELECT gid FROM events WHERE run = ? AND seq = 2", (key,)).fetchone()[0]
    if place == "text":
        connection.execute("UPDATE texts SET body = X'01' WHERE gid = ?", (gid,))
    else:
        connection.execute("UPDATE events SET actor = 'x' WHERE gid = ?", (gid,))
    connection.close()
    told = evidence.omni("audit", "verify")
    assert told.exit_code == 1 and f"run {evidence.bob} event 2: " in told.stdout
