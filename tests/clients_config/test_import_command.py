"""`import`: what clients start becomes definitions of ours, and no secret is shown or left in the open."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from omni_mcp.clients.candidate import Translator
from omni_mcp.clients.places import CLIENTS, places_of
from omni_mcp.clients.plan import Planner, carry_out
from omni_mcp.clients.reading import read_place
from omni_mcp.contracts.errors import Conflict
from omni_mcp.server_definition import Servers
from omni_mcp.servers_file import load_servers, read_server_secrets
from tests.clients_config.conftest import TOKEN, Person

# What the samples refer to.
VARIABLES = {
    "API_KEY": "key-of-api-1", "ASANA_KEY": "key-of-asana-1", "OFFICE_TOKEN": "token-of-office-1",
    "FIGMA_TOKEN": "token-of-figma-1", "TEAM_KEY": "key-of-team-1", "CONTEXT7_API_KEY": "key-of-context7-1",
}  # fmt: skip


def everybody(person: Person) -> None:
    for client in CLIENTS:
        person.has(client)
    person.variables |= VARIABLES
    (person.home / "Documents").mkdir(exist_ok=True)


def imported(person: Person, *words: str, code: int = 1) -> dict[str, Any]:
    found = person.json("import", "--yes", *words, code=code)
    return {server["name"]: server for server in found["servers"]}


def test_all_clients_at_once(person: Person) -> None:
    everybody(person)
    found = person.json("import", "--yes", code=1)

    servers = {server["name"]: server for server in found["servers"]}
    assert set(servers) == {
        "filesystem", "github", "memory-2", "wetter-zurich", "sentry", "asana", "api", "db", "office", "old",
        "perplexity", "fetch", "remote", "context7", "figma-design",
    }  # fmt: skip
    assert [origin["client"] for origin in servers["github"]["from"]] == ["claude-desktop", "claude-code", "cursor"]
    assert {refused["name"] for refused in found["not_taken"]} == {
        "socket", "helper", "local", "asks in args", "by a command",
    }  # fmt: skip
    assert set(load_servers(person.servers_file).servers) == set(servers)


def test_every_secret_goes_to_a_private_file_or_stays_a_variable_and_is_never_shown(person: Person) -> None:
    everybody(person)
    shown = person.run("import", "--yes").output + person.run("import", "--json", "--dry-run").output

    secrets = [TOKEN, *VARIABLES.values()]
    assert not [secret for secret in secrets if secret in shown]
    text = person.servers_file.read_text()
    assert not [secret for secret in secrets if secret in text]
    assert person.secrets == {"github-github_personal_access_token": TOKEN}
    directory = person.omni_home / "data" / "secrets" / "servers"
    assert directory.stat().st_mode & 0o777 == 0o700
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in [*directory.iterdir(), person.servers_file])
    assert person.omni_home.stat().st_mode & 0o777 == 0o700


def test_the_definitions_with_their_secrets_are_what_the_client_had(person: Person) -> None:
    everybody(person)
    person.run("import", "--yes")
    found = load_servers(person.servers_file)
    values, lacking = read_server_secrets(found, VARIABLES)

    assert not lacking
    github = found.servers["github"]
    assert values[github.secrets["GITHUB_PERSONAL_ACCESS_TOKEN"]] == TOKEN
    assert (github.command, github.profile) == ("npx", "npx")
    assert found.servers["api"].header_values(values) == {"Authorization": "Bearer key-of-api-1"}
    assert found.servers["api"].url == "https://api.example.org/mcp"
    assert found.servers["office"].header_values(values) == {
        "Authorization": "Bearer token-of-office-1", "X-Team": "blue",
    }  # fmt: skip
    assert found.servers["asana"].transport == "sse"
    assert found.servers["figma-design"].header_values({**values, **_all(found)}) == {
        "X-Figma-Region": "us-east-1", "X-Team-Key": "key-of-team-1", "Authorization": "Bearer token-of-figma-1",
    }  # fmt: skip
    assert not found.servers["figma-design"].enabled and not found.servers["old"].enabled
    assert found.servers["context7"].timeout_s == 45.0
    assert found.servers["db"].args[-1] == "/home/ann/app/app.db"
    assert found.servers["wetter-zurich"].args[-1] == "${NOT_EXPANDED_HERE}"


def _all(found: Servers) -> dict[str, str]:
    return {name: VARIABLES[text[4:]] for name, text in found.secrets.items() if text.startswith("env:")}


def test_a_directory_that_a_command_names_is_proposed_for_reading_only_and_a_home_never(person: Person) -> None:
    everybody(person)
    person.has("cursor", json.dumps({"mcpServers": {"wide": {"command": "npx", "args": ["fs", str(person.home)]}}}))
    notes = imported(person)["wide"]["notes"]
    found = load_servers(person.servers_file).servers
    assert [mount.model_dump() for mount in found["filesystem"].mounts] == [
        {"source": str(person.home / "Documents"), "writable": False}
    ]
    assert not found["wide"].mounts
    assert any("too wide" in note for note in notes)


def test_a_script_is_seen_with_its_directory(person: Person) -> None:
    script = person.home / "tools" / "server.py"
    script.parent.mkdir()
    script.write_text("")
    alone = person.home / "alone.py"
    alone.write_text("")
    person.has(
        "cursor",
        json.dumps(
            {
                "mcpServers": {
                    "a": {"command": "python3", "args": [str(script)]},
                    "b": {"command": "python3", "args": [f"--file={alone}"]},
                }
            }
        ),
    )
    imported(person, code=0)
    found = load_servers(person.servers_file).servers
    assert [mount.source for mount in found["a"].mounts] == [str(script.parent)]
    assert [mount.source for mount in found["b"].mounts] == [str(alone)]


def test_importing_again_changes_nothing(person: Person) -> None:
    everybody(person)
    imported(person)
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in _files(person)}
    again = imported(person)
    assert {server["state"] for server in again.values()} == {"same"}
    assert {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in _files(person)} == before


def _files(person: Person) -> list[Path]:
    return [file for file in person.omni_home.rglob("*") if file.is_file()]


def test_what_the_operator_made_of_a_server_stays_and_is_still_the_same_server(person: Person) -> None:
    person.has("claude-desktop")
    imported(person, code=0)
    text = person.servers_file.read_text().replace(
        "[servers.github]\n", '[servers.github]\nhosts = ["api.example.org:443"]\ntimeout_s = 5.0\n'
    )
    person.servers_file.write_text(text)
    person.run("servers", "disable", "github")
    assert imported(person, code=0)["github"]["state"] == "same"
    github = load_servers(person.servers_file).servers["github"]
    assert (github.hosts, github.timeout_s, github.enabled) == (("api.example.org:443",), 5.0, False)


def test_a_different_server_of_the_same_name_gets_a_number_and_it_is_said(person: Person) -> None:
    for client, token in (("cursor", "first-token-1"), ("claude-desktop", "second-token-2")):
        entry = {"command": "npx", "args": ["x"], "env": {"A_TOKEN": token}}
        person.has(client, json.dumps({"mcpServers": {"same": entry, "tools": {"command": "t"}}}))
    found = imported(person, code=0)
    assert set(found) == {"same", "same-2", "tools-2"}
    assert "taken by a different server" in " ".join(found["same-2"]["notes"])
    assert "of the gateway itself" in " ".join(found["tools-2"]["notes"])
    assert sorted(person.secrets.values()) == ["first-token-1", "second-token-2"]


def test_a_name_that_omni_toml_defines_is_not_taken(person: Person) -> None:
    person.omni_home.mkdir(mode=0o700)
    (person.omni_home / "omni.toml").write_text('[servers.github]\ncommand = "x"\n')
    person.has("claude-desktop")
    assert "github-2" in imported(person, code=0)


def test_names_become_names_that_can_stand_before_a_tool(person: Person) -> None:
    names = ["a__b", "UPPER case", "ünïcödé", "日本", "x" * 60, "x" * 59 + "y", "--", "a.b/c"]
    person.has("cursor", json.dumps({"mcpServers": {name: {"command": name} for name in names}}))
    assert list(imported(person, code=0)) == [
        "a-b", "upper-case", "unicode", "server", "x" * 24, "x" * 22 + "-2", "server-2", "a-b-c",
    ]  # fmt: skip


def test_an_input_leaves_a_disabled_server_that_says_where_its_secret_belongs(person: Person) -> None:
    person.has("vscode")
    server = imported(person)["perplexity"]
    assert not server["enabled"]
    place = Path(server["secrets"]["PERPLEXITY_API_KEY"].removeprefix("file:"))
    assert str(place) in " ".join(server["notes"])
    assert "--region=eu" in server["target"]
    assert person.run("servers", "enable", "perplexity").exit_code == 1

    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("pplx-12345\n")
    assert person.run("servers", "enable", "perplexity").exit_code == 0
    found = load_servers(person.servers_file)
    assert found.servers["perplexity"].enabled
    assert read_server_secrets(found, {})[0]["perplexity-perplexity_api_key"] == "pplx-12345"
    assert {one["state"] for one in imported(person).values()} == {"same"}


def test_a_variable_that_is_not_set_is_said_and_one_in_a_command_is_not_guessed(person: Person) -> None:
    text = {
        "secret": {"url": "https://e.org/mcp", "headers": {"Authorization": "Bearer ${env:NOT_SET_TOKEN}"}},
        "command": {"command": "x", "args": ["${env:NOT_SET}"]},
    }
    person.has("cursor", json.dumps({"mcpServers": text}))
    found = person.json("import", "--yes", code=1)
    assert any("NOT_SET_TOKEN is not set" in note for note in found["servers"][0]["notes"])
    assert [refused["name"] for refused in found["not_taken"]] == ["command"]


def test_an_ordinary_variable_is_filled_in_and_a_default_stands_in_for_one_that_is_not_set(person: Person) -> None:
    env = {"REGION": "${REGION_NAME}", "A_TOKEN": "${NOT_SET_TOKEN:-fallback-1}", "B_TOKEN": "${SET_TOKEN:-fallback-2}"}
    person.has("claude-code", json.dumps({"mcpServers": {"s": {"command": "x", "env": env}}}))
    person.variables |= {"REGION_NAME": "eu-central-1", "SET_TOKEN": "token-12345"}
    imported(person, code=0)
    found = load_servers(person.servers_file)
    assert found.servers["s"].env == {"REGION": "eu-central-1"}
    assert person.secrets == {"s-a_token": "fallback-1"}
    assert found.secrets["s-b_token"] == "env:SET_TOKEN"


def test_long_names_of_variables_make_names_of_secrets_that_differ(person: Person) -> None:
    env = {f"{'LONG_' * 30}{number}_TOKEN": f"value-{number}" for number in range(12)}
    person.has("cursor", json.dumps({"mcpServers": {"a" * 40: {"command": "x", "env": env}}}))
    imported(person, code=0)
    found = load_servers(person.servers_file)
    values, lacking = read_server_secrets(found, {})
    [server] = found.servers.values()
    assert not lacking
    assert {variable: values[name] for variable, name in server.secrets.items()} == env


def test_a_value_that_would_be_taken_for_a_reference_to_another_secret_is_refused(person: Person) -> None:
    env = {"A": "${secret:github-token}"}
    person.has("claude-desktop", json.dumps({"mcpServers": {"a": {"command": "x", "env": env}}}))
    assert person.json("import", "--yes", code=1)["not_taken"][0]["name"] == "a"


def test_our_own_entry_is_not_imported(person: Person) -> None:
    person.has("cursor")
    person.run("connect", "cursor")
    assert "omni" not in imported(person)


def test_short_and_plain_values_are_not_kept_as_secrets(person: Person) -> None:
    env = {"A_TOKEN": "abc", "B_PASSWORD": "true", "C_KEY": "", "D": "just words here", "E_API_KEY": "long enough"}
    person.has("cursor", json.dumps({"mcpServers": {"s": {"command": "x", "env": env}}}))
    imported(person, code=0)
    found = load_servers(person.servers_file).servers["s"]
    assert set(found.secrets) == {"E_API_KEY"}
    assert found.env == {key: value for key, value in env.items() if key != "E_API_KEY"}


def test_arguments_that_hold_a_secret_are_hidden_and_it_is_said(person: Person) -> None:
    entry = {"command": "x", "args": ["--token", "abcd1234", "postgres://u:pa55@h/db", f"--k={TOKEN}"]}
    person.has("cursor", json.dumps({"mcpServers": {"s": entry, "u": {"url": "https://e.org/mcp?api_key=abcd1234"}}}))
    output = person.run("import", "--yes").output
    output += person.run("servers", "list").output + person.run("servers", "get", "s").output
    output += person.run("servers", "get", "u", "--json").output
    for secret in ("abcd1234", "pa55", TOKEN):
        assert secret not in output
    assert "an argument looks like a secret" in output


@pytest.mark.parametrize("entry", [
    {"command": "x\x00y"}, {"command": "x", "args": ["\ud800"]}, {"url": "ftp://e.org"},
    {"url": "https://u:p4ss@e.org/"},
    {"url": "https://e.org", "headers": {"Host": "x"}}, {"url": "https://e.org", "headers": {"A B": "x"}},
    {"url": "https://e.org", "env": {"A": "1"}}, {"command": "x", "cwd": "relative"},
    {"command": "x", "env": {"A=B": "1"}},
])  # fmt: skip
def test_what_can_be_no_definition_is_reported_and_nothing_else_suffers(person: Person, entry: object) -> None:
    person.has("cursor", json.dumps({"mcpServers": {"bad": entry, "good": {"command": "x"}}}))
    result = person.run("import", "--yes", "--json")
    found = json.loads(result.stdout)
    assert [refused["name"] for refused in found["not_taken"]] == ["bad"]
    assert [server["name"] for server in found["servers"]] == ["good"]
    assert "p4ss" not in result.output


@pytest.mark.parametrize("where", ["name", "command", "arg", "variable", "value", "field", "input", "twice"])
def test_half_a_character_anywhere_is_no_crash(person: Person, where: str) -> None:
    half = "\\ud800"
    entries = {
        "name": f'"{half}": {{"command": "x"}}',
        "command": f'"a": {{"command": "{half}"}}',
        "arg": f'"a": {{"command": "x", "args": ["{half}"]}}',
        "variable": f'"a": {{"command": "x", "env": {{"{half}": "y"}}}}',
        "value": f'"a": {{"command": "x", "env": {{"A_TOKEN": "secret{half}"}}}}',
        "field": f'"a": {{"command": "x", "{half}": 1}}',
        "input": f'"a": {{"command": "${{input:{half}}}"}}',
        "twice": f'"a": {{"command": "x", "{half}": 1, "{half}": 2}}',
    }
    person.has("cursor", f'{{"mcpServers": {{{entries[where]}, "good": {{"command": "good"}}}}}}')
    for words in (["--dry-run"], ["--dry-run", "--json"], ["--yes", "--json"], []):
        result = person.run("import", *words)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    assert "good" in load_servers(person.servers_file).servers


def test_a_dry_run_writes_nothing(person: Person) -> None:
    everybody(person)
    assert "github (new)" in person.run("import", "--dry-run").output
    assert not person.omni_home.exists()


def test_without_a_terminal_or_a_yes_nothing_is_written(person: Person) -> None:
    person.has("cursor")
    assert person.run("import").exit_code == 2
    assert not person.servers_file.exists()


def test_a_machine_without_clients_says_so(person: Person) -> None:
    result = person.run("import", "--yes")
    assert result.exit_code == 0 and "No client's configuration" in result.output


def test_one_client_can_be_named_and_an_unknown_one_is_a_usage_error(person: Person) -> None:
    everybody(person)
    assert set(imported(person, "codex", code=0)) == {"context7", "figma-design"}
    assert person.run("import", "netscape").exit_code == 2


@pytest.mark.parametrize(("name", "text", "server"), [
    ("x.toml", '[mcp_servers.a]\ncommand = "x"\n', "a"),
    ("x.json", '{"servers": {"b": {"type": "stdio", "command": "x"}}}', "b"),
    ("y.json", '{"mcpServers": {"c": {"command": "x", "args": ["${env:HOME}"]}}}', "c"),
])  # fmt: skip
def test_a_file_can_be_named(person: Person, tmp_path: Path, name: str, text: str, server: str) -> None:
    (tmp_path / name).write_text(text)
    assert set(imported(person, "--file", str(tmp_path / name), code=0)) == {server}
    assert "${" not in person.servers_file.read_text()


def test_a_named_file_that_is_not_there_is_an_error(person: Person) -> None:
    assert person.run("import", "--yes", "--file", "/nowhere/mcp.json").exit_code == 1


def test_a_checkout_is_only_read_if_it_is_named(
    person: Person, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "checkout"
    project.mkdir()
    (project / ".mcp.json").write_text('{"mcpServers": {"evil": {"command": "evil"}}}')
    monkeypatch.chdir(project)
    assert imported(person, code=0) == {}
    assert set(imported(person, "--project", str(project), code=0)) == {"evil"}


def test_an_unreadable_file_is_reported_beside_the_others(person: Person) -> None:
    everybody(person)
    person.has("cursor", "{")
    found = person.json("import", "--yes", code=1)
    assert any(".cursor/mcp.json" in problem for problem in found["problems"])
    assert {server["name"] for server in found["servers"]} >= {"github", "perplexity"}


def test_a_secret_that_is_still_there_is_never_overwritten(person: Person) -> None:
    file = person.has("claude-desktop")
    imported(person, code=0)
    person.servers_file.unlink()
    file.write_text(file.read_text().replace(TOKEN, "another-token-1"))
    imported(person, code=0)
    assert sorted(person.secrets.values()) == ["another-token-1", TOKEN]
    assert len(person.secrets) == 2


def test_two_at_once_write_each_server_once(person: Person) -> None:
    everybody(person)
    environment = {
        "HOME": str(person.home),
        "OMNI_HOME": str(person.omni_home),
        "PATH": os.environ["PATH"],
        **VARIABLES,
    }
    code = "from omni_mcp.cli.main import main; main()"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, "import", "--yes"], env=environment, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for _ in range(3)
    ]  # fmt: skip
    errors = [process.communicate(timeout=60)[1].decode() for process in started]
    assert all(not error or "changed meanwhile" in error for error in errors)
    assert imported(person)["github"]["state"] == "same"
    names = list(tomllib.loads(person.servers_file.read_text())["servers"])
    assert not [name for name in names if name.endswith("-2") and name != "memory-2"]


def test_a_plan_is_not_carried_out_beside_servers_that_it_did_not_know(person: Person) -> None:
    person.has("cursor")
    translator = Translator(environment={}, home=person.home, is_secret_name=lambda _: True)
    planner = Planner(translator, secrets_dir=person.home / "secrets", environment={}, home=person.home)
    readings = [read_place(place, person.around) for place in places_of("cursor", person.around)]
    plan = planner.plan(readings, load_servers(person.servers_file))
    assert person.run("add", "github", "--", "another").exit_code == 0

    with pytest.raises(Conflict):
        carry_out(plan, file=person.servers_file, secrets_dir=person.home / "secrets")
    assert set(load_servers(person.servers_file).servers) == {"github"}
    assert not (person.home / "secrets").exists()


def test_a_thousand_servers_are_imported(person: Person) -> None:
    text = {"mcpServers": {f"s{number}": {"command": "x", "args": [str(number)]} for number in range(1000)}}
    person.has("cursor", json.dumps(text))
    assert len(imported(person, code=0)) == 1000
