"""A server that is removed takes along what a later one of its name would find: a yes is for what was looked at."""

from __future__ import annotations

import pytest

from omni_mcp.engines.catalog.lockfile import LockFile
from tests.clients_config.conftest import Person


def with_one(person: Person) -> None:
    """Add, accept and allow a server, and another beside it."""
    for name in ("one", "one-more"):
        assert person.run("add", name, "--", "x", name).exit_code == 0
    person.accepts_all()
    for target in ("one__*", "one__look", "one-more__*"):
        assert person.run("allow", target).exit_code == 0


def rules(person: Person) -> int:
    return len(list((person.omni_home / "policies").glob("*.cedar")))


def accepted(person: Person) -> set[str]:
    return set(LockFile(person.omni_home / "omni.lock").read().servers)


def test_what_was_accepted_and_allowed_of_it_goes_with_it_and_nothing_of_another(person: Person) -> None:
    with_one(person)
    said = person.run("servers", "remove", "one").output

    assert (rules(person), accepted(person)) == (1, {"one-more"})
    assert "1 acceptances" in said and said.count(".cedar") == 2


def test_the_next_server_of_that_name_is_neither_accepted_nor_allowed(person: Person) -> None:
    with_one(person)
    person.run("servers", "remove", "one")
    person.run("add", "one", "--", "x", "one")  # launched in the very same way
    person.accepts_all()
    assert person.json("policy", "explain", "--principal", "coder", "--tool", "one__look")["verdict"] == "deny"


def test_it_can_be_kept_and_then_it_is_said_what_a_later_server_would_find(person: Person) -> None:
    with_one(person)
    said = person.run("servers", "remove", "one", "--keep").output
    assert (rules(person), accepted(person)) == (3, {"one", "one-more"})
    assert "in force for a later server one" in said


def test_pins_pauses_and_standing_grants_go_too(person: Person) -> None:
    with_one(person)
    assert person.run("pause", "server", "one").exit_code == 0
    assert person.run("approvals", "grant", "one__*", "--expires", "1d", "--any-definition", "--yes").exit_code == 0
    said = person.run("servers", "remove", "one").output

    assert "1 standing grants" in said and person.json("approvals", "grants") == []
    assert LockFile(person.omni_home / "omni.lock").read().paused == {}


def test_rules_that_a_person_wrote_stay_and_are_named(person: Person) -> None:
    with_one(person)
    mine = person.omni_home / "policies" / "mine.cedar"
    mine.write_text('permit (principal, action, resource in Omni::Server::"one");\n')
    mine.chmod(0o600)
    [written, *_] = sorted((person.omni_home / "policies").glob("allow-one__all-*.cedar"))
    written.write_text(written.read_text() + 'permit (principal, action, resource == Omni::Tool::"two__x");\n')
    said = person.run("servers", "remove", "one").output

    assert mine.exists() and written.exists()
    assert "mine.cedar" in said and written.name in said.partition("left in force")[2]


@pytest.mark.parametrize("broken", ["lock", "rules", "grants"])
def test_where_something_of_it_cannot_be_read_nothing_is_removed(person: Person, broken: str) -> None:
    with_one(person)
    person.run("approvals", "grant", "one__*", "--expires", "1d", "--any-definition", "--yes")
    policies = person.omni_home / "policies"
    [state] = (person.omni_home / "data").rglob("state.db")
    victim = {"lock": person.omni_home / "omni.lock", "rules": policies / "mine.cedar", "grants": state}[broken]
    whole = victim.read_bytes() if victim.exists() else None
    for beside in state.parent.glob("state.db-*"):
        beside.unlink()
    victim.write_bytes(b"\xff" * 4096)
    victim.chmod(0o600)
    before = person.servers_file.read_bytes()
    assert person.run("servers", "remove", "one").exit_code != 0

    if whole is None:
        victim.unlink()
    else:
        victim.write_bytes(whole)
    assert person.servers_file.read_bytes() == before
    assert (rules(person), accepted(person)) == (3, {"one", "one-more"})
    assert len(person.json("approvals", "grants")) == 1
