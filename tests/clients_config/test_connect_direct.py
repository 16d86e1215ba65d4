"""What a client goes on starting by itself is said, and `--move` takes out only what can come through the gateway."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from omni_mcp.clients.jsonc import read_jsonc
from omni_mcp.clients.places import CLIENTS, TRAITS, ClientName
from omni_mcp.clients.toml_edit import read_toml
from tests.clients_config.conftest import Person

TABLE = """
[mcp_servers.{name}]
command = "server-{name}"
env_vars = [{variables}]
"""


def has_servers(person: Person, client: ClientName, *names: str) -> Path:
    """Give *client* servers; the one called `secret` needs a variable that is set now."""
    variables = {"secret": "A_TOKEN"}
    if client == "codex":
        named = [(name, f'"{variables[name]}"' if name in variables else "") for name in names]
        return person.has(client, "".join(TABLE.format(name=name, variables=text) for name, text in named))
    reference = {"claude-code": "${A_TOKEN}", "cursor": "${env:A_TOKEN}", "vscode": "${env:A_TOKEN}"}
    entries: dict[str, Any] = {name: {"command": f"server-{name}"} for name in names}
    if "secret" in entries and client in reference:
        entries["secret"]["env"] = {"A_TOKEN": reference[client]}
    return person.has(client, json.dumps({TRAITS[client].key: entries}))


def entries_in(file: Path, client: ClientName) -> set[str]:
    text = file.read_text()
    value: Any = read_toml(text) if file.suffix == ".toml" else read_jsonc(text).value
    return set(value[TRAITS[client].key])


@pytest.mark.parametrize("client", CLIENTS)
def test_connect_says_what_is_still_started_past_the_gateway_and_the_command_that_ends_it(
    person: Person, client: ClientName
) -> None:
    file = has_servers(person, client, "one", "two")
    person.run("import", client, "--yes")
    person.accepts_all()
    said = person.run("connect", client).output
    [line] = [line for line in said.splitlines() if "past the gateway" in line]
    names, _, command = line.partition("; to end that: ")

    assert names.endswith("one, two")
    assert person.run(*command.split()[1:]).exit_code == 0
    assert entries_in(file, client) == {"omni"}
    assert "past the gateway" not in person.run("connect", client).output


@pytest.mark.parametrize("client", CLIENTS)
def test_what_cannot_come_through_yet_stays_with_the_client_and_is_named_with_what_it_lacks(
    person: Person, client: ClientName
) -> None:
    person.variables["A_TOKEN"] = "token-12345"
    file = has_servers(person, client, "fine", "off", "secret", "new")
    person.run("import", client, "--yes")
    person.accepts_all()
    person.run("servers", "disable", "off")
    person.run("servers", "set", "new", "--allow", "a.example.org:443")  # so what was accepted waits again
    has_a_reference = client != "claude-desktop"
    if has_a_reference:
        del person.variables["A_TOKEN"]
    stay = {"off", "new"} | ({"secret"} if has_a_reference else set())
    found = {one["name"]: one["hindrance"] for one in person.json("connect", client, "--move", "--dry-run")["direct"]}
    said = person.run("connect", client, "--move").output

    assert entries_in(file, client) == stay | {"omni"}, said
    assert set(found) == stay
    assert "omni-mcp servers enable off" in said and "omni-mcp accept new" in said
    assert not has_a_reference or "directly: secret: it" in said


def test_what_was_not_imported_and_what_import_does_not_take_are_named(person: Person) -> None:
    person.has("cursor", json.dumps({"mcpServers": {"a": {"command": "x"}, "b": {"command": 5}}}))
    said = person.run("connect", "cursor").output
    assert "directly: a: it is not imported: omni-mcp import" in said
    assert "directly: b: import does not take it" in said


def test_a_broken_servers_file_keeps_nobody_from_connecting_and_nothing_is_moved_then(person: Person) -> None:
    file = has_servers(person, "cursor", "one")
    person.run("import", "cursor", "--yes")
    person.accepts_all()
    person.servers_file.write_text("broken = ")
    assert person.run("connect", "cursor", "--move").exit_code == 1 and entries_in(file, "cursor") == {"one"}
    assert person.run("connect", "cursor").exit_code == 0 and entries_in(file, "cursor") == {"one", "omni"}


def test_a_disconnect_of_a_file_that_somebody_edited_does_not_say_that_the_file_is_gone(person: Person) -> None:
    file = has_servers(person, "cursor", "one")
    person.run("connect", "cursor")
    file.write_text(file.read_text() + "\n")
    said = person.run("disconnect", "cursor").output
    assert f"{file}: our entry is taken out" in said and file.exists()
