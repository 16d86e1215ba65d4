"""What clients' files say: their real spellings, and everything odd that is still legal, or nearly."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from omni_mcp.clients.dotenv import read_dotenv
from omni_mcp.clients.found import FoundServer, Reading
from omni_mcp.clients.places import CLIENTS, ClientName, Surroundings, places_of
from omni_mcp.clients.reading import is_own_entry, read_place
from omni_mcp.clients.template import Reference
from tests.clients_config.conftest import SAMPLES, Person


def read(person: Person, client: ClientName, text: str | bytes | None = None) -> Reading:
    person.has(client, text)
    return read_place(places_of(client, person.around)[0], person.around)


def named(reading: Reading) -> dict[str, FoundServer]:
    return {server.name: server for server in reading.servers}


def reasons(reading: Reading) -> dict[str, str]:
    return {refused.name: refused.reason for refused in reading.not_taken}


def test_claude_desktop(person: Person) -> None:
    reading = read(person, "claude-desktop")
    assert list(named(reading)) == ["filesystem", "github", "memory", "Wetter Zürich 🌦"]
    assert named(reading)["Wetter Zürich 🌦"].args[-1] == ("${NOT_EXPANDED_HERE}",)
    assert not reading.not_taken and not reading.problems


def test_claude_code_in_all_its_scopes(person: Person) -> None:
    reading = read(person, "claude-code")
    servers = named(reading)
    assert set(servers) == {"github", "sentry", "asana", "api", "db"}
    assert servers["db"].place.scope == "local" and servers["db"].place.project == Path("/home/ann/app")
    assert servers["db"].args[-1] == ("/home/ann/app/app.db",)
    assert (servers["sentry"].transport, servers["asana"].transport) == ("http", "sse")
    assert servers["api"].url == (
        Reference(kind="env", name="API_BASE", default="https://api.example.org"), "/mcp",
    )  # fmt: skip
    assert servers["api"].headers["Authorization"] == ("Bearer ", Reference(kind="env", name="API_KEY"))
    assert "ws" in reasons(reading)["socket"] and "headersHelper" in reasons(reading)["helper"]


def test_claude_codes_project_file_is_read_with_its_project(person: Person, tmp_path: Path) -> None:
    project = tmp_path / "app"
    project.mkdir()
    (project / ".mcp.json").write_text((SAMPLES / "claude_code_project.json").read_text())
    around = Surroundings(platform="linux", home=person.home, project=project)
    [reading] = [read_place(place, around) for place in places_of("claude-code", around) if place.scope == "project"]
    assert named(reading)["linter"].args == ((f"{project}/tools/lint.js",),)
    assert named(reading)["linter"].timeout_s == 30.0


def test_cursor_with_comments_and_trailing_commas(person: Person) -> None:
    reading = read(person, "cursor")
    servers = named(reading)
    assert set(servers) == {"GitHub", "office", "old"}
    assert not servers["old"].enabled
    assert servers["old"].notes == ("not taken over: autoApprove",)
    assert "workspaceFolder" in reasons(reading)["local"]
    assert not reading.problems


def test_vs_code_with_inputs(person: Person) -> None:
    reading = read(person, "vscode")
    servers = named(reading)
    assert servers["perplexity"].env["RETRIES"] == ("3",)
    assert "NODE_OPTIONS" not in servers["perplexity"].env
    assert servers["perplexity"].inputs["perplexity-key"].secret
    assert not servers["perplexity"].inputs["region"].secret
    assert servers["fetch"].notes == ()
    assert "command:pick.server" in reasons(reading)["by a command"]


def test_codex_and_its_brackets_that_are_no_tables(person: Person) -> None:
    reading = read(person, "codex")
    servers = named(reading)
    assert set(servers) == {"context7", "figma design"}
    assert servers["context7"].timeout_s == 45.0
    passed_on = Reference(kind="env", name="CONTEXT7_API_KEY", optional=True)
    assert servers["context7"].env["CONTEXT7_API_KEY"] == (passed_on,)
    figma = servers["figma design"]
    assert not figma.enabled
    assert figma.headers["Authorization"] == ("Bearer ", Reference(kind="env", name="FIGMA_TOKEN"))
    assert figma.headers["X-Team-Key"] == (Reference(kind="env", name="TEAM_KEY"),)


def test_an_env_file_is_read_and_the_entry_itself_wins(person: Person) -> None:
    (person.home / ".env").write_text("export A=1\nB='two # 2' # c\nC=\"x\\ny\"\nD=plain # note\n\n# E=5\n")
    text = {"mcpServers": {"s": {"command": "x", "envFile": "${userHome}/.env", "env": {"A": "mine"}}}}
    env = named(read(person, "cursor", json.dumps(text)))["s"].env
    assert env == {"A": ("mine",), "B": ("two # 2",), "C": ("x\ny",), "D": ("plain",)}


def test_an_env_file_that_is_not_there_is_said(person: Person) -> None:
    text = {"mcpServers": {"s": {"command": "x", "envFile": "/nowhere/.env"}}}
    assert "is not there" in reasons(read(person, "cursor", json.dumps(text)))["s"]


def test_dotenv_keeps_what_it_cannot_read_out() -> None:
    assert read_dotenv("=x\nno line\n1A=2\nA=1\nA=2\n") == {"A": "2"}


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("change", ["bom", "crlf", "both"])
def test_a_mark_at_the_beginning_and_windows_line_ends_change_nothing(
    person: Person, client: ClientName, change: str
) -> None:
    plain = read(person, client)
    data = plain.place.file.read_bytes()
    if change in ("crlf", "both"):
        data = data.replace(b"\n", b"\r\n")
    if change in ("bom", "both"):
        data = b"\xef\xbb\xbf" + data
    again = read(person, client, data)
    assert again == plain


@pytest.mark.parametrize("client", CLIENTS)
def test_an_empty_file_has_no_servers_and_no_fault(person: Person, client: ClientName) -> None:
    reading = read(person, client, "")
    assert reading.readable and not reading.servers and not reading.problems


@pytest.mark.parametrize("client", CLIENTS)
def test_a_missing_file_has_no_servers_and_no_fault(person: Person, client: ClientName) -> None:
    reading = read_place(places_of(client, person.around)[0], person.around)
    assert not reading.exists and reading.readable and not reading.problems


@pytest.mark.parametrize(
    "text",
    [
        "{", "[]", "null", '"x"', "{'a': 1}", '{"a": NaN}', '{"a": 1} x', '{"mcpServers": {"a": }}', "{" * 100_000,
        '{"a":' * 300 + "1" + "}" * 300, b"\xff\xfe{\x00}\x00", b'{"a": "\xff"}', '{"a": "unclosed', "{/* open",
        '{"a": ' + "9" * 5000 + "}", "{,}", '{"a": [,]}', '{"a": 1,,}',
    ],
    ids=range(18),
)  # fmt: skip
def test_what_is_no_json_is_reported_with_its_file(person: Person, text: str | bytes) -> None:
    reading = read(person, "cursor", text)
    assert not reading.readable and not reading.servers
    assert [problem.file for problem in reading.problems] == [str(reading.place.file)]


def test_the_line_of_a_fault_is_named(person: Person) -> None:
    reading = read(person, "claude-desktop", '{\n  "a": 1,\n  "b": oops\n}\n')
    assert [problem.line for problem in reading.problems] == [3]
    reading = read(person, "codex", "a = 1\nb = \n")
    assert [problem.line for problem in reading.problems] == [2]


def test_wrong_kinds_cost_their_entry_and_no_other(person: Person) -> None:
    wrong: dict[str, object] = {
        "text": "npx", "list": [], "null": None, "nothing": {}, "command": {"command": 5},
        "args": {"command": "x", "args": "y"}, "arg": {"command": "x", "args": [1]},
        "env": {"command": "x", "env": ["A=1"]}, "env2": {"command": "x", "env": {"A": {}}},
        "both": {"command": "x", "url": "https://e.org"}, "type": {"type": "stdio", "url": "https://e.org"},
        "off": {"command": "x", "disabled": "no"}, "time": {"command": "x", "timeout": -1},
        "kind": {"type": 7, "command": "x"},
    }  # fmt: skip
    reading = read(person, "cursor", json.dumps({"mcpServers": {**wrong, "good": {"command": "x"}}}))
    assert set(named(reading)) == {"good"}
    assert set(reasons(reading)) == set(wrong)
    assert all(refused.line == 1 for refused in reading.not_taken)


@pytest.mark.parametrize("value", ['"x"', "[]", "5"])
def test_a_table_of_servers_that_is_none_is_reported(person: Person, value: str) -> None:
    reading = read(person, "claude-desktop", f'{{"mcpServers": {value}}}')
    assert [problem.path for problem in reading.problems] == ["$.mcpServers"]


def test_the_last_of_two_equal_keys_counts_and_both_are_reported(person: Person) -> None:
    text = '{"mcpServers": {"a": {"command": "one"}, "a": {"command": "two", "command": "three"}}}'
    reading = read(person, "claude-desktop", text)
    assert named(reading)["a"].command == ("three",)
    assert {problem.path for problem in reading.problems} == {"$.mcpServers.a", "$.mcpServers.a.command"}


def test_comments_are_reported_where_the_client_itself_does_not_read_them(person: Person) -> None:
    text = '{\n// mine\n"mcpServers": {"a": {"command": "x"},}}'
    messages = [problem.message for problem in read(person, "claude-desktop", text).problems]
    assert len(messages) == 2 and all("claude-desktop itself" in message for message in messages)
    assert set(named(read(person, "claude-desktop", text))) == {"a"}


def test_what_looks_like_a_comment_inside_a_text_stays(person: Person) -> None:
    text = r'{"mcpServers": {"a": {"command": "x", "args": ["http://e.org/*x*/", "\"//,}", "c:\\", ",]"]}}}'
    assert [arg[0] for arg in named(read(person, "cursor", text))["a"].args] == [
        "http://e.org/*x*/", '"//,}', "c:\\", ",]",
    ]  # fmt: skip


def test_a_large_file_with_histories_is_read(person: Person) -> None:
    history = [{"display": f"line {number} " + "x" * 200} for number in range(20_000)]
    text = {"projects": {"/p": {"history": history}}, "mcpServers": {"a": {"command": "x"}}}
    assert set(named(read(person, "claude-code", json.dumps(text, indent=2)))) == {"a"}


def test_a_file_over_the_limit_is_reported_and_not_read(person: Person) -> None:
    file = person.has("cursor", "{}")
    os.truncate(file, 65 * 1024 * 1024)
    reading = read_place(places_of("cursor", person.around)[0], person.around)
    assert not reading.readable and "larger than" in reading.problems[0].message


def test_a_pipe_or_directory_in_the_files_place_does_not_hang(person: Person) -> None:
    file = person.has("cursor", "{}")
    file.unlink()
    os.mkfifo(file)
    assert not read_place(places_of("cursor", person.around)[0], person.around).readable
    file.unlink()
    file.mkdir()
    assert not read_place(places_of("cursor", person.around)[0], person.around).readable


def test_no_value_stands_in_the_repr_of_what_was_read(person: Person) -> None:
    for client in CLIENTS:
        assert "ghp_Sample" not in repr(read(person, client))


@pytest.mark.parametrize(
    ("entry", "own"),
    [
        ({"command": "omni-mcp", "args": ["stdio", "--agent", "x"]}, True),
        ({"command": "/opt/x/bin/omni-mcp", "args": ["stdio"]}, True),
        ({"command": "C:\\Tools\\omni-mcp.exe", "args": ["stdio"]}, True),
        ({"command": "/usr/bin/python3", "args": ["-m", "omni_mcp.cli.main", "stdio"]}, True),
        ({"url": "http://127.0.0.1:6464/mcp"}, True),
        ({"url": "http://localhost:6464/mcp/tools"}, True),
        ({"command": "omni-mcp", "args": ["serve"]}, False),
        ({"command": "not-omni-mcp", "args": ["stdio"]}, False),
        ({"url": "http://127.0.0.1:8080/mcp"}, False),
        ({"url": "http://evil.example:6464/mcp"}, False),
        ({"url": "http://127.0.0.1:port/mcp"}, False),
        ("omni-mcp stdio", False),
    ],
)
def test_an_entry_of_ours_is_told_from_others(entry: object, own: bool) -> None:
    assert is_own_entry(entry) is own
