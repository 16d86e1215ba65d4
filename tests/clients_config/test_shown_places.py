"""Which directories of a person a server may be given: never the gateway's own, never a home or a place of the system.
Each of these would be a second way round the policy, what was accepted, and the record."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from omni_mcp.host_places import HostPlaces
from omni_mcp.paths import Home
from omni_mcp.server_definition import ServerDefinition
from omni_mcp.servers_file import load_servers
from omni_mcp.upstreams.definitions import read_definitions
from tests.clients_config.conftest import Person

OWN = ("", "data", "data/secrets", "policies", "manifests", "profiles", "data/artifacts", "data/servers/x/home")
SYSTEMS = ("/", "/etc", "/home", "/root", "/proc", "/proc/self", "/sys", "/dev", "/dev/shm", "/run", "/tmp", "/usr")


def home_of(person: Person) -> Home:
    return Home(config=person.omni_home, data=person.omni_home / "data", runtime=person.omni_home.parent / "runtime")


def own_directories(person: Person) -> None:
    for name in OWN:
        (person.omni_home / name).mkdir(parents=True, exist_ok=True, mode=0o700)


def refused(person: Person, *directories: Path | str, mode: str = "") -> str:
    """Return what `add` says while it refuses *directories*; nothing was written then."""
    result = person.run("add", "wide", *(f"--dir={one}{mode}" for one in directories), "--", "server-wide")
    assert result.exit_code != 0, result.output
    assert "wide" not in load_servers(person.servers_file).servers
    return result.output


@pytest.mark.parametrize("mode", ["", ":rw"])
@pytest.mark.parametrize("name", OWN)
def test_no_server_is_added_with_a_directory_of_the_gateways_own(person: Person, name: str, mode: str) -> None:
    own_directories(person)
    assert "where the gateway keeps its" in refused(person, person.omni_home / name, mode=mode)


def test_no_server_is_added_with_a_directory_that_holds_one_of_the_gateways_own(person: Person) -> None:
    person.omni_home = person.home / "work" / "state" / "omni"
    own_directories(person)
    for above in (person.home / "work", person.home / "work" / "state"):
        assert f"holds {person.omni_home}, where the gateway keeps its settings" in refused(person, above)


def test_a_link_to_the_gateways_own_is_refused_as_what_it_leads_to(person: Person) -> None:
    own_directories(person)
    link = person.home / "notes"
    link.symlink_to(person.omni_home / "data")
    assert f"a link to {person.omni_home}/data" in refused(person, link)


def test_what_a_link_of_the_gateways_own_leads_to_is_its_own_too(person: Person) -> None:
    kept = person.home / "dotfiles" / "rules"
    kept.mkdir(parents=True)
    person.omni_home.mkdir(mode=0o700)
    (person.omni_home / "policies").symlink_to(kept)
    assert "policies" in refused(person, kept, mode=":rw")
    assert "policies" in refused(person, kept.parent, mode=":rw")
    settings = person.home / "settings"
    settings.mkdir()
    (settings / "omni.toml").write_text("")
    (person.omni_home / "omni.toml").symlink_to(settings / "omni.toml")
    assert "omni.toml" in refused(person, settings, mode=":rw")


def test_the_gateway_without_omni_home_is_protected_from_one_with_it(person: Person) -> None:
    usual = person.home / ".config" / "omni-mcp"
    usual.mkdir(parents=True)
    assert "where the gateway keeps its settings" in refused(person, usual)
    assert "holds" in refused(person, person.home / ".config", mode=":rw")


def test_the_directories_of_xdg_variables_are_the_gateways_own_too(person: Person) -> None:
    elsewhere = person.home / "elsewhere"
    for kind in ("config", "data", "run"):
        (elsewhere / kind / "omni-mcp").mkdir(parents=True)
        person.variables[f"XDG_{'RUNTIME' if kind == 'run' else kind.upper()}_{'DIR' if kind == 'run' else 'HOME'}"] = (
            str(elsewhere / kind)
        )
    del person.variables["XDG_RUNTIME_DIR"]
    person.variables["OMNI_HOME"] = ""
    for kind in ("config", "data"):
        result = person.run("add", "wide", "--dir", str(elsewhere / kind), "--", "server-wide")
        assert result.exit_code and f"{elsewhere}/{kind}/omni-mcp, where the gateway" in result.output


def test_another_name_of_a_directory_of_the_gateways_own_is_known_by_what_is_there(person: Person) -> None:
    own_directories(person)
    alias = person.home / "alias"
    alias.mkdir()
    (person.omni_home / "omni.toml").write_text("")
    os.link(person.omni_home / "omni.toml", alias / "hard")  # as a second mount would show it
    own = home_of(person)
    (person.omni_home / "manifests" / "x").symlink_to(person.omni_home / "omni.toml")
    assert "another way to" in HostPlaces(own).fault(str(alias / "hard"))
    assert not HostPlaces(own).fault(str(alias))


@pytest.mark.parametrize("place", SYSTEMS)
def test_add_refuses_at_once_what_no_cell_may_be_shown(person: Person, place: str) -> None:
    assert refused(person, place)


def test_add_refuses_a_home_as_a_whole_and_says_what_to_name_instead(person: Person) -> None:
    said = refused(person, person.home, mode=":rw")
    assert "too wide" in said and "--dir name only what it works on" in said


def test_what_the_gateway_is_made_of_may_be_read_and_not_written(person: Person) -> None:
    code = Path(__file__).parents[2] / "omni_mcp"
    assert "our own modules" in refused(person, code, mode=":rw")
    assert person.run("add", "reader", "--dir", str(code), "--", "server").exit_code == 0


def test_a_refused_server_leaves_no_secret_behind(person: Person) -> None:
    own_directories(person)
    result = person.run(
        "add", "wide", "--dir", str(person.omni_home), "--env", "API_TOKEN=abcd-1234-efgh", "--", "server-wide"
    )
    assert result.exit_code and not person.secrets


@pytest.mark.parametrize("mode", ["", ":rw"])
def test_an_ordinary_directory_beside_all_that_is_given(person: Person, mode: str) -> None:
    own_directories(person)
    notes = person.home / "notes"
    notes.mkdir()
    assert person.run("add", "notes", "--dir", f"{notes}{mode}", "--", "server-notes").exit_code == 0
    assert "read and write" not in refused(person, person.omni_home)


def test_add_json_is_refused_the_same(person: Person) -> None:
    own_directories(person)
    said = {"command": "x", "mounts": [{"source": str(person.omni_home), "writable": True}]}
    result = person.run("servers", "add-json", "wide", json.dumps(said))
    assert result.exit_code and "where the gateway keeps" in result.output


def test_a_server_of_a_file_that_names_the_gateways_own_is_out_with_the_reason_and_the_others_stay(
    person: Person,
) -> None:
    own_directories(person)
    notes = person.home / "notes"
    notes.mkdir()
    assert person.run("add", "notes", "--dir", str(notes), "--", "server-notes").exit_code == 0
    text = person.servers_file.read_text()
    person.servers_file.write_text(
        f'{text}\n[servers.wide]\ncommand = "x"\nmounts = [{{source = "{person.omni_home}", writable = true}}]\n'
    )
    by_hand = ServerDefinition.model_validate({"command": "x", "mounts": [{"source": str(person.omni_home / "data")}]})
    found = read_definitions({"hand": by_hand}, home_of(person), secrets={}, environment={})
    assert {name: one.enabled for name, one in found.servers.items()} == {"hand": False, "notes": True, "wide": False}
    assert {one.path for one in found.problems} == {"$.servers.hand", "$.servers.wide"} and not found.refused
    assert all("where the gateway keeps" in one.message for one in found.problems)


def test_a_server_that_is_out_says_why_where_one_looks_for_it(person: Person) -> None:
    own_directories(person)
    person.run("add", "wide", "--", "server-wide")
    text = person.servers_file.read_text().rstrip()
    person.servers_file.write_text(f'{text}\nmounts = [{{source = "{person.omni_home}"}}]\n')
    [row] = person.json("servers", "list")
    told = [person.run("servers", *words).output for words in (["get", "wide"], ["test", "wide"])]
    told.append(person.run("doctor").output)
    assert row["state"].startswith("refused")
    assert all("where the gateway keeps its settings" in text for text in told), told


def test_what_is_out_can_still_be_disabled_and_not_enabled_again(person: Person) -> None:
    own_directories(person)
    person.run("add", "notes", "--", "server-notes")
    text = person.servers_file.read_text().rstrip()
    person.servers_file.write_text(f'{text}\nmounts = [{{source = "{person.omni_home}"}}]\n')
    assert person.run("servers", "disable", "notes").exit_code == 0
    assert "where the gateway keeps" in person.run("servers", "enable", "notes").output
    assert not load_servers(person.servers_file).servers["notes"].enabled


def test_import_proposes_neither_the_gateways_own_nor_where_keys_are_kept_and_says_so(person: Person) -> None:
    own_directories(person)
    places = [".ssh", ".gnupg", ".aws", ".config/gcloud", ".kube", ".docker", ".mozilla/firefox"]
    for place in (*places, "work/.aws"):
        (person.home / place).mkdir(parents=True)
    args = [str(person.omni_home / "data"), *(str(person.home / place) for place in places), str(person.home / "work")]
    person.has("cursor", json.dumps({"mcpServers": {"wide": {"command": "server-wide", "args": args}}}))
    [found] = person.json("import", "--yes")["servers"]
    assert not load_servers(person.servers_file).servers["wide"].mounts
    for place in (*places, "work"):
        [note] = [note for note in found["notes"] if note.startswith(f"{person.home / place} is not shown to it")]
        assert "keys are kept" in note and f"--dir {person.home / place}" in note
    [note] = [note for note in found["notes"] if note.startswith(str(person.omni_home))]
    assert "where the gateway keeps" in note and "--dir" not in note


def test_a_place_of_keys_can_be_given_by_name(person: Person) -> None:
    keys = person.home / ".ssh"
    keys.mkdir()
    result = person.run("add", "git", "--dir", str(keys), "--", "server-git", str(keys))
    assert result.exit_code == 0 and "is not shown" not in result.output
    assert [mount.source for mount in load_servers(person.servers_file).servers["git"].mounts] == [str(keys)]


def test_a_node_beside_the_gateways_own_is_shown_without_what_is_around_it(person: Person) -> None:
    programs = person.home / ".local" / "bin"
    programs.mkdir(parents=True)
    (person.home / ".local" / "share" / "omni-mcp").mkdir(parents=True)
    for name in ("node", "npx"):
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)
    person.variables["PATH"] = f"{programs}:/usr/bin:/bin"
    person.has("cursor", json.dumps({"mcpServers": {"files": {"command": "npx", "args": ["server-files"]}}}))
    result = person.run("import", "--yes")
    mounts = [mount.source for mount in load_servers(person.servers_file).servers["files"].mounts]
    assert result.exit_code == 0, result.output
    assert str(programs / "node") in mounts and str(person.home / ".local") not in mounts
