"""Names lead back to one entry, and the catalog changes as a whole or not at all."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_mcp.contracts.errors import ConfigError, Problem
from omni_mcp.contracts.tool import Entry, EntryState
from omni_mcp.engines.catalog.catalog import MemoryCatalog
from omni_mcp.engines.catalog.names import (
    is_canonical_uri,
    is_server_name,
    marked_uri,
    public_name,
    server_of,
    template_matches,
    unmarked_uri,
)  # fmt: skip
from omni_mcp.engines.catalog.views import ProfileSpec

servers = st.from_regex(r"[a-z0-9]{1,4}([_-][a-z0-9]{1,4}){0,2}", fullmatch=True)


class Shelf:
    """A source whose entries a test can change."""

    def __init__(self, *entries: Entry) -> None:
        self.entries = list(entries)
        self.broken = False

    def load(self) -> Iterable[Entry]:
        if self.broken:
            raise ConfigError([Problem(file="m.yaml", line=3, path="$.id", message="is missing")])
        return self.entries


def tool(server: str, name: str, *, title: str = "", state: EntryState = "accepted") -> Entry:
    return Entry(kind="tool", server=server, name=name, definition={"name": name, "title": title}, state=state)


def resource(server: str, uri: str, **more: Any) -> Entry:
    return Entry(kind="resource", server=server, name=uri, definition={"uri": uri}, **more)


def template(server: str, uri: str, **more: Any) -> Entry:
    return Entry(kind="resource_template", server=server, name=uri, definition={"uriTemplate": uri}, **more)


def catalog(*entries: Entry, profiles: dict[str, ProfileSpec] | None = None) -> MemoryCatalog:
    made = MemoryCatalog([Shelf(*entries)], profiles)
    made.reload()
    return made


def names(made: MemoryCatalog, profile: str = "default", kind: str = "tool") -> list[str]:
    return [name for name, _ in made.entries(profile, kind)]


@settings(max_examples=200, deadline=None)
@given(server=servers, name=st.text(min_size=1, max_size=100))
def test_every_public_name_fits_and_stays_the_same(server: str, name: str) -> None:
    public = public_name(server, name)
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", public)
    assert public == public_name(server, name)
    assert server_of(public) == server


@pytest.mark.long
@settings(max_examples=200, deadline=None)
@given(keys=st.lists(st.tuples(servers, st.text("a_-.é/", min_size=1, max_size=70)), unique=True, max_size=8))
def test_every_listed_name_leads_to_its_own_entry(keys: list[tuple[str, str]]) -> None:
    made = catalog(*(tool(server, name) for server, name in keys))
    for public, entry in made.entries("default", "tool"):
        assert made.find("default", "tool", public) is entry
    assert len(made.entries("default", "tool")) + len(made.refused) >= len(keys)


@pytest.mark.parametrize("name", ["a__b", "_a", "a_", "", "A", "a b", "a--b", "é", "x" * 25])
def test_a_name_that_could_be_misread_is_no_server_name(name: str) -> None:
    assert not is_server_name(name)


def test_two_definitions_of_one_name_are_both_dropped_and_reported() -> None:
    made = catalog(tool("a", "x", title="one"), tool("a", "x", title="two"), tool("a", "y"))
    assert names(made) == ["a__y"]
    assert made.find("default", "tool", "a__x") is None
    assert made.refused == ("tool a/x",)


def test_a_tool_named_like_anothers_alias_drops_both_and_does_not_take_its_place() -> None:
    long = "n" * 80
    alias = public_name("a", long)
    made = catalog(tool("a", long), tool("a", alias.removeprefix("a__")))
    assert names(made) == []
    assert len(made.refused) >= 2


def test_a_server_with_a_malformed_name_is_dropped() -> None:
    made = catalog(tool("a__b", "c"), tool("a", "b__c"))
    assert names(made) == ["a__b__c"]
    entry = made.find("default", "tool", "a__b__c")
    assert entry is not None
    assert entry.server == "a"


def test_a_quarantined_entry_is_found_but_never_listed() -> None:
    made = catalog(tool("a", "x", state="quarantined"), resource("a", "x://1", state="quarantined"))
    assert made.entries("default", "tool") == []
    assert made.entries("default", "resource") == []
    found = made.find("default", "tool", "a__x")
    assert found is not None
    assert found.state == "quarantined"


def test_profiles_show_their_servers_and_identity_names_only_for_one() -> None:
    profiles = {"both": ProfileSpec(servers=("a", "b")), "one": ProfileSpec(servers=("a",), names="identity")}
    made = catalog(tool("b", "x"), tool("a", "x"), tool("c", "x"), profiles=profiles)
    assert names(made, "both") == ["a__x", "b__x"]
    assert names(made, "one") == ["x"]
    assert names(made, "none") == []
    assert made.find("none", "tool", "a__x") is None
    assert made.find("both", "tool", "c__x") is None
    for servers_ in (("a", "b"), ("*",)):
        with pytest.raises(ConfigError, match="exactly one"):
            ProfileSpec(servers=servers_, names="identity")


def test_a_prompt_keeps_its_name_where_a_server_is_alone() -> None:
    prompt = Entry(kind="prompt", server="a", name="dot.ted/slash ü", definition={"name": "dot.ted/slash ü"})
    made = catalog(prompt)
    assert made.find("a", "prompt", "dot.ted/slash ü") is prompt
    assert made.find("default", "prompt", public_name("a", "dot.ted/slash ü")) is prompt


def test_a_kind_has_names_of_its_own() -> None:
    prompt = Entry(kind="prompt", server="a", name="x", definition={"name": "x"})
    made = catalog(tool("a", "x"), prompt)
    assert made.find("default", "prompt", "a__x") is prompt
    assert made.get("prompt", "a", "x") is prompt


def test_an_exact_resource_goes_before_a_template_and_the_more_exact_template_first() -> None:
    made = catalog(
        resource("a", "run://1"),
        template("a", "run://{id}"),
        template("a", "run://x/{+rest}"),
        template("a", "run://{+all}"),
    )
    found = {uri: made.find("default", "resource", uri) for uri in ("run://1", "run://2", "run://x/y/z", "run://q/r")}
    assert [entry.name if entry else None for entry in found.values()] == [
        "run://1", "run://{id}", "run://x/{+rest}", "run://{+all}",
    ]  # fmt: skip
    assert made.find("default", "resource", "other://1") is None


@pytest.mark.parametrize(
    ("pattern", "uri", "fits"),
    [
        ("run://{id}", "run://a", True), ("run://{id}", "run://a/b", False), ("run://{id}", "run://", False),
        ("run://{id}/events", "run://a/events", True), ("run://{id}/events", "run://a/b/events", False),
        ("x://{+path}/{name}", "x://a/b/c", True), ("x://{+path}/{name}", "x://a", False),
        ("x://{a}-{b}", "x://1-2-3", True), ("x://y{?q}", "x://y", True), ("x://y{?q}", "x://y?q=1", True),
        ("x://y{?q}", "x://y/z", False), ("x://y{#f}", "x://y#top", True), ("x://y{/p*}", "x://y/a/b", True),
        ("x://{a}", "x://" + "b" * 5000, False), ("run://1", "run://1", True), ("run://1", "run://12", False),
    ],
)  # fmt: skip
def test_a_uri_fits_its_template(pattern: str, uri: str, fits: bool) -> None:
    assert template_matches(pattern, uri) == fits


@settings(max_examples=200, deadline=None)
@given(server=servers, uri=st.text(min_size=1))
def test_a_marked_uri_leads_back(server: str, uri: str) -> None:
    assert unmarked_uri(marked_uri(server, uri)) == (server, uri)


def test_a_scheme_that_two_servers_use_is_told_apart_by_server() -> None:
    made = catalog(resource("a", "file:///x"), resource("b_c", "file:///x"), resource("b_c", "note://1"))
    assert names(made, kind="resource") == ["note://1", "omni+a+file:///x", "omni+b.c+file:///x"]
    entry = made.find("default", "resource", "omni+b.c+file:///x")
    assert entry is not None
    assert entry.server == "b_c"
    assert made.find("default", "resource", "file:///x") is None


def test_a_newcomer_cannot_push_our_own_uris_aside_nor_pretend_to_be_marked() -> None:
    made = catalog(
        template("runs", "run://{id}", binding="inproc_safe"), resource("evil", "run://1", binding="mcp_remote"),
        resource("evil", "omni+runs+run://2", binding="mcp_remote"),
    )  # fmt: skip
    assert names(made, kind="resource_template") == ["run://{id}"]
    found = made.find("default", "resource", "run://1")
    assert found is not None
    assert found.server == "runs"
    assert names(made, kind="resource") == ["omni+evil+omni+runs+run://2", "omni+evil+run://1"]


def test_a_reload_says_what_changed_and_the_version_follows() -> None:
    shelf = Shelf(tool("a", "x"), tool("a", "y"))
    made = MemoryCatalog([shelf])
    heard: list[tuple[str, ...]] = []
    made.listen(lambda diff: heard.append(diff.changed))
    first = made.reload()
    assert first.added == ("tool a/x", "tool a/y")
    version = made.version
    assert not made.reload()
    assert made.version == version
    shelf.entries = [tool("a", "x", title="new"), tool("a", "z")]
    diff = made.reload()
    assert (diff.added, diff.changed, diff.removed) == (("tool a/z",), ("tool a/x",), ("tool a/y",))
    assert made.version != version
    assert heard == [(), ("tool a/x",)]


def test_a_broken_source_keeps_what_it_brought_and_holds_back_no_other() -> None:
    good, broken = Shelf(tool("a", "x")), Shelf(tool("b", "x"))
    made = MemoryCatalog([good, broken])
    made.reload()
    broken.broken = True
    broken.entries, good.entries = [], [tool("a", "y")]
    with pytest.raises(ConfigError) as caught:
        made.reload()
    assert caught.value.problems[0].line == 3
    assert names(made) == ["a__y", "b__x"]


def test_a_reader_never_sees_half_a_reload() -> None:
    states = [[tool("a", f"x{n}", title=str(side)) for n in range(50)] for side in (0, 1)]
    shelf = Shelf(*states[0])
    made = MemoryCatalog([shelf])
    made.reload()
    seen: set[frozenset[str]] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(frozenset(str(entry.definition["title"]) for _, entry in made.entries("default", "tool")))

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(40):
        shelf.entries = states[turn % 2]
        made.reload()
    done.set()
    reader.join()
    assert seen <= {frozenset("0"), frozenset("1")}
    assert seen


@pytest.mark.parametrize(
    "uri",
    ["note://%61", "note://a ", " note://a", "NOTE://a", "note://a\t", "note://x/../a", "note://./a", "note://%2f", "note://%",
     "note://a\\b", "note://a\u200b"],
)  # fmt: skip
def test_another_spelling_of_a_resource_is_not_another_resource(uri: str) -> None:
    """A rule that forbids `note://a` must not be passed by a spelling that its server would normalise to it."""
    assert not is_canonical_uri(uri)


@pytest.mark.parametrize("uri", ["note://a", "note://a/b?c=d#e", "run://01a1", "test://x/%2F%20", "file:///home/ü"])
def test_ordinary_uris_are_canonical(uri: str) -> None:
    assert is_canonical_uri(uri)
