"""`servers set`: what a server may reach and see changes without an editor, and what was accepted of it waits again."""

from __future__ import annotations

import pytest

from omni_mcp.engines.catalog.lock_listing import KeptListing, keep_listing, listings_dir
from omni_mcp.server_definition import ServerDefinition
from omni_mcp.servers_file import load_servers
from omni_mcp.upstreams.definitions import launch_of
from tests.clients_config.conftest import TOKEN, Person


@pytest.fixture
def one(person: Person) -> Person:
    """A person with one server."""
    (person.home / "notes").mkdir()
    assert (
        person.run(
            "add", "one", "--allow", "a.example.org:443", "--dir", str(person.home / "notes"), "--", "x"
        ).exit_code
        == 0
    )
    return person


def definition(person: Person) -> ServerDefinition:
    return load_servers(person.servers_file).servers["one"]


def test_hosts_are_added_and_taken_away(one: Person) -> None:
    assert one.run("servers", "set", "one", "--allow", "b.example.org:443").exit_code == 0
    assert definition(one).hosts == ("a.example.org:443", "b.example.org:443")
    assert one.run("servers", "set", "one", "--no-hosts", "--allow", "c.example.org:443").exit_code == 0
    assert definition(one).hosts == ("c.example.org:443",)
    assert one.run("servers", "set", "one", "--no-hosts").exit_code == 0
    assert definition(one).hosts == ()


def test_a_directory_becomes_writable_another_is_added_and_one_is_taken_away(one: Person) -> None:
    notes, drafts = one.home / "notes", one.home / "drafts"
    drafts.mkdir()
    assert one.run("servers", "set", "one", "--dir", f"{notes}:rw", "--dir", str(drafts)).exit_code == 0
    assert {mount.source: mount.writable for mount in definition(one).mounts} == {str(notes): True, str(drafts): False}
    assert one.run("servers", "set", "one", "--no-dir", str(drafts)).exit_code == 0
    assert [mount.source for mount in definition(one).mounts] == [str(notes)]


def test_how_it_is_used_changes_too(one: Person) -> None:
    words = ["--timeout", "120", "--stateful", "--description", "Mine.", "--profile", "npx", "--env", "LEVEL=3"]
    assert one.run("servers", "set", "one", *words).exit_code == 0
    found = definition(one)
    assert (found.timeout_s, found.stateful, found.description, found.profile) == (120.0, True, "Mine.", "npx")
    assert found.env == {"LEVEL": "3"}
    assert one.run("servers", "set", "one", "--no-env", "LEVEL", "--stateless").exit_code == 0
    assert definition(one).env == {} and not definition(one).stateful


@pytest.mark.parametrize(
    "words",
    [
        ["one"],
        ["one", "--allow", "no-port"],
        ["one", "--timeout", "-1"],
        ["one", "--dir", "/nowhere/at/all"],
        ["one", "--no-dir", "/usr"],
        ["one", "--dir", "/etc"],
        ["one", "--env", f"A_TOKEN={TOKEN}"],
        ["nobody", "--timeout", "5"],
        ["one", "nobody", "--timeout", "5"],
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(one: Person, words: list[str]) -> None:
    before = one.servers_file.read_bytes()
    result = one.run("servers", "set", *words)
    assert result.exit_code in (1, 2) and TOKEN not in result.output
    assert one.servers_file.read_bytes() == before


def test_a_server_of_a_file_that_no_command_changes_is_left_to_the_person(one: Person) -> None:
    settings = one.omni_home / "omni.toml"
    settings.write_text('[servers.hand]\ncommand = "x"\n')
    result = one.run("servers", "set", "hand", "--timeout", "5")
    assert result.exit_code == 1 and str(settings) in result.output


def test_several_servers_change_in_one_step(one: Person) -> None:
    one.run("add", "two", "--", "y")
    facts = one.json("servers", "set", "one", "two", "--timeout", "7")
    assert [(each["name"], each["timeout_s"]) for each in facts] == [("one", 7.0), ("two", 7.0)]


def test_what_was_accepted_waits_again_only_if_what_starts_the_server_changed(one: Person) -> None:
    one.accepts_all()
    assert "accept one" not in one.run("servers", "set", "one", "--timeout", "5").output
    assert "omni-mcp accept one" in one.run("servers", "set", "one", "--allow", "b.example.org:443").output


def test_where_a_command_starts_can_be_changed_and_a_place_that_it_does_not_see_is_said(one: Person) -> None:
    work = one.home / "work"
    work.mkdir()
    said = one.run("servers", "set", "one", "--cwd", str(work)).output
    shown = one.run("servers", "set", "one", "--cwd", str(work), "--dir", str(work)).output

    assert f"omni-mcp servers set one --dir {work}" in said and "does not see" not in shown
    assert load_servers(one.servers_file).servers["one"].cwd == str(work)


def test_accept_says_why_it_does_not_accept_without_a_look(one: Person) -> None:
    one.accepts_all()
    one.run("servers", "set", "one", "--allow", "b.example.org:443")
    items = {"tool": [{"name": "look", "inputSchema": {"type": "object"}}]}
    kept = KeptListing.model_validate(
        {"server": "one", "seen_at": "", "launch": launch_of(definition(one)), "items": items}
    )
    keep_listing(listings_dir(one.omni_home / "data"), kept)
    refused = one.run("accept", "one", "--all", "--yes")

    assert refused.exit_code == 1 and "what starts one is not what it was (hosts): tool/look" in refused.output
    assert "severe" not in refused.output
