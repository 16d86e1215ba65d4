"""A catalog that is renewed in parts is the one that a fresh load would make, whatever happened in between."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_mcp.contracts.errors import ConfigError, Problem
from omni_mcp.contracts.json import verbatim
from omni_mcp.contracts.lock import Pin, launch_parts
from omni_mcp.contracts.manifest import Labels
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.catalog.acceptance import accept, answer_to
from omni_mcp.engines.catalog.catalog import BUILTIN_PROFILES, MemoryCatalog
from omni_mcp.engines.catalog.lock import LockedSource
from omni_mcp.engines.catalog.lockfile import LockFile
from omni_mcp.engines.catalog.manifests import ManifestDirectory, ManifestSource
from omni_mcp.engines.catalog.names import public_name
from omni_mcp.engines.catalog.pins import pins_by_key, with_pin
from omni_mcp.engines.catalog.views import ProfileSpec
from omni_mcp.engines.upstream.listing import Listing, Listings
from omni_mcp.paths import bundled

AT = "2026-09-01T00:00:00Z"
SERVERS = ("up", "other_one", "third")
NAMES = ("look", "look_at", "a/b", "write", public_name("up", "a/b").removeprefix("up__"))  # the last two clash
READS = Labels(read_only=True, destructive=False, egress=False, reads_private=False, reads_untrusted=False)
VALUES: tuple[Any, ...] = (1, True, 1.0, "1", [1], [True])
PROFILES = {
    **BUILTIN_PROFILES,
    "one": ProfileSpec(servers=("up",), names="identity"),
    "two": ProfileSpec(servers=("up", "third")),
}

LISTED = st.builds(
    lambda kind, tools, uris: {
        "tool": [tool(name, value) for name, value in tools.items()],
        kind: [resource(kind, uri) for uri in uris],
    },
    st.sampled_from(["resource", "resource_template"]),
    st.dictionaries(st.sampled_from(NAMES), st.sampled_from(VALUES), min_size=1, max_size=4),
    st.lists(st.sampled_from(["note://1", "note://{id}", "run://x", "omni+up+note://1", "plain"]), unique=True),
)
STEPS = st.one_of(
    st.tuples(st.just("list"), st.sampled_from(SERVERS), LISTED),
    st.tuples(st.just("forget"), st.sampled_from(SERVERS)),
    st.tuples(st.just("launch"), st.sampled_from(SERVERS), st.integers(0, 1)),
    st.tuples(st.just("deadline"), st.sampled_from(SERVERS), st.sampled_from([5.0, 30.0])),
    st.tuples(st.just("accept"), st.sampled_from(SERVERS)),
    st.tuples(st.just("pin"), st.sampled_from(SERVERS), st.sampled_from(NAMES), st.integers(1, 2)),
    st.tuples(st.just("files"), st.lists(st.sampled_from(NAMES), unique=True)),
)


def tool(name: str, value: Any = 1) -> dict[str, Any]:
    return {"name": name, "inputSchema": {"type": "object", "properties": {"x": {"default": value}}}}


def resource(kind: str, uri: str) -> dict[str, Any]:
    return {"name": uri, "uri" if kind == "resource" else "uriTemplate": uri}


def own(server: str, name: str, **definition: Any) -> Entry:
    return Entry(kind="tool", server=server, name=name, definition={"name": name, **definition})


class Files:
    """A source such as a directory of manifests."""

    def __init__(self, *names: str) -> None:
        self.names: Sequence[str] = names
        self.problem = ""
        self.gate: tuple[threading.Event, threading.Event] | None = None  # set once asked; asked until set

    def load(self) -> Iterable[Entry]:
        names = self.names
        if self.gate is not None:
            (asked, go), self.gate = self.gate, None
            asked.set()
            go.wait(10)
        if self.problem:
            raise ConfigError([Problem(file="m.yaml", line=1, path="$", message=self.problem)])
        return [own("tools", name) for name in names]


class World:
    """Servers with their lists, a lock, files, and a catalog of all of it."""

    def __init__(self, directory: Path) -> None:
        self.deadlines = dict.fromkeys(SERVERS, 30.0)
        self.launches = dict.fromkeys(SERVERS, 0)
        self.listings = Listings()
        self.listings.use(dict(self.deadlines), {})
        self.lock = LockFile(directory / "omni.lock")
        self.files = Files("look")
        self.locked = LockedSource(self.listings, self.lock, launch_of=self.launch_of)
        self.catalog = MemoryCatalog([self.files, self.locked], PROFILES, pins=lambda: pins_by_key(self.lock.now))
        self.catalog.reload()

    def launch_of(self, server: str) -> dict[str, str]:
        return launch_parts({"command": [server, self.launches[server]]})

    async def do(self, what: str, *facts: Any) -> None:
        """Change something, and renew the part that it changes."""
        changed = self.files if what == "files" else self.locked
        getattr(self, f"_{what}")(*facts)
        await self.catalog.renew(changed)

    def _list(self, server: str, items: dict[str, list[dict[str, Any]]]) -> None:
        self.listings.put(server, Listing(items=items))

    def _forget(self, server: str) -> None:
        self.listings.forget(server)

    def _launch(self, server: str, number: int) -> None:
        self.launches[server] = number

    def _deadline(self, server: str, timeout_s: float) -> None:
        self.deadlines[server] = timeout_s
        self.listings.use(dict(self.deadlines), {})

    def _accept(self, server: str) -> None:
        answers = [answer_to(one, one.difference(), READS) for one in self.locked.waiting if one.server == server]
        self.lock.edit(lambda now: accept(now, answers, by="1000", at=AT))

    def _pin(self, server: str, name: str, version: int) -> None:
        pin = Pin(version=str(version), by="1000", at=AT)
        self.lock.edit(lambda now: with_pin(now, "p", server, f"tool/{name}", pin))

    def _files(self, names: list[str]) -> None:
        self.files.names = names

    def fresh(self) -> MemoryCatalog:
        """Return what a gateway that starts now would have."""
        listings = Listings()
        known = {server: found for server in SERVERS if (found := self.listings.find(server)) is not None}
        listings.use(dict(self.deadlines), known)
        locked = LockedSource(listings, self.lock, launch_of=self.launch_of)
        made = MemoryCatalog(
            [Files(*self.files.names), locked], PROFILES, pins=lambda: pins_by_key(self.lock.now)
        )  # fmt: skip
        made.reload()
        return made


def facts_of(made: MemoryCatalog) -> dict[str, Any]:
    """All that a reader can see of a catalog."""
    seen = [
        (profile, kind, project, name, entry.digest, entry.state, entry.limits.timeout_s, verbatim(entry.definition))
        for profile in PROFILES
        for kind in ("tool", "resource", "resource_template", "prompt")
        for project in ("", "p")
        for name, entry in made.entries(profile, kind, project=project)
    ]
    every = [(entry.key, entry.state, entry.digest, verbatim(entry.definition)) for entry in made.all_entries()]
    named = [
        (profile, name, found.key, found.digest, found.state)
        for profile in PROFILES
        for name in ("up__look", "look", "tools__look", "third__a_b", "up__look@1")
        if (found := made.find(profile, "tool", name, project="p")) is not None
    ]
    resources = [
        made.find(profile, "resource", uri) for profile in PROFILES for uri in ("note://1", "note://7", "run://x")
    ]
    versions = [[one.digest for one in made.versions("tool", server, name)] for server in SERVERS for name in NAMES]
    return {
        "version": made.version, "refused": made.refused, "seen": seen, "every": every, "named": named,
        "resources": [one.digest if one is not None else "" for one in resources], "versions": versions,
    }  # fmt: skip


@pytest.mark.long
@settings(max_examples=150, deadline=None)
@given(steps=st.lists(STEPS, max_size=14))
def test_after_any_changes_a_renewed_catalog_is_the_one_of_a_fresh_load(steps: list[tuple[Any, ...]]) -> None:
    async def run(world: World) -> None:
        for step in steps:
            await world.do(*step)
            assert facts_of(world.catalog) == facts_of(world.fresh())

    with TemporaryDirectory() as directory:
        asyncio.run(run(World(Path(directory))))


async def test_a_value_that_only_python_takes_for_the_same_is_another_definition(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.do("list", "up", {"tool": [tool("look", 1)]})
    await world.do("accept", "up")
    accepted = world.catalog.get("tool", "up", "look")
    await world.do("list", "up", {"tool": [tool("look", True)]})
    changed = world.catalog.get("tool", "up", "look")

    assert accepted is not None and accepted.state == "accepted"
    assert changed is not None and changed.state == "quarantined"


async def test_another_deadline_counts_for_tools_that_are_the_same(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.do("list", "up", {"tool": [tool("look")]})
    await world.do("deadline", "up", 5.0)
    (entry,) = [entry for entry in world.catalog.all_entries() if entry.server == "up"]

    assert entry.limits.timeout_s == 5.0


async def test_a_name_that_another_one_is_shortened_to_is_served_again_once_that_one_is_gone(tmp_path: Path) -> None:
    world = World(tmp_path)
    short = public_name("up", "a/b").removeprefix("up__")
    await world.do("list", "up", {"tool": [tool("a/b"), tool(short)]})
    await world.do("accept", "up")
    both = [entry.name for _, entry in world.catalog.entries("two", "tool")]
    refused = [one for one in world.catalog.refused if "profile two" in one]
    await world.do("list", "up", {"tool": [tool(short)]})

    assert both == []
    assert len(refused) == 2
    assert [entry.name for _, entry in world.catalog.entries("two", "tool")] == [short]


async def test_of_two_servers_that_claim_one_name_neither_is_served_until_one_lets_go_of_it() -> None:
    first, second = Files("a/b"), Files()
    made = MemoryCatalog([first, second])
    await made.renew()
    second.names = ["a/b"]
    await made.renew(second)
    both = made.entries("default", "tool")
    second.names = []
    await made.renew(second)

    assert both == []
    assert [entry.name for _, entry in made.entries("default", "tool")] == ["a/b"]


async def test_two_renewals_at_once_both_count() -> None:
    sources = [Files("one"), Files("two")]
    asked, go = threading.Event(), threading.Event()
    made = MemoryCatalog([sources[0], Other(sources[1])])
    made.reload()
    sources[0].names, sources[0].gate = ["uno"], (asked, go)
    first = asyncio.create_task(made.renew(sources[0]))
    await asyncio.to_thread(asked.wait, 10)
    sources[1].names = ["due"]
    second = asyncio.create_task(made.renew())
    go.set()
    await asyncio.gather(first, second)

    assert sorted(entry.name for entry in made.all_entries()) == ["due", "uno"]


async def test_no_source_is_asked_by_two_renewals_at_once() -> None:
    files = Files("one")
    asked, go, again = threading.Event(), threading.Event(), threading.Event()
    made = MemoryCatalog([files])
    files.gate = asked, go
    first = asyncio.create_task(made.renew())
    await asyncio.to_thread(asked.wait, 10)
    files.gate = again, go
    second = asyncio.create_task(made.renew())
    for _ in range(100):
        await asyncio.sleep(0)
    before = again.is_set()
    go.set()
    await asyncio.gather(first, second)

    assert not before
    assert again.is_set()


async def test_what_a_slow_renewal_read_does_not_take_the_place_of_what_was_read_after_it() -> None:
    files = Files("old")
    asked, go = threading.Event(), threading.Event()
    made = MemoryCatalog([files])
    made.reload()
    files.gate = asked, go
    slow = asyncio.create_task(made.renew(files))
    await asyncio.to_thread(asked.wait, 10)
    files.names = ["new"]
    made.reload()
    go.set()
    await slow

    assert [entry.name for entry in made.all_entries()] == ["new"]


async def test_a_source_that_refuses_keeps_what_it_brought_and_holds_nobody_else_up() -> None:
    bad, good = Files("kept"), Other(Files("one"))
    made = MemoryCatalog([bad, good])
    made.reload()
    bad.problem, bad.names, good.files.names = "is broken", ["lost"], ["two"]
    with pytest.raises(ConfigError):
        await made.renew()
    meanwhile = sorted(entry.name for entry in made.all_entries())
    await made.renew(good)
    problems = [problem.message for problem in made.problems]
    bad.problem = ""
    await made.renew(bad)

    assert meanwhile == ["kept", "two"]
    assert problems == ["is broken"]
    assert made.problems == ()
    assert sorted(entry.name for entry in made.all_entries()) == ["lost", "two"]


class Other:
    """Files of another server."""

    def __init__(self, files: Files) -> None:
        self.files = files

    def load(self) -> Iterable[Entry]:
        return [own("other", entry.name) for entry in self.files.load()]


async def test_others_have_their_turns_while_a_long_list_is_taken_in_and_see_no_half_of_it(tmp_path: Path) -> None:
    world = World(tmp_path)
    seen: list[int] = []
    renewal = asyncio.create_task(world.do("list", "up", {"tool": [tool(f"t{number}") for number in range(4000)]}))
    while not renewal.done():
        await asyncio.sleep(0)
        seen.append(sum(entry.server == "up" for entry in world.catalog.all_entries()))

    assert len(seen) > 10
    assert set(seen) == {0, 4000}


async def test_what_did_not_change_is_the_very_same_entry_after_a_renewal(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.do("list", "up", {"tool": [tool("look"), tool("write")]})
    await world.do("list", "third", {"tool": [tool("look")]})
    await world.do("accept", "up")
    before = {entry.key: entry for entry in world.catalog.all_entries()}
    await world.do("list", "up", {"tool": [tool("look"), tool("write", "2")]})
    after = {entry.key: entry for entry in world.catalog.all_entries()}

    changed = {key for key in after if after[key] is not before.get(key)}
    assert changed == {("tool", "up", "write")}


MANIFEST = """\
manifest: 1
id: echo
version: 1.2.3
title: Echo
description: Return the text.
input_schema: {type: object, additionalProperties: false}
binding: {kind: sandbox_job, entry_point: "own:run"}
"""


def manifests(directory: Path) -> ManifestSource:
    """Write one manifest with its code."""
    directory.chmod(0o700)
    (directory / "own.py").write_text("def run(): ...\n")
    (directory / "echo.yaml").write_text(MANIFEST)
    (directory / "echo.yaml").chmod(0o600)
    return ManifestSource([ManifestDirectory(path=directory)], code=bundled("sandbox") / "tools")


def test_a_manifest_that_did_not_change_brings_the_very_same_entry(tmp_path: Path) -> None:
    source = manifests(tmp_path)
    assert [one is other for one, other in zip(source.load(), source.load(), strict=True)] == [True]


def test_a_manifest_of_the_same_size_and_time_that_says_something_else_is_read(tmp_path: Path) -> None:
    source, file = manifests(tmp_path), tmp_path / "echo.yaml"
    (before,) = source.load()
    facts = file.stat()
    file.write_text(MANIFEST.replace("the text", "any text"))
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    (after,) = source.load()

    assert (before.definition["description"], after.definition["description"]) == (
        "Return the text.", "Return any text.",
    )  # fmt: skip


def test_other_code_behind_the_same_manifest_is_another_definition(tmp_path: Path) -> None:
    source = manifests(tmp_path)
    (before,) = source.load()
    (tmp_path / "own.py").write_text("def run(): pass\n")
    (after,) = source.load()
    (tmp_path / "own.py").unlink()
    with pytest.raises(ConfigError, match=r"no own\.py"):
        source.load()

    assert before.digest != after.digest


def test_a_known_manifest_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    source = manifests(tmp_path)
    source.load()
    (tmp_path / "echo.yaml").chmod(0o620)
    with pytest.raises(ConfigError, match="others can write"):
        source.load()
