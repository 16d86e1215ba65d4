"""Programs that a person installed for themselves: a server finds them in its cell, and no more of the home."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omni_mcp.server_definition import ServerDefinition
from omni_mcp.servers_file import load_servers
from tests.clients_config.conftest import Person

CELL = "/usr/local/bin:/usr/bin:/bin"


def imported(person: Person, entry: dict[str, Any]) -> ServerDefinition:
    person.has("claude-desktop", json.dumps({"mcpServers": {"one": entry}}))
    assert person.run("import", "--yes").exit_code == 0
    return load_servers(person.servers_file).servers["one"]


def seen(definition: ServerDefinition) -> list[str]:
    return [mount.source for mount in definition.mounts]


def with_path(person: Person, directory: Path) -> None:
    person.variables["PATH"] = f"{directory}:{person.variables['PATH']}"


def test_of_a_uv_of_ones_own_only_its_programs_are_shown(person: Person) -> None:
    directory = person.home / ".local" / "bin"
    for name in ("uv", "uvx", "something-else"):
        person.has_program(name, "exit 0", directory)
    with_path(person, directory)
    found = imported(person, {"command": "uvx", "args": ["x"]})

    assert sorted(seen(found)) == [str(directory / "uv"), str(directory / "uvx")]
    assert found.command == "uvx" and found.env["PATH"] == f"{directory}:{CELL}"


def test_of_a_version_manager_the_one_version_is_shown(person: Person) -> None:
    top = person.home / ".nvm" / "versions" / "node" / "v22.0.0"
    person.has_program("node", "exit 0", top / "bin")
    script = person.has_program("npx-cli.js", "exit 0", top / "lib" / "node_modules" / "npm" / "bin")
    (top / "bin" / "npx").symlink_to(script)
    with_path(person, top / "bin")
    found = imported(person, {"command": "npx", "args": ["x"]})

    assert seen(found) == [str(top)] and found.env["PATH"] == f"{top / 'bin'}:{CELL}"
    assert found.profile == "npx"


def test_a_node_that_stands_in_the_home_itself_is_shown_alone(person: Person) -> None:
    node = person.has_program("node", "exit 0", person.home / "bin")
    with_path(person, node.parent)
    assert seen(imported(person, {"command": "node", "args": ["x"]})) == [str(node)]


def test_a_program_of_the_system_needs_nothing(person: Person) -> None:
    (person.programs / "uvx").symlink_to("/usr/bin/env")
    found = imported(person, {"command": "uvx", "args": ["x"]})
    assert seen(found) == [] and "PATH" not in found.env


def test_a_server_whose_program_was_found_is_the_same_when_it_is_imported_again(person: Person) -> None:
    directory = person.home / ".local" / "bin"
    person.has_program("uvx", "exit 0", directory)
    with_path(person, directory)
    imported(person, {"command": "uvx", "args": ["x"]})
    assert [one["state"] for one in person.json("import", "--yes")["servers"]] == ["same"]


def test_a_server_that_is_added_by_hand_sees_its_program_and_the_directories_that_were_named(person: Person) -> None:
    directory, notes = person.home / ".local" / "bin", person.home / "notes"
    notes.mkdir()
    person.has_program("uvx", "exit 0", directory)
    with_path(person, directory)
    assert person.run("add", "one", "--dir", f"{notes}:rw", "--", "uvx", "x", str(notes)).exit_code == 0
    found = load_servers(person.servers_file).servers["one"]
    assert seen(found) == [str(notes), str(directory / "uvx")] and found.mounts[0].writable
