"""Promise 11: who keeps heads elsewhere sees that a log was cut, whoever holds its keys."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import orjson
import pytest

from omni_mcp.engines.runlog.signing import SigningKey, signed_document
from omni_mcp.testing import ALLOW_ALL, Canary, local_gateway
from tests.evidence.conftest import Evidence


async def _goes_on(evidence: Evidence, directory: Path) -> str:
    """Let another gateway work in the same home; returns its client's run."""
    canary = Canary(directory / "touched")
    canary.tool("echo")
    async with local_gateway(ALLOW_ALL, canary=canary, directory=directory, cells=False) as here:
        async with here.client(version="2025-11-25") as client:
            await client.call("canary__echo", {"word": "later"})
            return client.run or ""


async def test_a_log_that_went_on_still_contains_its_anchor(evidence: Evidence, tmp_path: Path) -> None:
    file = str(tmp_path / "anchor.json")
    written = evidence.json("audit", "anchor", "write", file)
    assert evidence.json("audit", "anchor", "check", file)["ok"]
    await _goes_on(evidence, tmp_path)
    assert evidence.omni("erase", "--run", evidence.ann, "--yes").exit_code == 0
    report = evidence.json("audit", "anchor", "check", file, "--key", written["fingerprint"])
    assert report["ok"] and report["anchored"]["head"] == written["head"], "an erasure takes no event away"


async def test_a_log_put_back_with_keys_and_own_anchor_is_named_event_by_event(
    evidence: Evidence, tmp_path: Path
) -> None:
    """Everything of the home is put back, so nothing in it can tell."""
    before = tmp_path / "before"
    shutil.copytree(evidence.home.config, before)
    run = await _goes_on(evidence, tmp_path)
    events = [event.seq for event in evidence.events(run)]
    file = str(tmp_path / "anchor.json")
    evidence.json("audit", "anchor", "write", file)
    shutil.rmtree(evidence.home.config)
    shutil.copytree(before, evidence.home.config)
    assert evidence.omni("audit", "verify").exit_code == 0
    report = evidence.json("audit", "anchor", "check", file, code=1)
    named = {(fault["run"], fault["seq"]) for fault in report["faults"]}
    assert {(run, seq) for seq in events} <= named
    text = evidence.omni("audit", "anchor", "check", file)
    assert text.exit_code == 1 and f"run {run} event {events[-1]}: cut off" in text.stdout


async def test_an_end_that_was_cut_with_the_key_in_hand_is_named(evidence: Evidence, tmp_path: Path) -> None:
    """What the owner of the machine can do: drop the last event of a run and make all heads anew."""
    from omni_mcp.engines.runlog.heads import GlobalHead, Head, roll, save_heads
    from omni_mcp.engines.runlog.keys import find_keys

    file = str(tmp_path / "anchor.json")
    evidence.json("audit", "anchor", "write", file)
    keys = find_keys(evidence.home.secrets)
    assert keys is not None
    connection = sqlite3.connect(evidence.home.log_file, isolation_level=None)
    for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
        connection.execute(f"DROP TRIGGER {name}")
    run, seq, gid, key = connection.execute(
        "SELECT k.id, e.seq, e.gid, e.run FROM events e JOIN run_keys k ON k.run = e.run ORDER BY e.gid DESC LIMIT 1"
    ).fetchone()
    connection.execute("DELETE FROM events WHERE gid = ?", (gid,))
    connection.execute("DELETE FROM texts WHERE gid = ?", (gid,))
    last = connection.execute("SELECT seq, hash FROM events WHERE run = ? ORDER BY seq DESC LIMIT 1", (key,)).fetchone()
    total = GlobalHead()
    for number, digest in connection.execute("SELECT gid, hash FROM events ORDER BY gid"):
        total = GlobalHead(number, roll(total.hash, digest))
    save_heads(connection, keys, [Head(key, run, *last)], total)
    connection.close()
    report = evidence.json("audit", "anchor", "check", file, code=1)
    assert (run, seq) in {(fault["run"], fault["seq"]) for fault in report["faults"]}


async def test_an_anchor_that_was_edited_or_signed_by_another_proves_nothing(
    evidence: Evidence, tmp_path: Path
) -> None:
    file = tmp_path / "anchor.json"
    evidence.json("audit", "anchor", "write", str(file))
    good = file.read_bytes()
    document = orjson.loads(good)["document"]
    file.write_bytes(good.replace(b'"count":', b'"count":1', 1))
    assert evidence.json("audit", "anchor", "check", str(file), code=1)["error"]["code"] == "log_corrupt"
    other = SigningKey(bytes(32))
    file.write_bytes(signed_document(other, "log anchor", document))
    assert "proves nothing" in evidence.omni("audit", "anchor", "check", str(file)).stdout
    assert evidence.omni("audit", "anchor", "check", str(file), "--key", other.fingerprint).exit_code == 0
    file.write_bytes(b"{}")
    assert evidence.omni("audit", "anchor", "check", str(file)).exit_code == 1


@pytest.mark.parametrize("words", [("audit", "anchor", "write"), ("audit", "export", "--all", "-o")])
def test_without_a_log_nothing_is_written(tmp_path: Path, words: tuple[str, ...]) -> None:
    from omni_mcp.testing import home_in

    nobody = Evidence(home_in(tmp_path), "", "")
    told = nobody.omni(*words, str(tmp_path / "out"))
    assert told.exit_code == 1 and "no run log yet" in told.output
    assert not (tmp_path / "out").exists() and not nobody.home.log_file.exists()
