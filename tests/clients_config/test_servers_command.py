"""`servers` and `add`, as a person runs them."""

from __future__ import annotations

import json

import pytest

from omni_mcp.server_definition import ServerDefinition
from omni_mcp.servers_file import load_servers
from tests.clients_config.conftest import TOKEN, Person


def server(person: Person, name: str) -> ServerDefinition:
    return load_servers(person.servers_file).servers[name]


def test_a_command_with_all_that_it_may(person: Person) -> None:
    notes = person.home / "notes"
    notes.mkdir()
    result = person.run(
        "add", "notes", "--env", f"GITHUB_TOKEN={TOKEN}", "--env", "LOG=warn", "--env", "OTHER", "--dir", f"{notes}:rw",
        "--allow", "api.example.org:443", "--secret", "THIRD=known", "--timeout", "30", "--stateful",
        "--", "npx", "-y", "server-notes", "--url", str(notes),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert TOKEN not in result.output and TOKEN not in person.servers_file.read_text()
    found = server(person, "notes")
    assert (found.command, found.args) == ("npx", ("-y", "server-notes", "--url", str(notes)))
    assert found.env == {"LOG": "warn"}
    assert set(found.secrets) == {"GITHUB_TOKEN", "OTHER", "THIRD"} and found.secrets["THIRD"] == "known"
    assert [(mount.source, mount.writable) for mount in found.mounts] == [(str(notes), True)]
    assert (found.hosts, found.timeout_s, found.stateful, found.profile) == (
        ("api.example.org:443",), 30.0, True, "npx",
    )  # fmt: skip
    assert person.secrets == {"notes-github_token": TOKEN}
    assert load_servers(person.servers_file).secrets["notes-other"] == "env:OTHER"


def test_a_directory_that_was_not_given_is_not_seen_and_it_is_said(person: Person) -> None:
    (person.home / "notes").mkdir()
    result = person.run("add", "notes", "--", "server-notes", str(person.home / "notes"))
    assert not server(person, "notes").mounts
    assert "cannot see it" in result.output


@pytest.mark.parametrize("header", ["Authorization=Bearer abcd-1234", "Authorization: Bearer abcd-1234"])
def test_a_url_with_a_header_that_is_a_secret(person: Person, header: str) -> None:
    result = person.run(
        "add", "search", "--url", "https://mcp.example.org/mcp", "--header", header, "--header", "X-A=b"
    )
    assert result.exit_code == 0, result.output
    assert server(person, "search").headers == {"X-A": "b", "Authorization": "Bearer secret:search-authorization"}
    assert person.secrets == {"search-authorization": "abcd-1234"}


def test_the_short_form_is_the_same_command(person: Person) -> None:
    person.run("add", "a", "--", "x")
    person.run("servers", "add", "b", "--", "x")
    assert server(person, "a") == server(person, "b")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["a"], 2),
        (["a", "--url", "https://e.org", "--", "x"], 2),
        (["a", "--env", "=x", "--", "x"], 2),
        (["Bad Name", "--", "x"], 1),
        (["a__b", "--", "x"], 1),
        (["tools", "--", "x"], 1),
        (["a", "--url", "ftp://e.org"], 1),
        (["a", "--allow", "e.org", "--", "x"], 1),
        (["a", "--dir", "/nowhere/at/all", "--", "x"], 1),
        (["a", "--dir", "/", "--", "x"], 1),
        (["a", "--url", "https://e.org", "--dir", "/usr"], 1),
        (["a", "--timeout", "-1", "--", "x"], 1),
        (["a", "--profile", "Bad Profile", "--", "x"], 1),
    ],
)
def test_what_makes_no_server_is_refused_and_nothing_is_written(person: Person, words: list[str], code: int) -> None:
    result = person.run("add", *words)
    assert result.exit_code == code, result.output
    assert not result.exception or isinstance(result.exception, SystemExit)
    assert not person.servers_file.exists()


def test_a_name_is_not_taken_twice_unless_it_is_said(person: Person) -> None:
    person.run("add", "a", "--env", "A_TOKEN=first-one", "--", "x")
    assert person.run("add", "a", "--", "y").exit_code == 1
    assert server(person, "a").command == "x"
    assert person.run("add", "a", "--replace", "--env", "B_TOKEN=second-one", "--", "y").exit_code == 0
    assert server(person, "a").command == "y"
    assert person.secrets == {"a-b_token": "second-one"}


def test_replacing_with_the_same_secret_keeps_its_file(person: Person) -> None:
    for _ in range(2):
        assert person.run("add", "a", "--replace", "--env", "A_TOKEN=first-one", "--", "x").exit_code == 0
    assert person.secrets == {"a-a_token": "first-one"}
    person.run("add", "a", "--replace", "--env", "A_TOKEN=second-one", "--", "x")
    assert list(person.secrets.values()) == ["second-one"]


