"""Tokens stand for principals, only while their file is private, they have not expired and nobody revoked them."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.errors import BadRequest, ConfigError, Conflict, NotFound
from omni_mcp.engines.identity.keys import KeyRing, local_user, mint_first_token, parse_span_s, read_token

CODER = Principal(kind="Agent", id="coder", owner="1000", project="site")


class Clock:
    """Time that a test moves by hand."""

    def __init__(self) -> None:
        self.at_ns = 1_000_000_000_000

    def __call__(self) -> int:
        return self.at_ns


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir(mode=0o700)
    return tmp_path / "data" / "keys.json"


def test_a_token_stands_for_the_principal_it_was_made_for(file: Path) -> None:
    keys = KeyRing(file)
    token = keys.create("laptop", CODER)
    assert keys.principal_of(token) == CODER
    assert KeyRing(file).principal_of(token) == CODER


@pytest.mark.parametrize("wrong", ["", "x", "omni_", "omni_" + "A" * 43, "\udcff", "é" * 50, "omni_\x00"])
def test_no_other_text_stands_for_anybody(file: Path, wrong: str) -> None:
    keys = KeyRing(file)
    token = keys.create("laptop", CODER)
    assert keys.principal_of(wrong) is None
    assert keys.principal_of(token + " ") is None
    assert keys.principal_of(token[:-1]) is None


def test_the_file_holds_no_token_and_only_its_owner_can_read_it(file: Path) -> None:
    token = KeyRing(file).create("laptop", CODER)
    text = file.read_text()
    assert token not in text and token.removeprefix("omni_") not in text
    assert file.stat().st_mode & 0o777 == 0o600


def test_tokens_are_long_and_never_the_same(file: Path) -> None:
    keys = KeyRing(file)
    made = {keys.create(f"key-{number}", CODER) for number in range(20)}
    assert len(made) == 20 and min(map(len, made)) >= 48


def test_a_revocation_by_another_process_acts_on_the_next_request(file: Path) -> None:
    daemon, command_line = KeyRing(file), KeyRing(file)
    token = command_line.create("laptop", CODER)
    assert daemon.principal_of(token) == CODER
    command_line.revoke("laptop")
    assert daemon.principal_of(token) is None


def test_a_key_ring_knows_at_once_what_it_changed_itself(file: Path) -> None:
    keys = KeyRing(file)
    token = keys.create("laptop", CODER)
    assert keys.principal_of(token) == CODER
    keys.revoke("laptop")
    assert keys.principal_of(token) is None


def test_a_revoked_token_stays_revoked_when_its_name_is_used_again(file: Path) -> None:
    keys = KeyRing(file)
    old = keys.create("laptop", CODER)
    keys.revoke("laptop")
    new = keys.create("laptop", CODER)
    assert keys.principal_of(old) is None
    assert keys.principal_of(new) == CODER


def test_a_token_ends_at_its_expiry(file: Path) -> None:
    clock = Clock()
    keys = KeyRing(file, now_ns=clock)
    token = keys.create("guest", CODER, expires_at_ns=clock.at_ns + 10)
    clock.at_ns += 9
    assert keys.principal_of(token) == CODER
    clock.at_ns += 1
    assert keys.principal_of(token) is None


def test_a_name_in_use_is_refused_and_a_missing_one_cannot_be_revoked(file: Path) -> None:
    keys = KeyRing(file)
    keys.create("laptop", CODER)
    with pytest.raises(Conflict, match="keys revoke laptop"):
        keys.create("laptop", CODER)
    with pytest.raises(NotFound):
        keys.revoke("phone")


@pytest.mark.parametrize("name", ["", "../x", "a b", "x" * 65, "-x", "a\n"])
def test_a_name_that_is_no_name_is_refused(file: Path, name: str) -> None:
    with pytest.raises(BadRequest):
        KeyRing(file).create(name, CODER)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o660, 0o666, 0o610, 0o777])
def test_a_file_that_others_can_touch_is_refused_at_the_start_and_while_running(file: Path, mode: int) -> None:
    keys = KeyRing(file)
    token = keys.create("laptop", CODER)
    file.chmod(mode)
    assert keys.principal_of(token) is None
    assert "chmod 600" in str(keys.problem)
    with pytest.raises(ConfigError, match="chmod 600"):
        KeyRing(file)
    file.chmod(0o600)
    assert keys.principal_of(token) == CODER


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777, 0o1777])
def test_a_directory_that_others_can_write_to_is_refused(file: Path, mode: int) -> None:
    keys = KeyRing(file)
    token = keys.create("laptop", CODER)
    file.parent.chmod(mode)
    assert keys.principal_of(token) is None
    with pytest.raises(ConfigError, match="chmod 700"):
        KeyRing(file)


def test_a_link_in_its_place_is_refused(file: Path, tmp_path: Path) -> None:
    KeyRing(file).create("laptop", CODER)
    os.rename(file, tmp_path / "elsewhere.json")
    file.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(ConfigError, match="not a link"):
        KeyRing(file)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused(file: Path) -> None:
    KeyRing(file).create("laptop", CODER)
    os.chown(file, 12345, 12345)
    with pytest.raises(ConfigError, match="belongs to user 12345"):
        KeyRing(file)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"version": 3, "keys": []}',
        '{"version": 1, "keys": [], "extra": 1}',
        '{"version":1,"keys":[{}]}',
    ],
)
def test_a_file_that_cannot_be_understood_lets_nobody_in(file: Path, text: str) -> None:
    keys = KeyRing(file)
    token = keys.create("laptop", CODER)
    file.write_text(text)
    assert keys.principal_of(token) is None
    with pytest.raises(ConfigError, match="cannot be understood"):
        KeyRing(file)


def test_the_first_start_mints_one_token_and_the_second_none(file: Path) -> None:
    token_file = file.with_name("token")
    assert mint_first_token(file, token_file, uid=1000)
    token = read_token(token_file)
    assert token is not None and KeyRing(file).principal_of(token) == local_user(1000, roles=("operator",))
    assert token_file.stat().st_mode & 0o777 == 0o600
    assert not mint_first_token(file, token_file, uid=1000)
    assert read_token(token_file) == token


def test_of_a_file_from_before_there_were_operators_the_first_key_is_one_and_no_other(file: Path) -> None:
    tokens = [KeyRing(file).create(name, local_user(1000)) for name in ("first", "laptop")]
    stored = json.loads(file.read_text())
    file.write_text(json.dumps({**stored, "version": 1}))
    ring = KeyRing(file)
    found = [ring.principal_of(token) for token in tokens]
    assert [one is not None and one.is_operator for one in found] == [True, False]
    ring.create("tablet", local_user(1000))
    again = [ring.principal_of(token) for token in tokens]
    assert again == found, "a file that was written again still says so"


def test_an_agents_key_called_first_from_before_there_were_operators_is_none(file: Path) -> None:
    token = KeyRing(file).create("first", Principal(kind="Agent", id="bot", owner="1000"))
    file.write_text(json.dumps({**json.loads(file.read_text()), "version": 1}))
    who = KeyRing(file).principal_of(token)
    assert who is not None and not who.is_operator


def test_a_key_called_first_is_no_operator_by_its_name(file: Path) -> None:
    mint_first_token(file, file.with_name("token"), uid=1000)
    KeyRing(file).revoke("first")
    who = KeyRing(file).principal_of(KeyRing(file).create("first", local_user(1000)))
    assert who is not None and not who.is_operator


def test_a_first_token_that_was_revoked_does_not_come_back(file: Path) -> None:
    token_file = file.with_name("token")
    mint_first_token(file, token_file, uid=1000)
    KeyRing(file).revoke("first")
    assert not mint_first_token(file, token_file, uid=1000)


def test_a_crash_between_token_and_hash_is_mended_by_the_next_start(file: Path) -> None:
    token_file = file.with_name("token")
    token_file.write_text("omni_left-over\n")
    token_file.chmod(0o600)
    assert mint_first_token(file, token_file, uid=1000)
    token = read_token(token_file)
    assert token != "omni_left-over" and KeyRing(file).principal_of(str(token)) is not None


def _create_some(file: str, prefix: str) -> None:
    for number in range(10):
        KeyRing(Path(file)).create(f"{prefix}-{number}", CODER)


def test_two_processes_that_write_at_once_lose_nothing(file: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_create_some, args=(str(file), prefix)) for prefix in ("a", "b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert len(KeyRing(file).keys()) == 20
    assert len(json.loads(file.read_text())["keys"]) == 20


@pytest.mark.parametrize(
    ("text", "seconds"), [("30d", 2592000), ("12h", 43200), ("90m", 5400), ("5s", 5), ("1w", 604800)]
)
def test_a_span_means_seconds(text: str, seconds: int) -> None:
    assert parse_span_s(text) == seconds


@pytest.mark.parametrize("text", ["", "0d", "-1d", "1.5h", "d", "1y", "1d1h", " 1d", "99999999d"])
def test_what_is_no_span_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="for example"):
        parse_span_s(text)
