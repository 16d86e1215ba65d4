"""An older copy of the whole log is noticed: by its anchor at the start, by a head that somebody noted at any time."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from omni_mcp.cli.root import cli
from omni_mcp.contracts.errors import LogCorrupt
from omni_mcp.engines.runlog.anchor import ANCHOR_FILE, AnchorKeeper, check_anchor, find_anchor
from omni_mcp.engines.runlog.connection import open_reader
from omni_mcp.engines.runlog.heads import GlobalHead
from omni_mcp.engines.runlog.keys import find_keys, make_keys
from tests.runlog.conftest import Place, new_run, said

WAIT_S = 30.0


def _anchor(place: Place) -> Path:
    return place.keys / ANCHOR_FILE


async def _write(place: Place, events: int) -> None:
    async with place.open() as log:
        run = await new_run(log)
        for number in range(events - 1):
            await log.append(run, said(f"text {number}")).durable()


async def _put_back(place: Place) -> None:
    """Write 5 events, take a copy, write 5 more, and put the copy back."""
    await _write(place, 5)
    copy = place.directory / "copy.db"
    shutil.copy(place.file, copy)
    await _write(place, 5)
    shutil.copy(copy, place.file)


def _run(place: Place, *words: str) -> Result:
    return CliRunner(env={"OMNI_HOME": str(place.directory)}).invoke(cli, words)


def _verify(place: Place, *words: str) -> tuple[int, dict[str, object], str]:
    result = _run(place, "audit", "verify", *words, "--json")
    report = json.loads(result.stdout)
    return result.exit_code, report, " ".join(fault["what"] for fault in report["faults"])


async def test_an_older_copy_of_the_log_is_refused_at_start_and_named(place: Place) -> None:
    await _put_back(place)
    with pytest.raises(LogCorrupt, match="older than it was") as refusal:
        async with place.open():
            pass
    assert "has 5 events, and had 10" in refusal.value.detail and "move" in refusal.value.detail
    code, _, faults = _verify(place)
    assert code == 1 and "it has 5 events, and had 10" in faults


async def test_erasing_and_rebuilding_refuse_an_older_copy_too(place: Place) -> None:
    await _put_back(place)
    for words in (("erase", "--run", "last", "--yes"), ("retention", "run", "--older-than", "1d"), ("db", "rebuild")):
        result = _run(place, *words)
        assert result.exit_code == 1 and "older than it was" in result.output


async def test_a_history_that_was_written_again_is_refused_though_it_is_longer(place: Place) -> None:
    await _write(place, 5)
    copy = place.directory / "copy.db"
    shutil.copy(place.file, copy)
    await _write(place, 5)
    anchor = _anchor(place).read_bytes()
    shutil.copy(copy, place.file)
    _anchor(place).unlink()
    await _write(place, 9)
    _anchor(place).write_bytes(anchor)
    with pytest.raises(LogCorrupt, match="not the one that was written here"):
        async with place.open():
            pass
    code, _, faults = _verify(place)
    assert code == 1 and "its first 10 events are not those" in faults


async def test_a_lost_anchor_is_said_and_made_anew(place: Place) -> None:
    await _put_back(place)
    _anchor(place).unlink()
    code, report, _ = _verify(place)
    assert code == 0 and "there is no anchor" in str(report["notes"])
    async with place.open() as log:
        assert any(ANCHOR_FILE in notice for notice in log.notices) and log.problems == log.notices
        await new_run(log)
    async with place.open() as log:
        assert log.notices == ()


async def test_a_new_log_has_nothing_to_say(place: Place) -> None:
    async with place.open() as log:
        await new_run(log)
        assert (log.notices, log.problems) == ((), ())


async def test_after_a_crash_the_log_may_be_ahead_of_its_anchor(place: Place) -> None:
    await _write(place, 5)
    earlier = _anchor(place).read_bytes()
    await _write(place, 5)
    _anchor(place).write_bytes(earlier)
    async with place.open() as log:
        assert log.notices == ()
    assert _verify(place)[0] == 0


async def test_events_that_come_while_the_anchor_is_compared_are_no_fault(place: Place) -> None:
    """The command line compares beside a gateway that goes on writing: with the head that it has read."""
    await _write(place, 5)
    keys = find_keys(place.keys)
    assert keys is not None
    anchor = find_anchor(place.keys, keys)
    assert anchor is not None
    await _write(place, 5)
    with closing(open_reader(place.file)) as connection:
        check_anchor(connection, anchor, GlobalHead(anchor.count, anchor.hash))
        with pytest.raises(LogCorrupt, match="not the one"):
            check_anchor(connection, anchor, GlobalHead(7, anchor.hash))


@pytest.mark.parametrize(("old", "new"), [(b'"count":5', b'"count":4'), (b"{", b"["), (b'"mac"', b'"cam"')])
async def test_a_changed_anchor_is_refused(place: Place, old: bytes, new: bytes) -> None:
    await _write(place, 5)
    found = _anchor(place).read_bytes()
    assert old in found
    _anchor(place).write_bytes(found.replace(old, new, 1))
    with pytest.raises(LogCorrupt, match="anchor"):
        async with place.open():
            pass
    code, _, faults = _verify(place)
    assert code == 1 and "anchor" in faults


async def test_the_mac_of_a_head_in_the_database_makes_no_anchor(place: Place) -> None:
    await _write(place, 5)
    keys = find_keys(place.keys)
    assert keys is not None
    found = json.loads(_anchor(place).read_bytes())
    found["mac"] = keys.head_mac("*", found["count"], bytes.fromhex(found["hash"])).hex()
    _anchor(place).write_text(json.dumps(found))
    with pytest.raises(LogCorrupt, match="does not fit its key"):
        find_anchor(place.keys, keys)


async def test_a_running_gateway_anchors_what_it_wrote_within_a_second_or_so(place: Place) -> None:
    async with place.open() as log:
        run = await new_run(log)
        for number in range(4):
            await log.append(run, said(f"text {number}")).durable()
        keys = find_keys(place.keys)
        assert keys is not None

        def anchored() -> bool:
            anchor = find_anchor(place.keys, keys)
            return anchor is not None and anchor.count == 5

        await asyncio.to_thread(_until, anchored)


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_anchor_is_written_at_most_once_a_second_and_a_failure_is_told(tmp_path: Path) -> None:
    directory = tmp_path / "secrets"
    keys = make_keys(directory)
    keeper = AnchorKeeper(directory, keys, kept=3)
    assert keeper.due_in_s(3) is None and keeper.due_in_s(4) == 0
    keeper.keep(GlobalHead(4, bytes(32)))
    later_s = keeper.due_in_s(5)
    assert keeper.due_in_s(4) is None and later_s is not None and 0.5 < later_s <= 1
    (directory / ANCHOR_FILE).unlink()
    (directory / ANCHOR_FILE).mkdir()
    (directory / ANCHOR_FILE / "in the way").touch()
    keeper.keep(GlobalHead(5, bytes(32)))
    assert "cannot be written" in keeper.problem and keeper.due_in_s(5) is not None


async def test_a_noted_head_is_contained_in_what_came_after_it_and_not_in_an_older_copy(place: Place) -> None:
    await _write(place, 5)
    copy, noted = place.directory / "copy.db", str(_verify(place)[1]["head"])
    shutil.copy(place.file, copy)
    await _write(place, 5)
    out = place.directory / "all.jsonl"
    exported = json.loads(_run(place, "audit", "export", "--all", "-o", str(out), "--json").stdout)
    assert noted.startswith("5:") and exported["head"].startswith("10:")
    for head in (noted, exported["head"]):
        assert _verify(place, "--head", head)[0] == 0
        assert _verify(place, str(out), "--head", head)[0] == 0
        assert f"head {exported['head']}" in _run(place, "audit", "verify", "--head", head).stdout
    assert _verify(place, str(copy), "--head", noted)[0] == 0
    code, _, faults = _verify(place, str(copy), "--head", exported["head"])
    assert code == 1 and "it has 5 events, and had 10 by --head" in faults
    code, _, faults = _verify(place, "--head", f"5:{'0' * 64}")
    assert code == 1 and "its first 5 events are not those" in faults


async def test_a_head_that_is_none_and_a_run_to_compare_it_with_are_refused(place: Place) -> None:
    await _write(place, 5)
    for word in ("5", "5:xyz", "-1:" + "0" * 64, ""):
        result = _run(place, "audit", "verify", "--head", word)
        assert result.exit_code == 2 and "COUNT:HASH" in result.output
    out = place.directory / "one.jsonl"
    assert _run(place, "audit", "export", "last", "-o", str(out)).exit_code == 0
    code, _, faults = _verify(place, str(out), "--head", f"5:{'0' * 64}")
    assert code == 1 and "one run" in faults
