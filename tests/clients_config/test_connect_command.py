"""`connect` and `disconnect` on real files: what changes, what stays, and when nothing is written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from omni_mcp.cli.shim import parse_arguments
from omni_mcp.clients.client_file import read_snapshot, replace_file
from omni_mcp.clients.jsonc import read_jsonc
from omni_mcp.clients.places import CLIENTS, TRAITS, ClientName
from omni_mcp.clients.records import Records
from omni_mcp.clients.toml_edit import read_toml
from omni_mcp.contracts.errors import Conflict
from tests.clients_config.conftest import FILES, TOKEN, Person


def entries(client: str, file: Path) -> dict[str, Any]:
    text = file.read_text()
    value = read_toml(text) if file.suffix == ".toml" else read_jsonc(text).value
    found: dict[str, Any] = value[TRAITS[client].key]  # type: ignore[index]
    return found


def tree(person: Person) -> dict[str, tuple[bytes, int]]:
    files = [file for file in person.home.rglob("*") if file.is_file()]
    return {str(file): (file.read_bytes(), file.stat().st_mode) for file in files}


@pytest.mark.parametrize("client", CLIENTS)
def test_the_entry_starts_the_shim_by_its_absolute_path_as_this_agent(person: Person, client: ClientName) -> None:
    file = person.has(client)
    others = entries(client, file)

    assert person.run("connect", client, "--profile", "work").exit_code == 0

    found = entries(client, file)
    entry = found.pop("omni")
    assert found == others
    assert Path(entry["command"]).is_absolute() and os.access(entry["command"], os.X_OK)
    start = entry["args"].index("stdio")
    hello = parse_arguments(entry["args"][start + 1 :])
    assert (hello["agent"], hello["profile"]) == (client, "work")
    assert entry["env"] == {"OMNI_HOME": str(person.omni_home)}
    assert ("type" in entry) == (client in ("claude-code", "vscode"))


def test_a_usual_home_needs_no_variable_in_the_entry(person: Person) -> None:
    file = person.has("cursor")
    person.variables["OMNI_HOME"] = ""
    assert person.run("connect", "cursor").exit_code == 0
    assert "env" not in entries("cursor", file)["omni"]


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("shape", ["sample", "crlf", "bom", "one line", "empty", "no servers", "no end of line"])
def test_connect_and_disconnect_leave_every_byte_as_it_was(person: Person, client: str, shape: str) -> None:
    file = person.has(client)
    data = file.read_bytes()
    toml = file.suffix == ".toml"
    data = {
        "sample": data,
        "crlf": data.replace(b"\n", b"\r\n"),
        "bom": b"\xef\xbb\xbf" + data,
        "one line": b"a = 1" if toml else json.dumps(read_jsonc(data.decode()).value).encode(),
        "empty": b"",
        "no servers": b"a = 1\n" if toml else b'{ "a" : 1 }\n',
        "no end of line": data.rstrip(),
    }[shape]
    file.write_bytes(data)
    before = tree(person)

    assert person.run("connect", client).exit_code == 0
    assert "omni" in entries(client, file)
    assert person.run("disconnect", client).exit_code == 0

    assert tree(person) == before


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_without_a_file_gets_one_and_loses_it_again(person: Person, client: str) -> None:
    assert person.run("connect", client).exit_code == 0
    file = person.home / FILES[client][0]
    assert list(entries(client, file)) == ["omni"]
    assert file.stat().st_mode & 0o777 == 0o600

    assert person.run("disconnect", client).exit_code == 0
    assert list(person.home.iterdir()) == []


@pytest.mark.parametrize("client", CLIENTS)
def test_connecting_twice_is_connecting_once(person: Person, client: str) -> None:
    person.has(client)
    assert person.json("connect", client)["change"] == "written"
    once = tree(person)
    assert person.json("connect", client)["change"] == "unchanged"
    assert tree(person) == once


@pytest.mark.parametrize("client", CLIENTS)
def test_connecting_in_another_way_keeps_the_way_back(person: Person, client: str) -> None:
    person.has(client)
    before = tree(person)
    for words in (["--profile", "a"], ["--profile", "b"], ["--agent", "c"]):
        assert person.json("connect", client, *words)["change"] == "written"
    assert person.json("disconnect", client)["change"] == "restored"
    assert tree(person) == before


@pytest.mark.parametrize("client", CLIENTS)
def test_a_backup_with_the_old_bytes_and_mode_stands_beside_the_file(person: Person, client: str) -> None:
    file = person.has(client)
    file.chmod(0o640)
    data = file.read_bytes()
    backup = Path(person.json("connect", client)["backup"])
    assert backup.parent == file.parent and backup.name.startswith(f"{file.name}.before-omni-2")
    assert backup.read_bytes() == data
    assert backup.stat().st_mode & 0o777 == file.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("client", CLIENTS)
def test_a_dry_run_shows_a_diff_without_secrets_and_writes_nothing(person: Person, client: str) -> None:
    file = person.has(client)
    before = tree(person)
    result = person.run("connect", client, "--dry-run")
    assert result.exit_code == 0
    assert f"+++ {file}" in result.output and "stdio" in result.output
    assert TOKEN not in result.output
    assert tree(person) == before
    assert not (person.omni_home / "data").exists()


def test_the_diff_of_moved_servers_hides_their_secrets(person: Person) -> None:
    args = ["--api-key", "s3cretword", "--db=postgres://u:pa55word@h/d"]
    odd = {"command": "x", "args": args, "env": {"MY_PASSWORD": "hunter22"}}
    person.has("cursor", json.dumps({"mcpServers": {"odd": odd}}, indent=2))
    assert person.run("import", "cursor", "--yes").exit_code == 0
    person.accepts_all()
    output = person.run("connect", "cursor", "--move", "--dry-run").output
    assert '-    "odd"' in output
    for secret in ("s3cretword", "pa55word", "hunter22"):
        assert secret not in output


def test_the_line_numbers_of_a_diff_are_those_of_the_file(person: Person) -> None:
    person.has("codex")
    lines = person.run("connect", "codex", "--dry-run").output.splitlines()
    text = (person.home / ".codex/config.toml").read_text().splitlines()
    assert lines[2].startswith(f"@@ -{len(text) - 1},2 +{len(text) - 1},")


@pytest.mark.parametrize("client", CLIENTS)
def test_a_change_of_the_client_in_between_survives_disconnecting(person: Person, client: str) -> None:
    file = person.has(client)
    others = entries(client, file)
    person.run("connect", client)
    changed = file.read_bytes().replace(b"sentry", b"sentries").replace(b"model =", b"new = 1\nmodel =") + b"\n"
    file.write_bytes(changed)

    assert person.json("disconnect", client)["change"] == "removed"
    assert "omni" not in entries(client, file)
    assert set(entries(client, file)) == {name.replace("sentry", "sentries") for name in others}


@pytest.mark.parametrize("client", CLIENTS)
def test_moved_servers_are_gone_and_come_back(person: Person, client: str) -> None:
    person.variables |= {
        "API_KEY": "k-12345678",
        "ASANA_KEY": "k-12345678",
        "CONTEXT7_API_KEY": "k-1",
        "TEAM_KEY": "k-12345678",
    }
    file = person.has(client)
    before, all_of_them = tree(person), set(entries(client, file))
    person.run("import", client, "--yes")
    person.accepts_all()
    moved = set(person.json("connect", client, "--move")["moved"])
    assert moved and set(entries(client, file)) == (all_of_them - moved) | {"omni"}

    assert person.run("disconnect", client).exit_code == 0
    assert tree(person) == before


def test_what_the_client_added_between_two_connects_survives_disconnecting(person: Person) -> None:
    file = person.has("cursor", '{"mcpServers": {"a": {"command": "x"}}}')
    person.run("connect", "cursor")
    file.write_text(file.read_text().replace('"a"', '"added": {"command": "y"}, "a"'))
    person.run("connect", "cursor", "--profile", "other")

    assert person.json("disconnect", "cursor")["change"] == "removed"
    assert set(entries("cursor", file)) == {"a", "added"}


@pytest.mark.parametrize("client", ["cursor", "codex"])
def test_moved_servers_come_back_even_if_the_client_changed_the_file(person: Person, client: str) -> None:
    person.variables |= {"CONTEXT7_API_KEY": "k-1", "TEAM_KEY": "k-12345678"}
    file = person.has(client)
    before = entries(client, file)
    person.run("import", client, "--yes")
    person.accepts_all()
    moved = set(person.json("connect", client, "--move")["moved"])
    file.write_bytes(file.read_bytes() + b"\n")
    person.run("connect", client, "--profile", "other")  # and we ourselves once more

    assert set(person.json("disconnect", client)["moved"]) == moved
    assert entries(client, file) == before


def test_only_imported_servers_are_moved(person: Person) -> None:
    file = person.has("claude-desktop")
    person.run("import", "claude-desktop", "--yes")
    person.accepts_all()
    person.run("servers", "remove", "github")
    moved = person.json("connect", "claude-desktop", "--move")["moved"]
    assert "github" not in moved and "github" in entries("claude-desktop", file)


def test_an_entry_of_that_name_which_is_not_ours_stays(person: Person) -> None:
    file = person.has("cursor", '{"mcpServers": {"omni": {"command": "other"}}}')
    data = file.read_bytes()
    result = person.run("connect", "cursor")
    assert result.exit_code == 1 and "--name" in result.output
    assert file.read_bytes() == data
    assert person.run("connect", "cursor", "--name", "gateway").exit_code == 0
    assert set(entries("cursor", file)) == {"omni", "gateway"}


def test_disconnecting_what_was_never_connected_says_so(person: Person) -> None:
    file = person.has("cursor")
    data = file.read_bytes()
    assert person.run("disconnect", "cursor").exit_code == 1
    assert file.read_bytes() == data


def test_an_entry_that_a_person_pasted_can_be_disconnected(person: Person) -> None:
    file = person.has(
        "cursor", '{"mcpServers": {"mine": {"command": "omni-mcp", "args": ["stdio"]}, "b": {"command": "x"}}}'
    )
    assert person.run("disconnect", "cursor").exit_code == 0
    assert set(entries("cursor", file)) == {"b"}


@pytest.mark.parametrize("client", CLIENTS)
def test_a_file_that_cannot_be_read_is_left_as_it_is(person: Person, client: str) -> None:
    file = person.has(client, "{ this is = neither")
    result = person.run("connect", client)
    assert result.exit_code == 1 and str(file) in result.output
    assert file.read_text() == "{ this is = neither"
    assert list(file.parent.glob("*before-omni*")) == []


def test_a_read_only_file_is_not_written(person: Person) -> None:
    file = person.has("cursor")
    file.chmod(0o400)
    data = file.read_bytes()
    result = person.run("connect", "cursor")
    assert result.exit_code == 1 and "read-only" in result.output
    assert file.read_bytes() == data


def test_ones_own_link_is_followed_and_stays_a_link(person: Person) -> None:
    file = person.has("cursor")
    real = person.home / "dotfiles" / "cursor.json"
    real.parent.mkdir()
    file.rename(real)
    file.symlink_to("../dotfiles/cursor.json")
    data = real.read_bytes()

    assert person.run("connect", "cursor").exit_code == 0
    assert file.is_symlink() and "omni" in entries("cursor", real)
    assert person.run("disconnect", "cursor").exit_code == 0
    assert file.is_symlink() and real.read_bytes() == data


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of others")
@pytest.mark.parametrize("theirs", ["link", "target", "file", "directory"])
def test_nothing_is_written_through_what_belongs_to_somebody_else(person: Person, theirs: str) -> None:
    file = person.has("cursor")
    real = person.home / "real.json"
    real.write_text("{}")
    if theirs in ("link", "target"):
        file.unlink()
        file.symlink_to(real)
    path = {"link": file, "target": real, "file": file, "directory": file.parent}[theirs]
    os.chown(path, 65534, 65534, follow_symlinks=False)
    before = tree(person)
    assert person.run("connect", "cursor").exit_code == 1
    assert tree(person) == before


def test_a_directory_that_everybody_can_write_to_is_refused(person: Person) -> None:
    file = person.has("cursor")
    file.parent.chmod(0o777)
    assert person.run("connect", "cursor").exit_code == 1
    assert "omni" not in entries("cursor", file)


def test_links_in_a_circle_end(person: Person) -> None:
    file = person.has("cursor")
    file.unlink()
    file.symlink_to(file.name)
    assert person.run("connect", "cursor").exit_code == 1


def test_what_the_client_wrote_between_our_reading_and_writing_is_not_overwritten(person: Person) -> None:
    file = person.has("cursor", '{"a": 1}')
    snapshot = read_snapshot(file)
    file.write_text('{"a": 2}')
    with pytest.raises(Conflict):
        replace_file(snapshot, b"{}")
    assert file.read_text() == '{"a": 2}'
    assert [other.name for other in file.parent.iterdir()] == [file.name]


def test_two_at_once_both_end_up_in_the_file(person: Person) -> None:
    file = person.has("claude-code")
    data = file.read_bytes()
    code = "from omni_mcp.cli.main import main; main()"
    environment = {"HOME": str(person.home), "OMNI_HOME": str(person.omni_home), "PATH": os.environ["PATH"]}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, "connect", "claude-code", "--name", f"omni{number}"], env=environment
        )
        for number in range(4)
    ]
    assert [process.wait(60) for process in started] == [0, 0, 0, 0]
    assert {f"omni{number}" for number in range(4)} <= set(entries("claude-code", file))
    assert person.run("disconnect", "claude-code").exit_code == 0
    assert file.read_bytes() == data


@pytest.mark.parametrize("scope", ["project", "local"])
def test_claude_code_can_be_connected_for_one_project(person: Person, scope: str, tmp_path: Path) -> None:
    user_file = person.has("claude-code")
    project = tmp_path / "app"
    project.mkdir()
    before = tree(person)
    words = ["claude-code", "--scope", scope, "--project", str(project)]

    assert person.run("connect", *words).exit_code == 0
    if scope == "project":
        assert "omni" in entries("claude-code", project / ".mcp.json")
    else:
        assert "omni" in json.loads(user_file.read_text())["projects"][str(project)]["mcpServers"]
    assert "omni" not in entries("claude-code", user_file)

    assert person.run("disconnect", *words).exit_code == 0
    assert tree(person) == before and list(project.iterdir()) == []


def test_a_scope_that_the_client_does_not_have_is_an_error(person: Person) -> None:
    assert person.run("connect", "claude-desktop", "--scope", "local").exit_code == 1


def test_a_tampered_backup_is_not_put_in_place(person: Person) -> None:
    file = person.has("cursor")
    names = set(entries("cursor", file))
    backup = Path(person.json("connect", "cursor")["backup"])
    backup.write_text('{"mcpServers": {"evil": {"command": "x"}}}')
    assert person.json("disconnect", "cursor")["change"] == "removed"
    assert set(entries("cursor", file)) == names


def test_while_another_command_of_ours_writes_nothing_is_written(person: Person) -> None:
    file = person.has("cursor")
    data = file.read_bytes()
    waiting = threading.Thread(target=person.run, args=("connect", "cursor"))
    person.omni_home.mkdir(mode=0o700)
    with Records(person.omni_home / "data").locked():
        waiting.start()
        waiting.join(0.5)  # a command that does not wait would be done by then
        assert waiting.is_alive() and file.read_bytes() == data
    waiting.join(30)
    assert "omni" in entries("cursor", file)
