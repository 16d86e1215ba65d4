"""What was really asked and answered lies sealed beside the events: unreadable without the keys, gone once erased."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from omni_mcp.config import LogSettings, Settings
from omni_mcp.contracts.call import Answer, Call
from omni_mcp.contracts.errors import LogCorrupt
from omni_mcp.contracts.events import draft
from omni_mcp.engines.artifacts.blobs import BlobStore
from omni_mcp.engines.runlog.bodies_reader import read_bodies
from omni_mcp.engines.runlog.erase import Eraser
from omni_mcp.engines.runlog.keys import BODIES_KEY_FILE, find_keys
from omni_mcp.engines.runlog.store import open_ledger
from omni_mcp.engines.runlog.verify import Report, verify_database
from omni_mcp.paths import Home
from omni_mcp.testing import Canary
from tests.replay.conftest import home_of, newest, recording
from tests.runlog.conftest import ANNA, Place, asked

PASSWORD = "correct-horse-battery"
REGISTERED = "staple-of-the-operator"
LARGE = "zebra " * 60_000


async def _say_it(call: Call) -> Answer:
    text = LARGE if call.arguments.get("large") else "told"
    return Answer(body={"content": [{"type": "text", "text": text}], "note": {"password": PASSWORD}}, where="remote")


async def _record(canary: Canary, place: Path, *calls: dict[str, object], settings: Settings | None = None) -> None:
    canary.tool("say", _say_it)
    async with recording(canary, place, settings=settings) as here, here.client() as client:
        for arguments in calls:
            await client.call("canary__say", arguments)


def _verified(home: Home) -> Report:
    return verify_database(home.log_file, find_keys(home.secrets))


def _erase(home: Home, run: str, call: str | None = None) -> None:
    ledger = open_ledger(home.log_file, home.secrets, events_per_run=100_000).ledger
    blobs = BlobStore(home.artifacts)
    try:
        Eraser(ledger, home.log_file, blobs, by="operator:test").erase(run, call=call, reason="test")
    finally:
        blobs.close()
        ledger.connection.close()


def _files_with(home: Home, text: str) -> list[str]:
    return [str(file) for file in home.data.rglob("*") if file.is_file() and text.encode() in file.read_bytes()]


def _change(home: Home, sql: str, *values: object) -> None:
    """Change the file as somebody would who has it: without the guards."""
    with closing(sqlite3.connect(home.log_file)) as connection:
        triggers = connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            connection.execute(f'DROP TRIGGER "{name}"')
        assert connection.execute(sql, values).rowcount == 1
        for _, text in triggers:
            connection.execute(text)
        connection.commit()


async def test_what_the_events_mask_is_in_no_byte_and_can_still_be_given_again(canary: Canary, tmp_path: Path) -> None:
    await _record(canary, tmp_path, {"password": PASSWORD})
    home, run = home_of(tmp_path), newest(tmp_path)

    assert _files_with(home, PASSWORD) == [], "a sealed body is readable"
    call = run.calls[0]
    assert call.arguments == {"password": PASSWORD}
    assert call.steps[0].result is not None and call.steps[0].result["note"] == {"password": PASSWORD}
    assert call.principal.key == 'User::"ann"@default' and call.client.era == "modern"
    assert _verified(home).ok


async def test_a_registered_secret_is_in_no_body_of_an_answer(canary: Canary, tmp_path: Path) -> None:
    os.environ["OMNI_TEST_STAPLE"] = REGISTERED
    try:

        async def leak(call: Call) -> Answer:
            await call.link.log("info", REGISTERED, None)
            return Answer(body={"content": [{"type": "text", "text": f"key {REGISTERED}"}]}, where="remote")

        canary.tool("leak", leak)
        settings = Settings(secrets={"staple": "env:OMNI_TEST_STAPLE"})
        async with recording(canary, tmp_path, settings=settings) as here, here.client() as client:
            await client.call("canary__leak")
    finally:
        del os.environ["OMNI_TEST_STAPLE"]

    step = newest(tmp_path).calls[0].steps[0]
    assert REGISTERED not in str(step) and step.result is not None
    assert _files_with(home_of(tmp_path), REGISTERED) == []


async def test_reads_of_the_log_itself_have_no_bodies(canary: Canary, tmp_path: Path) -> None:
    async with recording(canary, tmp_path) as here, here.client() as client:
        await client.call("runs__list")
    with closing(sqlite3.connect(home_of(tmp_path).log_file)) as connection:
        assert connection.execute("SELECT count(*) FROM bodies").fetchone() == (0,)


@pytest.mark.parametrize(
    ("log", "kept"),
    [
        (LogSettings(), True),
        (LogSettings(keep_bodies=False), False),
        (LogSettings(keep_bodies=False, keep_bodies_of={"default": True}), True),
        (LogSettings(keep_bodies_of={"default": False, "other": True}), False),
    ],
)
async def test_a_project_keeps_bodies_or_not(canary: Canary, tmp_path: Path, log: LogSettings, kept: bool) -> None:
    await _record(canary, tmp_path, {"n": 1}, settings=Settings(log=log))

    assert (newest(tmp_path).calls[0].steps[0].result is not None) == kept
    assert newest(tmp_path).calls[0].arguments == {"n": 1}, "nothing was masked, so they are known anyhow"


async def test_each_way_to_change_a_body_is_named(canary: Canary, tmp_path: Path) -> None:
    await _record(canary, tmp_path, {"n": 1}, {"n": 2, "large": True})
    home, run = home_of(tmp_path), newest(tmp_path)
    first, second = (call.events[0].gid for call in run.calls)
    large = run.calls[1].outcome
    assert large is not None
    file = home.data / "bodies" / f"{large.gid}.sealed"
    whole = file.read_bytes()
    with closing(sqlite3.connect(home.log_file)) as connection:
        rows = dict(connection.execute("SELECT gid, sealed FROM bodies"))

    def fault() -> str:
        return "; ".join(map(str, _verified(home).faults))

    assert fault() == ""
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert f"event {large.seq}: changed: its sealed body" in fault()
    file.unlink()
    assert f"event {large.seq}: its sealed body is gone" in fault()
    with pytest.raises(LogCorrupt, match="cannot be opened"):
        newest(tmp_path)
    file.write_bytes(whole)
    assert fault() == ""
    _change(home, "UPDATE bodies SET sealed = ? WHERE gid = ?", rows[second], first)
    assert f"event {run.calls[0].events[0].seq}: changed: its sealed body" in fault()
    _change(home, "DELETE FROM bodies WHERE gid = ?", first)
    assert f"event {run.calls[0].events[0].seq}: its sealed body is gone" in fault()


async def test_the_guards_refuse_changes_of_bodies_and_keys_by_any_other_program(
    canary: Canary, tmp_path: Path
) -> None:
    await _record(canary, tmp_path, {"n": 1})
    with closing(sqlite3.connect(home_of(tmp_path).log_file)) as connection:
        for sql in (
            "UPDATE bodies SET sealed = zeroblob(length(sealed))", "DELETE FROM bodies",
            "INSERT OR REPLACE INTO bodies SELECT gid, x'00' FROM bodies", "DELETE FROM body_keys",
            "UPDATE body_keys SET wrapped = zeroblob(length(wrapped))",
        ):  # fmt: skip
            with pytest.raises(sqlite3.Error):
                connection.execute(sql)


async def test_with_another_key_nothing_opens(canary: Canary, tmp_path: Path) -> None:
    await _record(canary, tmp_path, {"n": 1})
    home = home_of(tmp_path)
    (home.secrets / BODIES_KEY_FILE).write_bytes(bytes(32))

    with pytest.raises(LogCorrupt, match="cannot be opened"):
        newest(tmp_path)
    assert _verified(home).ok, "the chain needs no key of bodies"


async def test_an_erased_run_has_no_key_no_body_and_no_file_and_still_verifies(canary: Canary, tmp_path: Path) -> None:
    await _record(canary, tmp_path, {"password": PASSWORD}, {"large": True})
    home, run = home_of(tmp_path), newest(tmp_path)
    keys = find_keys(home.secrets)
    assert keys is not None and list((home.data / "bodies").iterdir())
    with closing(sqlite3.connect(home.log_file)) as connection:
        sealed = [row for (row,) in connection.execute("SELECT sealed FROM bodies") if row]
        (wrapped,) = connection.execute("SELECT wrapped FROM body_keys").fetchone()

    _erase(home, run.id)

    assert list((home.data / "bodies").iterdir()) == []
    assert read_bodies(home.log_file, keys, run.id) == {}
    everything = [file.read_bytes() for file in home.data.rglob("*") if file.is_file()]
    assert not any(secret[:48] in data for secret in [wrapped, *sealed] for data in everything)
    report = _verified(home)
    assert report.ok and report.erased
    assert [call.steps[0].missing for call in newest(tmp_path).calls] == ["it was erased"] * 2


async def test_an_erased_call_takes_its_own_bodies_and_no_others(canary: Canary, tmp_path: Path) -> None:
    await _record(canary, tmp_path, {"n": 1, "large": True}, {"n": 2, "large": True})
    home, run = home_of(tmp_path), newest(tmp_path)

    _erase(home, run.id, run.calls[0].id)

    first, second = newest(tmp_path).calls
    assert first.arguments is None and first.steps[0].missing
    assert second.arguments == {"n": 2, "large": True} and LARGE[:50] in str(second.steps[0].result)
    assert len(list((home.data / "bodies").iterdir())) == 1
    assert _verified(home).ok


async def test_a_run_that_goes_on_after_its_erasure_seals_under_another_key(canary: Canary, tmp_path: Path) -> None:
    """The gateway had the old key in memory when the command line destroyed it."""
    canary.tool("say", _say_it)
    async with recording(canary, tmp_path) as here, here.client() as client:
        await client.call("canary__say", {"n": 1})
        await here.gateway.log.flush_index()
        _erase(home_of(tmp_path), newest(tmp_path).id)
        await client.call("canary__say", {"n": 2})

    calls = newest(tmp_path).calls
    assert [call.arguments for call in calls] == [None, {"n": 2}]
    assert _verified(home_of(tmp_path)).ok


async def test_what_a_crash_left_of_a_body_goes_with_the_next_start_and_harms_no_verification(tmp_path: Path) -> None:
    """Source: a body in a file is whole before the transaction of its event is committed."""
    place = Place(tmp_path)
    async with place.open() as log:
        run = await log.create_run(kind="session", principal=ANNA, actor=ANNA.key, client={})
        event = asked("c1")
        body = draft(event.payload, actor=ANNA.key, call="c1", body=b"[" + b"1," * 60_000 + b"1]")
        await log.append(run, body).durable()
    bodies = place.file.parent / "bodies"
    kept = {file.name for file in bodies.iterdir()}
    for name in ("77.sealed", "78.part", "notes.txt"):
        (bodies / name).write_bytes(b"x")

    assert verify_database(place.file, find_keys(place.keys)).ok
    async with place.open():
        assert {file.name for file in bodies.iterdir()} == kept
    assert len(kept) == 1


KILLED = """
import asyncio, sys
from pathlib import Path
from tests.runlog.conftest import ANNA, Place, asked
from omni_mcp.contracts.events import draft
from omni_mcp.contracts.ids import new_id

async def main():
    async with Place(Path(sys.argv[1])).open() as log:
        run = await log.create_run(kind="session", principal=ANNA, actor=ANNA.key, client={})
        print("ready", flush=True)
        while True:
            tickets = []
            for size in (10, 30_000, 100_000):
                call = new_id()
                body = b"[" + b"1," * size + b"1]"
                tickets.append(log.append(run, draft(asked(call).payload, actor=ANNA.key, call=call, body=body)))
            for ticket in tickets:
                await ticket.durable()
            print("on disk", flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("after", range(1, 5))
def test_killed_at_any_moment_the_log_verifies_and_every_body_is_whole(tmp_path: Path, after: int) -> None:
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        for _ in range(after + 1):  # what is on disk then; the next group is somewhere between body and event
            child.stdout.readline()
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert child.stdout is not None
        child.stdout.close()

    place = Place(tmp_path)
    keys = find_keys(place.keys)
    assert keys is not None
    report = verify_database(place.file, keys)
    assert report.ok, report.faults
    with closing(sqlite3.connect(place.file)) as connection:
        (run,) = connection.execute("SELECT id FROM run_keys").fetchone()
    assert len(read_bodies(place.file, keys, run)) >= 3 * after
