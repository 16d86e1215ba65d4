"""Small things of an import that cost a person a server: a list instead of a table, short answers, unset variables."""

from __future__ import annotations

import json
from typing import Any

import pytest

from omni_mcp.server_definition import ServerDefinition
from omni_mcp.servers_file import load_servers
from tests.clients_config.conftest import Person
from tests.clients_config.terminal import answer_on_a_terminal


def notes_of(person: Person, entry: dict[str, Any], client: str = "cursor") -> str:
    person.has(client, json.dumps({"mcpServers": {"one": entry}}))
    [server] = person.json("import", client, "--yes")["servers"]
    return " / ".join(server["notes"])


@pytest.mark.parametrize("text", ['{"mcpServers": []}', '{"mcpServers": 5}'])
def test_a_table_of_servers_that_is_none_is_a_failure_of_the_command(person: Person, text: str) -> None:
    person.has("cursor", text)
    found = person.json("import", "--yes", code=1)
    assert any("must be an object" in problem for problem in found["problems"])


def test_a_secret_in_a_url_is_said(person: Person) -> None:
    assert "the URL holds what looks like a secret" in notes_of(
        person, {"url": "https://e.example.org/mcp?api_key=abcd1234"}
    )
    assert "URL" not in notes_of(person, {"url": "https://e.example.org/mcp?page=2"})


def of_project(person: Person, entry: dict[str, Any]) -> tuple[ServerDefinition, str]:
    """Import *entry* of a project's file; returns its definition and the notes."""
    project = person.home / "work"
    project.mkdir(exist_ok=True)
    (project / "server.py").write_text("")
    (project / ".mcp.json").write_text(json.dumps({"mcpServers": {"one": entry}}))
    [server] = person.json("import", "claude-code", "--project", str(project), "--yes")["servers"]
    return load_servers(person.servers_file).servers["one"], " / ".join(server["notes"])


@pytest.mark.parametrize(
    "entry",
    [
        {"command": "./run.sh"},
        {"command": "python3", "args": ["server.py"]},
        {"command": "npm", "args": ["run", "mcp"]},
        {"command": "npx", "args": ["-y", "some-server", "."]},
    ],
)
def test_a_command_of_a_project_starts_in_the_project_and_sees_it(person: Person, entry: dict[str, Any]) -> None:
    definition, notes = of_project(person, entry)
    project = str(person.home / "work")
    assert definition.cwd == project and [(one.source, one.writable) for one in definition.mounts] == [(project, False)]
    assert f"starts in {project}" in notes


def test_a_package_that_names_nothing_of_the_project_does_not_see_it(person: Person) -> None:
    definition, _ = of_project(person, {"command": "npx", "args": ["-y", "some-server"]})
    assert definition.cwd is None and not definition.mounts


def test_a_project_that_cannot_be_shown_is_no_place_to_start_in(person: Person) -> None:
    (person.home / "work").mkdir()
    (person.home / "work" / ".ssh").mkdir()
    (person.home / "work" / ".ssh" / "id_rsa").write_text("key")
    definition, notes = of_project(person, {"command": "python3", "args": ["server.py"]})
    assert definition.cwd is None and not definition.mounts and "keys are kept in it" in notes


@pytest.mark.parametrize("client", ["cursor", "claude-code"])
def test_a_variable_that_is_not_set_yet_keeps_its_server_which_waits_for_it(person: Person, client: str) -> None:
    reference = "${env:REGION_NAME}" if client == "cursor" else "${REGION_NAME}"
    assert "REGION_NAME is not set here" in notes_of(person, {"command": "x", "env": {"REGION": reference}}, client)
    assert "lacks" in person.run("servers", "list").output

    person.variables["REGION_NAME"] = "eu-central-1"
    assert "lacks" not in person.run("servers", "list").output


def test_a_variable_that_codex_passes_on_if_it_is_set_does_not_keep_its_server_waiting(person: Person) -> None:
    person.has("codex", '[mcp_servers.one]\ncommand = "x"\nenv_vars = ["A_TOKEN", "LEVEL"]\n')
    person.variables["LEVEL"] = "3"
    [server] = person.json("import", "--yes")["servers"]
    found = load_servers(person.servers_file).servers["one"]
    assert found.env == {"LEVEL": "3"} and not found.secrets
    assert any("A_TOKEN is not set here and is left out" in note for note in server["notes"])
    del person.variables["LEVEL"]
    assert [one["state"] for one in person.json("import", "--yes")["servers"]] == ["same"]


@pytest.mark.parametrize("answer", ["x", "my", "mytoken-12345"])
def test_an_answer_to_a_password_is_kept_as_a_secret_however_short(person: Person, answer: str) -> None:
    entry = {"type": "http", "url": "https://e.example.org/", "headers": {"Authorization": "Bearer ${input:key}"}}
    inputs = [{"id": "key", "type": "promptString", "description": "a key", "password": True}]
    person.has("vscode", json.dumps({"inputs": inputs, "servers": {"one": entry}}))
    answers = [("a key (empty: later): ", f"{answer}\n"), ("Add 1 to", "y\n"), ("Start one once now", "n\n")]
    _, shown = answer_on_a_terminal(person.environment, answers, "import")

    assert "one" in load_servers(person.servers_file).servers, shown
    assert list(person.secrets.values()) == [answer]
    assert f'"{answer}"' not in person.servers_file.read_text()