def test_a_name_of_omni_toml_is_refused(person: Person) -> None:
    person.omni_home.mkdir(mode=0o700)
    (person.omni_home / "omni.toml").write_text('[servers.a]\ncommand = "x"\n')
    assert person.run("add", "a", "--", "y").exit_code == 1


@pytest.mark.parametrize("wrapped", [None, "mcpServers", "servers"])
def test_json_as_readmes_have_it(person: Person, wrapped: str | None) -> None:
    entry: dict[str, object] = {
        "command": "npx",
        "args": ["-y", "x"],
        "env": {"X_API_KEY": "abcd-1234"},
        "hosts": ["e.org:443"],
    }
    text = json.dumps({wrapped: {"x": entry}} if wrapped else entry)
    assert person.run("servers", "add-json", "x", text).exit_code == 0
    found = server(person, "x")
    assert (found.command, found.hosts, set(found.secrets)) == ("npx", ("e.org:443",), {"X_API_KEY"})


def test_json_from_standard_input(person: Person) -> None:
    text = json.dumps({"type": "http", "url": "https://e.org/mcp", "headers": {"X-API-Key": "abcd-1234"}})
    assert person.run("servers", "add-json", "x", "-", stdin=text).exit_code == 0
    assert server(person, "x").headers == {"X-API-Key": "secret:x-x-api-key"}


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "5",
        "{}",
        '{"command": 5}',
        '{"command": "x", "mounts": ["/a"]}',
        '{"type": "ws", "url": "wss://e.org"}',
    ],
)
def test_json_that_says_no_server_is_an_error(person: Person, text: str) -> None:
    result = person.run("servers", "add-json", "x", text)
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert not person.servers_file.exists()


def test_list_get_disable_enable_remove(person: Person) -> None:
    assert person.json("servers", "list") == []
    person.run("add", "a", "--env", f"A_TOKEN={TOKEN}", "--", "x", "y z")
    person.run("add", "b", "--url", "https://e.org/mcp")
    assert [(one["name"], one["enabled"]) for one in person.json("servers", "list")] == [("a", True), ("b", True)]
    assert 'x "y z"' in person.run("servers", "list").output

    assert person.json("servers", "disable", "a")["enabled"] is False
    assert not server(person, "a").enabled
    assert person.json("servers", "enable", "a")["enabled"] is True

    shown = person.run("servers", "get", "a").output
    assert "A_TOKEN" in shown and TOKEN not in shown
    assert person.json("servers", "get", "a")["references"]["a-a_token"].startswith("file:")

    assert person.run("servers", "remove", "a").output == ""
    assert [one["name"] for one in person.json("servers", "list")] == ["b"]
    assert person.secrets == {}


@pytest.mark.parametrize("command", ["get", "remove", "enable", "disable"])
def test_an_unknown_server_is_an_error(person: Person, command: str) -> None:
    result = person.run("servers", command, "nobody")
    assert result.exit_code == 1 and "servers list" in result.output


def test_a_secret_that_two_servers_name_stays_with_the_other(person: Person) -> None:
    person.run("add", "a", "--env", f"A_TOKEN={TOKEN}", "--", "x")
    person.run("add", "b", "--secret", "B_TOKEN=a-a_token", "--", "x")
    person.run("servers", "remove", "a")
    assert person.secrets == {"a-a_token": TOKEN}
    assert load_servers(person.servers_file).secrets.keys() == {"a-a_token"}


def test_a_secret_file_that_a_person_named_is_never_deleted(person: Person) -> None:
    mine = person.home / "my-token"
    mine.write_text("abcd-1234")
    person.run("add", "a", "--secret", "A_TOKEN=mine", "--", "x")
    person.servers_file.write_text(person.servers_file.read_text() + f'\n[secrets]\nmine = "file:{mine}"\n')
    assert person.run("servers", "remove", "a").exit_code == 0
    assert mine.exists()


def test_a_broken_file_is_named_with_its_line_and_nothing_is_lost(person: Person) -> None:
    person.run("add", "a", "--", "x")
    text = person.servers_file.read_text() + "colour = 1\n"
    person.servers_file.write_text(text)
    for words in (["servers", "list"], ["add", "b", "--", "x"], ["import", "--yes"], ["servers", "remove", "a"]):
        result = person.run(*words)
        assert result.exit_code == 1 and f"{person.servers_file}:5: $.servers.a.colour: unknown key" in result.output
    assert person.servers_file.read_text() == text


def test_a_directory_that_others_can_write_to_gets_no_definitions(person: Person) -> None:
    person.omni_home.mkdir()
    person.omni_home.chmod(0o777)
    assert person.run("add", "a", "--", "x").exit_code == 1
    assert not person.servers_file.exists()


def test_a_secret_that_cannot_be_had_here_is_shown_in_the_list(person: Person) -> None:
    person.run("add", "a", "--env", "NOT_SET_TOKEN", "--", "x")
    assert "lacks a secret" in person.run("servers", "list").output
    person.variables["NOT_SET_TOKEN"] = "abcd-1234"
    assert "enabled" in person.run("servers", "list").output
