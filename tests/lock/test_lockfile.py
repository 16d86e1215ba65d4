"""omni.lock as a file: what is written can be read and reviewed, and what is wrong is refused with its place."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from omni_mcp.contracts.errors import ConfigError
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.lock import Lock, LockedServer, launch_digest, launch_parts
from omni_mcp.contracts.manifest import Labels
from omni_mcp.engines.catalog.acceptance import accept, answer_to, waiting_of
from omni_mcp.engines.catalog.acceptance_record import AcceptanceRecord
from omni_mcp.engines.catalog.lockfile import LockFile
from omni_mcp.engines.catalog.lockfile_text import read_lock, write_lock
from tests.lock.world import AT, LAUNCH, READ_ONLY, tool


def with_tools(lock: Lock, *definitions: JsonObject, server: str = "notes", labels: Labels = READ_ONLY) -> Lock:
    """The lock after a person said yes to *definitions*."""
    waiting = waiting_of(lock, server, [("tool", one["name"], one) for one in definitions], LAUNCH)
    answers = [answer_to(one, one.difference(), labels) for one in waiting]
    return accept(lock, answers, by="1000", at=AT)


@pytest.fixture
def lock(tmp_path: Path) -> LockFile:
    """A file with one tool in it."""
    found = LockFile(tmp_path / "home" / "omni.lock")
    found.edit(lambda now: with_tools(now, tool()))
    return found


def test_what_was_written_is_read_again_and_nobody_else_can_write_it(lock: LockFile) -> None:
    again = LockFile(lock.path)
    assert again.now == Lock()
    assert again.reload().changed
    assert again.now == lock.now
    assert not again.reload().changed
    assert lock.path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in lock.path.parent.iterdir() if ".omni.lock." in file.name] == [".omni.lock.lock"]


def test_another_tool_changes_no_line_of_the_ones_that_were_there(lock: LockFile) -> None:
    before = lock.path.read_text().splitlines()
    lock.edit(lambda now: with_tools(now, tool("aaa"), tool("zzz")))
    after = iter(lock.path.read_text().splitlines())
    assert all(line.rstrip(",") in (found.rstrip(",") for found in after) for line in before)
    text = lock.path.read_text()
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def test_characters_that_nobody_sees_can_be_seen_in_the_file_and_are_kept(tmp_path: Path) -> None:
    lock = LockFile(tmp_path / "omni.lock")
    hidden = tool(description="Look\u200b at\u202e a\U000e0041\ufe01 note\x7f of Zoë \U0001f600.")
    lock.edit(lambda now: with_tools(now, hidden))
    text = lock.path.read_text()
    assert "\\u200b at\\u202e a\\udb40\\udc41\\ufe01 note\\u007f of Zoë \U0001f600." in text
    [(_, _, _, accepted)] = lock.read().versions()
    assert accepted.definition == hidden


def test_only_labels_that_somebody_said_stand_in_the_file_and_the_others_are_the_worst(lock: LockFile) -> None:
    data = json.loads(lock.path.read_text())
    version = data["servers"]["notes"]["items"]["tool/look"]["versions"]["1"]
    assert version["labels"] == {"destructive": False, "read_only": True}
    version["labels"] = {}
    lock.path.write_text(json.dumps(data))
    [(_, _, _, accepted)] = lock.read().versions()
    assert accepted.labels == Labels()


def test_numbers_of_versions_are_not_given_twice(lock: LockFile) -> None:
    lock.edit(lambda now: with_tools(now, tool(description="Second.")))
    data = json.loads(lock.path.read_text())
    del data["servers"]["notes"]["items"]["tool/look"]["versions"]["2"]
    lock.path.write_text(json.dumps(data))
    lock.edit(lambda now: with_tools(now, tool(description="Third.")))
    assert [version for _, _, version, _ in lock.now.versions()] == ["1", "3"]


def version_of(data: Any) -> Any:
    return data["servers"]["notes"]["items"]["tool/look"]["versions"]["1"]


def at_definition(data: Any) -> None:
    version_of(data)["definition"]["description"] = "Another."


def at_label(data: Any) -> None:
    version_of(data)["labels"]["readonly"] = True


def at_contradiction(data: Any) -> None:
    version_of(data)["labels"]["destructive"] = True


def at_unknown(data: Any) -> None:
    data["servers"]["notes"]["allow"] = True


def at_risk(data: Any) -> None:
    version_of(data)["risks"]["fun"] = {}


def at_number(data: Any) -> None:
    data["servers"]["notes"]["items"]["tool/look"]["last_version"] = 0


def at_word(data: Any) -> None:
    version_of(data)["labels"]["egress"] = "no"


def at_item(data: Any) -> None:
    data["servers"]["notes"]["items"]["gadget/x"] = data["servers"]["notes"]["items"].pop("tool/look")


VERSION_PATH = '$.servers.notes.items["tool/look"].versions["1"]'
FAULTS: list[tuple[Callable[[Any], None], str, str, str]] = [
    (at_definition, VERSION_PATH, '"1": {', "digest is not that of the definition"),
    (at_label, f"{VERSION_PATH}.labels.readonly", '"readonly"', "unknown key"),
    (at_contradiction, VERSION_PATH, '"1": {', "cannot go with"),
    (at_unknown, "$.servers.notes.allow", '"allow"', "unknown key"),
    (at_risk, f"{VERSION_PATH}.risks.fun", '"fun"', "Input should be"),
    (at_number, '$.servers.notes.items["tool/look"].last_version', '"last_version"', "greater than or equal to 1"),
    (at_word, f"{VERSION_PATH}.labels.egress", '"egress"', "valid boolean"),
    (at_item, '$.servers.notes.items["gadget/x"]', '"gadget/x"', "pattern"),
]


@pytest.mark.parametrize(("spoil", "path", "words", "message"), FAULTS, ids=[fault[0].__name__ for fault in FAULTS])
def test_a_fault_is_named_with_its_file_line_and_path(
    lock: LockFile, spoil: Callable[[Any], None], path: str, words: str, message: str
) -> None:
    data = json.loads(lock.path.read_text())
    spoil(data)
    lock.path.write_text(json.dumps(data, indent=2))
    with pytest.raises(ConfigError) as caught:
        lock.read()
    problem = caught.value.problems[0]
    assert (problem.file, problem.path) == (str(lock.path), path)
    assert message in problem.message
    assert lock.path.read_text().splitlines()[problem.line - 1].strip().startswith(words)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ('{"omni_lock": 1,\n "servers": {},\n "servers": {}}', 3, "twice"),
        ('{"omni_lock": 1,\n "servers": {"a": {"items": {}},\n\n "a": {}}}', 4, "twice"),
        ('{"omni_lock": 2, "servers": {}, "new": 1}', 1, "newer omni-mcp"),
        ('{"servers": {}}', 1, "omni_lock"),
        ("[]", 1, "omni_lock"),
        ('{"omni_lock": true}', 1, "omni_lock"),
        ('{"omni_lock": "1"}', 1, "omni_lock"),
        ('{"omni_lock": 1,\n}', 2, "not JSON"),
        ('{"omni_lock": NaN}', 0, "NaN"),
        ("[" * 100_000, 0, "not JSON"),
        ("", 1, "not JSON"),
    ],
)
def test_a_text_that_is_no_lock_is_refused(lock: LockFile, text: str, line: int, message: str) -> None:
    lock.path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        lock.read()
    assert caught.value.problems[0].line == line
    assert message in caught.value.problems[0].message


def test_a_definition_that_has_no_canonical_form_is_refused(lock: LockFile) -> None:
    for odd in ('"\\ud800"', str(2**70)):
        text = lock.path.read_text().replace('"description": "Look at a note."', f'"description": {odd}')
        spoiled = LockFile(lock.path.with_name("other.lock"))
        spoiled.path.write_text(text)
        spoiled.path.chmod(0o600)
        with pytest.raises(ConfigError, match=r"canonical form|:15: not JSON"):
            spoiled.read()


def test_a_file_that_somebody_else_could_have_written_is_refused(lock: LockFile) -> None:
    lock.path.chmod(0o622)
    with pytest.raises(ConfigError, match="others can write"):
        lock.read()
    lock.path.chmod(0o600)
    lock.path.parent.chmod(0o777)
    with pytest.raises(ConfigError, match="others can write"):
        lock.read()
    with pytest.raises(ConfigError, match="others can write"):
        lock.edit(lambda now: now)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_somebody_else_is_refused(lock: LockFile) -> None:
    os.chown(lock.path, 12345, 12345)
    with pytest.raises(ConfigError, match="belongs to user 12345"):
        lock.read()


def test_a_link_or_a_pipe_is_refused_and_hangs_nobody(lock: LockFile) -> None:
    link = LockFile(lock.path.with_name("link.lock"))
    link.path.symlink_to(lock.path)
    with pytest.raises(ConfigError, match="links are not followed"):
        link.read()
    pipe = LockFile(lock.path.with_name("pipe.lock"))
    os.mkfifo(pipe.path, 0o600)
    with pytest.raises(ConfigError, match="no regular file"):
        pipe.read()


def test_an_edit_of_a_broken_file_changes_nothing(lock: LockFile) -> None:
    lock.path.write_text("{")
    with pytest.raises(ConfigError):
        lock.edit(lambda now: with_tools(now, tool("more")))
    assert lock.path.read_text() == "{"


def add_tools(path: Path, lane: int) -> None:
    for number in range(10):
        LockFile(path).edit(lambda now, n=number: with_tools(now, tool(f"t{lane}_{n}")))  # type: ignore[misc]


def test_commands_at_the_same_time_lose_no_yes(lock: LockFile) -> None:
    context = multiprocessing.get_context("fork")
    lanes = [context.Process(target=add_tools, args=(lock.path, lane)) for lane in range(3)]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join(60)
    assert [lane.exitcode for lane in lanes] == [0, 0, 0]
    assert len(lock.read().servers["notes"].items) == 31


def test_a_launch_is_told_by_what_is_started_and_not_by_how_it_is_used() -> None:
    base = {"command": "npx", "args": ["a"], "profile": "npx", "mounts": [], "cwd": None}
    assert launch_parts(base) == launch_parts({**base, "timeout_s": 5.0, "enabled": False, "description": "Notes."})
    assert launch_parts(base).keys() == {"command", "args", "profile"}
    for other in ({"args": ["b"]}, {"mounts": ["/home"]}, {"hosts": ["a:1"]}, {"url": "https://a"}, {"cwd": "/tmp"}):
        assert launch_digest(launch_parts({**base, **other})) != launch_digest(launch_parts(base))


def test_no_word_of_a_command_line_stands_in_the_file(tmp_path: Path) -> None:
    launch = launch_parts({"command": "npx", "args": ["--token", "hunter2-very-secret"]})
    lock = LockFile(tmp_path / "omni.lock")
    lock.edit(lambda now: now.model_copy(update={"servers": {"notes": LockedServer(launch=launch)}}))
    assert "hunter2" not in lock.path.read_text()


def test_every_acceptance_and_each_of_its_risks_is_news_once_also_after_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "acceptances.json"
    lock = with_tools(Lock(), tool(), labels=Labels())
    news = AcceptanceRecord(file).news(lock)
    assert [one.code for one in news] == ["definition_accepted", "risk_flagged", "risk_flagged"]
    assert {getattr(one, "risk", "") for one in news} == {"", "write", "egress"}
    assert AcceptanceRecord(file).news(lock) == news  # nothing was kept: it may not be on record

    record = AcceptanceRecord(file)
    record.keep(lock)
    assert record.news(lock) == []
    assert AcceptanceRecord(file).news(lock) == []
    more = with_tools(lock, tool(description="Second."), labels=Labels())
    [second] = AcceptanceRecord(file).news(more)
    assert (second.code, getattr(second, "version", "")) == ("definition_accepted", "2")
    file.write_text("{")
    with pytest.raises(ConfigError, match="remove it"):
        AcceptanceRecord(file)


def test_the_file_on_the_page_is_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "lockfile.md").read_text(encoding="utf-8")
    text = page.split("```json\n")[1].split("```")[0]
    assert write_lock(read_lock(text, file="docs/lockfile.md")) == text
