"""Servers that npx and uvx fetch: which source this person's tools have, and what it takes to let a server reach it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from omni_mcp.server_definition import ServerDefinition
from omni_mcp.servers_file import load_servers
from tests.clients_config.conftest import INDEX, REGISTRY, Person
from tests.clients_config.terminal import answer_on_a_terminal

NPM, PYTHON = "npm.example.org:443", "python.example.org:443"
COMMAND_S = 120.0
TWO = {
    "files": {"command": "npx", "args": ["-y", "@modelcontextprotocol/server-filesystem", "/nowhere"]},
    "time": {"command": "uvx", "args": ["mcp-server-time"]},
    "own": {"command": "server-of-mine"},
}


def with_servers(person: Person, entries: dict[str, Any]) -> None:
    person.has("claude-desktop", json.dumps({"mcpServers": entries}))


def definitions(person: Person) -> dict[str, ServerDefinition]:
    return load_servers(person.servers_file).servers


def hosts_for(person: Person, entry: dict[str, Any]) -> list[str]:
    """Return where an import would let one server reach."""
    with_servers(person, {"one": entry})
    found: list[str] = person.json("import", "--yes", "--dry-run")["packages"]["hosts"]
    return found


def test_after_an_import_with_packages_each_server_may_reach_its_own_source_and_no_other(person: Person) -> None:
    with_servers(person, TWO)
    result = person.run("import", "--yes", "--packages")
    found = definitions(person)

    assert result.exit_code == 0, result.output
    assert {name: one.hosts for name, one in found.items()} == {"files": (NPM,), "time": (PYTHON,), "own": ()}
    assert found["files"].env == {"npm_config_registry": REGISTRY} and found["time"].env == {"UV_DEFAULT_INDEX": INDEX}


def test_without_an_answer_nothing_is_opened_and_the_command_that_is_named_mends_it(person: Person) -> None:
    with_servers(person, TWO)
    said = person.run("import", "--yes").output
    assert not any(one.hosts for one in definitions(person).values())
    [command] = [line.partition("before that: ")[2] for line in said.splitlines() if "fetched from packages" in line]

    assert person.run(*command.split()[1:]).exit_code == 0
    assert {name: one.hosts for name, one in definitions(person).items()} == {
        "files": (NPM,), "time": (PYTHON,), "own": (),
    }  # fmt: skip


def test_importing_again_knows_the_servers_that_were_let_reach_their_source(person: Person) -> None:
    with_servers(person, TWO)
    person.run("import", "--yes", "--packages")
    before = person.servers_file.read_bytes()
    again = person.json("import", "--yes", "--packages")

    assert {one["state"] for one in again["servers"]} == {"same"}
    assert person.servers_file.read_bytes() == before


@pytest.mark.parametrize(
    ("entry", "hosts"),
    [
        ({"command": "npx", "args": ["x"]}, [NPM]),
        ({"command": "npx", "args": ["--registry", "https://other.example.org/", "x"]}, ["other.example.org:443"]),
        ({"command": "npx", "args": ["--registry=http://10.1.2.3:4873/", "x"]}, ["10.1.2.3:4873"]),
        ({"command": "uvx", "args": ["--index-url", "https://i.example.org/s", "x"]}, ["i.example.org:443"]),
        (
            {"command": "uvx", "args": ["x"], "env": {"UV_DEFAULT_INDEX": "https://e.example.org/s"}},
            ["e.example.org:443"],
        ),
        (
            {"command": "uvx", "args": ["x"], "env": {"UV_INDEX": "more=https://m.example.org/s"}},
            [PYTHON, "m.example.org:443"],
        ),
        ({"command": "node", "args": ["x"]}, []),
    ],
)
def test_what_the_entry_itself_says_of_its_source_counts(
    person: Person, entry: dict[str, Any], hosts: list[str]
) -> None:
    assert hosts_for(person, entry) == hosts


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ('index-url = "https://a.example.org/s"\n', ["a.example.org:443"]),
        (
            '[[index]]\nurl = "https://b.example.org/s"\ndefault = true\n[[index]]\nurl = "https://c.example.org/s"\n',
            ["b.example.org:443", "c.example.org:443"],
        ),
        ('[[index]]\nname = "p"\nurl = "https://d.example.org/s"\nexplicit = true\n', []),
    ],
)
def test_what_uv_is_set_up_with_counts(person: Person, text: str, hosts: list[str]) -> None:
    file = person.home / ".config" / "uv" / "uv.toml"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    del person.variables["UV_DEFAULT_INDEX"]
    person.variables["PIP_INDEX_URL"] = "https://pip.example.org/simple"

    found = hosts_for(person, {"command": "uvx", "args": ["x"]})
    assert found == (hosts or ["pip.example.org:443"])


def test_where_nothing_was_set_up_it_is_what_pip_itself_would_use_with_the_host_of_its_files(person: Person) -> None:
    del person.variables["UV_DEFAULT_INDEX"]
    asked = "from pip._internal.models.index import PyPI; print(PyPI.netloc, PyPI.file_storage_domain)"
    expected = subprocess.run(
        [sys.executable, "-I", "-c", asked], capture_output=True, text=True, timeout=COMMAND_S, check=True
    ).stdout.split()

    person.variables["PIP_CONFIG_FILE"] = os.devnull
    assert hosts_for(person, {"command": "uvx", "args": ["x"]}) == [f"{name}:443" for name in expected]


def test_a_source_that_cannot_be_said_is_named_with_the_option_that_says_it(person: Person) -> None:
    person.has_program("npm", "exit 1")
    with_servers(person, {"one": {"command": "npx", "args": ["x"]}})
    said = person.run("import", "--yes", "--packages").output
    assert "npm does not say" in said and "omni-mcp servers set one --allow HOST:PORT" in said


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("https://ann:pa55word@npm.example.org/", "holds a password"),
        ("file:///srv/packages", "the directory /srv/packages"),
        ("not a url", "no URL with a host"),
    ],
)
def test_a_source_that_no_host_can_be_made_of_opens_nothing_and_no_password_is_shown(
    person: Person, url: str, why: str
) -> None:
    person.has_program("npm", f"printf 'registry={url}\\n'")
    with_servers(person, {"one": {"command": "npx", "args": ["x"]}})
    said = person.run("import", "--yes", "--packages").output
    assert definitions(person)["one"].hosts == () and "pa55word" not in said + person.servers_file.read_text()
    assert "omni-mcp servers set one --allow HOST:PORT" in said and why in said


@pytest.mark.parametrize(
    ("program", "url"),
    [
        ("npx", "https://${NPM_TOKEN}.example.org/"),
        ("npx", "https://npm.example.org/${NPM_TOKEN}/"),
        ("uvx", "https://${UV_TOKEN}.example.org/simple"),
    ],
)
def test_an_address_that_names_a_variable_is_never_filled_in(person: Person, program: str, url: str) -> None:
    person.variables |= {"NPM_TOKEN": "pa55word", "UV_TOKEN": "pa55word"}
    flag = "--registry" if program == "npx" else "--index-url"
    with_servers(person, {"one": {"command": program, "args": [flag, url, "x"]}})
    said = person.run("import", "--yes", "--packages").output
    assert definitions(person)["one"].hosts == () and "names a variable" in said
    assert "pa55word" not in said + person.servers_file.read_text()


@pytest.mark.parametrize("name", ["npm_config_userconfig", "NPM_CONFIG_GLOBALCONFIG", "npm_config_registry"])
def test_npm_is_asked_for_the_persons_own_settings_and_told_nothing_of_a_definition(
    person: Person, tmp_path: Path, name: str
) -> None:
    asked = tmp_path / "asked"
    person.has_program("npm", f"env > {asked}\nprintf 'registry={REGISTRY}\\n@none:registry=undefined\\n'")
    person.variables["NPM_CONFIG_LOGLEVEL"] = "silent"
    with_servers(person, {"one": {"command": "npx", "args": ["x"], "env": {name: "/home/bob/.npmrc"}}})
    person.run("import", "--yes", "--packages")
    environment = asked.read_text()
    assert "NPM_CONFIG_LOGLEVEL=silent" in environment and "bob" not in environment


def test_a_scope_with_a_registry_of_its_own_is_said(person: Person) -> None:
    other = "https://scope.example.org/"
    person.has_program("npm", f"printf 'registry={REGISTRY}\\n@corp:registry={other}\\n'")
    with_servers(person, {"one": {"command": "npx", "args": ["-y", "@corp/server"]}})
    assert "--@corp:registry=https://scope.example.org/" in person.run("import", "--yes", "--packages").output

    with_servers(person, {"two": {"command": "npx", "args": ["-y", "@corp/other"]}})
    person.has_program("npm", f"printf 'registry={REGISTRY}\\n@corp:registry=https://a:pa55word@s.example.org/\\n'")
    assert "pa55word" not in person.run("import", "--yes", "--packages").output

    args = ["-y", f"--@corp:registry={other}", "@corp/server"]
    assert hosts_for(person, {"command": "npx", "args": args}) == [NPM, "scope.example.org:443"]


def test_hosts_can_be_named_by_hand_for_all_of_an_import(person: Person) -> None:
    with_servers(person, {**TWO, "far": {"url": "https://e.example.org/mcp"}})
    assert person.run("import", "--yes", "--allow", "api.example.org:443").exit_code == 0
    found = definitions(person)
    assert {name: one.hosts for name, one in found.items() if one.command} == dict.fromkeys(
        TWO, ("api.example.org:443",)
    )
    with_servers(person, {"other": {"command": "another-server"}})
    assert person.run("import", "--yes", "--allow", "no-port").exit_code == 1 and "other" not in definitions(person)


def test_add_says_what_is_missing_and_opens_it_when_told_to(person: Person) -> None:
    said = person.run("add", "time", "--", "uvx", "mcp-server-time").output
    assert definitions(person)["time"].hosts == () and "omni-mcp servers set time --packages" in said

    words = ("add", "again", "--packages", "--allow", "api.example.org:443", "--json", "--", "uvx", "mcp-server-time")
    added = json.loads(person.run(*words).stdout)
    assert added["packages"]["allowed"] and set(added["hosts"]) == {PYTHON, "api.example.org:443"}
    assert set(definitions(person)["again"].hosts) == {PYTHON, "api.example.org:443"}


def test_a_profile_of_ones_own_that_names_the_source_is_enough(person: Person) -> None:
    profiles = person.omni_home / "profiles"
    profiles.mkdir(mode=0o700, parents=True)
    person.omni_home.chmod(0o700)
    shipped = (Path(__file__).parents[2] / "sandbox" / "profiles" / "uvx.toml").read_text()
    (profiles / "uvx.toml").write_text(shipped.replace("warm = 0\n", f'warm = 0\nhosts = ["{PYTHON}"]\n'))
    (profiles / "uvx.toml").chmod(0o600)
    with_servers(person, {"time": TWO["time"]})
    assert person.json("import", "--yes")["packages"]["servers"] == []


@pytest.mark.parametrize(("answer", "hosts"), [("y", (NPM,)), ("n", ()), ("", ())])
def test_on_a_terminal_one_question_for_all_of_them_says_what_a_yes_means(
    person: Person, answer: str, hosts: tuple[str, ...]
) -> None:
    with_servers(person, TWO)
    answers = [("Add 3 to", "y\n"), ("may they reach", f"{answer}\n"), ("once now, and say", "n\n")]
    _, shown = answer_on_a_terminal(person.environment, answers, "import")

    assert shown.count("are fetched from packages: may they reach") == 1 and f"reach {NPM}, {PYTHON}" in shown, shown
    assert "place to send data to" in shown
    assert definitions(person)["files"].hosts == hosts
