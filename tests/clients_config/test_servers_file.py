"""servers.toml: a strict schema, read only where nobody else can write."""

from __future__ import annotations

import os
import re
import threading
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_mcp.contracts.errors import ConfigError
from omni_mcp.server_definition import ServerDefinition, Servers, preset_of
from omni_mcp.servers_file import (
    check_disjoint,
    edit_servers,
    load_servers,
    names_in_settings,
    read_server_secrets,
    save_servers,
    to_toml,
)
from omni_mcp.toml_writer import toml_value

FULL = """\
[servers.notes]
description = "My notes."
command = "npx"
args = ["-y", "server-notes", "/home/ann/notes"]
cwd = "/home/ann/notes"
mounts = [{source = "/home/ann/notes", writable = true}, {source = "/usr/share/x"}]
hosts = ["api.example.org:443", "*.example.net:443"]
timeout_s = 30.0

[servers.notes.env]
LOG = "warn"

[servers.notes.secrets]
NOTES_KEY = "notes-key"

[servers.search]
url = "https://mcp.example.org/mcp"
headers = {Authorization = "Bearer secret:search-token", X-Team = "blue"}
transport = "http"
stateful = true
enabled = false

[secrets]
notes-key = "env:NOTES_KEY"
search-token = "file:/home/ann/token"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    directory = tmp_path / "omni"
    directory.mkdir(mode=0o700)
    return directory / "servers.toml"


def put(file: Path, text: str) -> Path:
    file.write_text(text)
    file.chmod(0o600)
    return file


def refused(file: Path, text: str | None = None) -> str:
    with pytest.raises(ConfigError) as error:
        load_servers(file if text is None else put(file, text))
    return error.value.message


def test_a_full_file_is_read_and_written_back_as_it_was_meant(file: Path) -> None:
    found = load_servers(put(file, FULL))
    assert found.servers["notes"].mounts[0].writable and not found.servers["notes"].mounts[1].writable
    assert (found.servers["notes"].profile, found.servers["search"].profile) == ("npx", "server")
    save_servers(file, found)
    assert load_servers(file) == found
    assert list(load_servers(file).servers) == ["notes", "search"]
    assert file.stat().st_mode & 0o777 == 0o600
    assert [other.name for other in file.parent.iterdir()] == ["servers.toml"]


def test_a_missing_file_means_no_servers(file: Path) -> None:
    assert load_servers(file) == Servers()
    assert load_servers(file.parent / "nowhere" / "servers.toml") == Servers()


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('[servers.a]\ncommand = "x"\n\n[servers.b]\ncommand = "x"\nargz = []\n', 6, "$.servers.b.argz: unknown key"),
        ('[servers.a]\ncommand = "x"\nargs = "y"\n', 3, "$.servers.a.args"),
        ('[servers.a]\ncommand = "x"\n[servers.a.env]\nA = 1\n', 4, "$.servers.a.env.A"),
        ('[servers.a]\ncommand = "x"\nurl = "https://e.org"\n', 1, "either a command or a url"),
        ("[servers.a]\nenabled = true\n", 1, "either a command or a url"),
        ('[servers.a__b]\ncommand = "x"\n', 1, "$.servers.a__b"),
        ('[servers.tools]\ncommand = "x"\n', 0, "of the gateway itself"),
        ('[servers.a]\ncommand = "x"\n\n[servers.a\n', 4, ""),
        ('[servers.a]\nurl = "ftp://e.org"\n', 2, "http or https"),
        ('[servers.a]\nurl = "https://u:pw@e.org"\n', 2, "user or password"),
        ('[servers.a]\nurl = "https://e.org"\nargs = ["x"]\n', 1, "args cannot go with a url"),
        ('[servers.a]\ncommand = "x"\nheaders = {A = "b"}\n', 1, "headers cannot go with a command"),
        ('[servers.a]\nurl = "https://e.org"\nheaders = {Authorization = "Bearer abc"}\n', 3, "is a secret"),
        ('[servers.a]\nurl = "https://e.org"\nheaders = {Host = "x"}\n', 3, "set by the protocol"),
        ('[servers.a]\nurl = "https://e.org"\nheaders = {A = "x\\r\\nB: y"}\n', 3, "a header cannot hold"),
        ('[servers.a]\nurl = "https://e.org"\nheaders = {Mcp-Param-X = "x"}\n', 3, "set by the protocol"),
        ('[servers.a]\nurl = "https://ü.org"\n', 2, "ASCII"),
        ('[servers.a]\ncommand = "x"\nenv = {A = "${secret:other}"}\n', 3, "name the secret"),
        ('[servers.a]\ncommand = "x"\ncwd = "relative"\n', 3, "absolute"),
        ('[servers.a]\ncommand = "x"\nmounts = [{source = "/"}]\n', 3, "whole file system"),
        ('[servers.a]\ncommand = "x"\nmounts = [{source = "/a/../b"}]\n', 3, "absolute"),
        ('[servers.a]\ncommand = "x"\nhosts = ["e.org"]\n', 3, "HOST:PORT"),
        ('[servers.a]\ncommand = "x"\nhosts = ["e.org:99999"]\n', 3, "HOST:PORT"),
        ('[servers.a]\ncommand = "x"\ntimeout_s = 0\n', 3, "timeout_s"),
        ('[servers.a]\ncommand = "x"\nenv = {A = "1"}\nsecrets = {A = "s"}\n', 1, "in env and in secrets"),
        ('[secrets]\na = "hunter2"\n', 2, "env:VARIABLE or file:/path"),
        ('[secrets]\na = "file:relative"\n', 2, "env:VARIABLE or file:/path"),
        ("[server]\n", 1, "unknown key"),
    ],
)
def test_a_fault_names_its_file_line_and_place(file: Path, text: str, line: int, words: str) -> None:
    message = refused(file, text)
    assert message.startswith(f"{file}:{line}: " if line else f"{file}: ")
    assert words in message


def test_values_of_secrets_are_not_repeated_in_a_refusal(file: Path) -> None:
    assert "hunter2" not in refused(file, '[secrets]\na = "hunter2"\n')
    assert "hunter2" not in refused(
        file, '[servers.a]\nurl = "https://e.org"\nheaders = {Authorization = "Bearer hunter2"}\n'
    )
    assert "hunter2" not in refused(file, '[servers.a]\nurl = "https://u:hunter2@e.org:port"\n')


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_can_write_to_is_refused_with_the_fix(file: Path, mode: int) -> None:
    put(file, FULL).chmod(mode)
    assert f"chmod 600 {file}" in refused(file)


def test_a_directory_that_others_can_write_to_is_refused_with_the_fix(file: Path) -> None:
    put(file, FULL)
    file.parent.chmod(0o770)
    assert f"chmod 700 {file.parent}" in refused(file)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of others")
@pytest.mark.parametrize("which", ["file", "directory"])
def test_somebody_elses_file_is_refused(file: Path, which: str) -> None:
    put(file, FULL)
    os.chown(file if which == "file" else file.parent, 65534, 65534)
    assert "belongs to user 65534" in refused(file)


def test_a_link_is_not_followed(file: Path, tmp_path: Path) -> None:
    file.symlink_to(put(tmp_path / "elsewhere.toml", FULL))
    assert "links are not followed" in refused(file)


def test_a_pipe_a_directory_a_giant_and_bytes_that_are_no_text_are_refused(file: Path) -> None:
    os.mkfifo(file, 0o600)
    assert "no regular file" in refused(file)
    file.unlink()
    file.mkdir(mode=0o700)
    refused(file)
    file.rmdir()
    file.write_bytes(b"#" * (5 * 1024 * 1024))
    file.chmod(0o600)
    assert "larger than" in refused(file)
    file.write_bytes(b'[servers.a]\ncommand = "\xff"\n')
    assert f"{file}:2: is not UTF-8" in refused(file)


def test_saving_into_a_directory_that_others_can_write_to_is_refused(file: Path) -> None:
    file.parent.chmod(0o770)
    with pytest.raises(ConfigError):
        save_servers(file, Servers())
    assert not file.exists()


def test_saving_replaces_a_link_and_does_not_write_through_it(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("theirs")
    file.symlink_to(other)
    save_servers(file, Servers())
    assert other.read_text() == "theirs" and not file.is_symlink()


def test_a_name_in_both_files_is_an_error(file: Path) -> None:
    settings_file = file.with_name("omni.toml")
    settings_file.write_text('[servers.search]\ncommand = "x"\n[secrets]\nk = "env:K"\n')
    found = load_servers(put(file, FULL))
    assert names_in_settings(settings_file, "secrets") == {"k"}
    with pytest.raises(ConfigError, match=re.escape("$.servers.search")):
        check_disjoint(file, found, names_in_settings(settings_file, "servers"))
    check_disjoint(file, found, frozenset({"other"}))


def test_a_server_without_its_secret_does_not_take_the_others_down(file: Path, tmp_path: Path) -> None:
    token = put(tmp_path / "token", "  value of it\n")
    found = Servers.model_validate(
        {
            "servers": {
                "a": {"command": "x", "secrets": {"A": "one"}},
                "b": {"command": "x", "secrets": {"B": "two"}},
                "c": {"command": "x", "secrets": {"C": "three"}, "enabled": False},
                "d": {"command": "x", "secrets": {"D": "four"}},
                "e": {"command": "x", "secrets": {"E": "five"}},
            },
            "secrets": {"one": f"file:{token}", "two": "env:NOT_SET", "three": "file:/nowhere"},
        }
    )
    values, lacking = read_server_secrets(found, {}, known={"five": "from omni.toml"})
    assert values == {"one": "value of it", "five": "from omni.toml"}
    assert set(lacking) == {"b", "d"} and "NOT_SET" in lacking["b"]


@pytest.mark.parametrize(
    ("command", "preset"),
    [
        ("npx", "npx"), ("/usr/bin/npx", "npx"), ("npx.cmd", "npx"), ("C:\\Program Files\\nodejs\\npx.cmd", "npx"),
        ("uvx", "uvx"), ("uvx.exe", "uvx"), ("uv", "server"), ("node", "server"), ("npx2", "server"), ("", "server"),
    ],
)  # fmt: skip
def test_the_command_chooses_the_profile(command: str, preset: str) -> None:
    assert preset_of(command) == preset


def test_a_named_profile_wins_over_the_commands_own() -> None:
    named = ServerDefinition(command="npx", profile="server")
    assert named.profile == "server"
    again = tomllib.loads(to_toml(Servers(servers={"a": named})))["servers"]["a"]
    assert ServerDefinition.model_validate(again) == named


texts = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=20)
definitions = st.builds(
    ServerDefinition,
    command=texts.filter(bool),
    args=st.lists(texts, max_size=3).map(tuple),
    env=st.dictionaries(texts.filter(lambda text: text and "=" not in text), texts, max_size=3),
    timeout_s=st.floats(0.5, 600),
    enabled=st.booleans(),
)


@settings(max_examples=200, deadline=None)
@given(definition=definitions)
def test_any_definition_survives_being_written(definition: ServerDefinition) -> None:
    text = to_toml(Servers(servers={"a": definition}))
    assert Servers.model_validate(tomllib.loads(text)).servers["a"] == definition


@pytest.mark.parametrize("value", [None, object(), b"x"])
def test_what_toml_cannot_say_is_not_written(value: Any) -> None:
    with pytest.raises(TypeError):
        toml_value(value)


def test_the_example_of_the_page_is_a_file_that_is_read(file: Path) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "import.md"
    [block] = re.findall(r"^```toml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    assert set(load_servers(put(file, block)).servers) == {"notes", "search"}


def test_two_edits_at_once_both_count(file: Path) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def slow(now: Servers) -> Servers:
        inside.set()
        assert go_on.wait(30)
        return now.with_servers({"a": ServerDefinition(command="x")}, {})

    first = threading.Thread(target=edit_servers, args=(file, slow))
    second = threading.Thread(
        target=edit_servers, args=(file, lambda now: now.with_servers({"b": ServerDefinition(command="y")}, {}))
    )
    first.start()
    assert inside.wait(30)
    second.start()
    second.join(0.5)  # an edit that does not wait would be done by then
    assert second.is_alive() and not file.exists()
    go_on.set()
    first.join(30)
    second.join(30)
    assert set(load_servers(file).servers) == {"a", "b"}
