"""MemoryCatalog holds what can be named, per profile, and replaces all of it at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from omni_mcp.contracts.errors import ConfigError, Problem
from omni_mcp.contracts.json import digest
from omni_mcp.contracts.ports import Source
from omni_mcp.contracts.tool import CallKind, Entry
from omni_mcp.engines.catalog.gradual import Gradual
from omni_mcp.engines.catalog.names import is_canonical_uri, is_server_name, template_matches
from omni_mcp.engines.catalog.shelf import Key, Shelf, label, shelf_of
from omni_mcp.engines.catalog.versions import Pins, Versions, versions_of
from omni_mcp.engines.catalog.views import KINDS, NO_VIEW, Named, ProfileSpec, View, view_of
from omni_mcp.turns import Work, finish, in_turns

BUILTIN_PROFILES: dict[str, ProfileSpec] = {
    "default": ProfileSpec(),
    "tools": ProfileSpec(servers=("tools",), names="identity"),
    "runs": ProfileSpec(servers=("runs",), names="identity"),
    "messages": ProfileSpec(servers=("messages",), names="identity"),
    "memory": ProfileSpec(servers=("memory",), names="identity"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogDiff:
    """What a reload changed, as `kind server/name`. `refused` are definitions dropped because two claim one name.

    `repinned`: some project sees another version of something, or an older version came or went. `relisted` are the
    kinds of which something else is listed, by profile and by server.
    """

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    repinned: bool = False
    relisted: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def lists_of(self, profile: str) -> frozenset[str]:
        """Return the kinds of which *profile* may list something else now."""
        return frozenset(KINDS) if self.repinned else self.relisted.get(profile, frozenset())

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed or self.repinned)


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """One state of the whole catalog; never changed after it was made, but for views that are made late."""

    version: str
    shelves: Mapping[str, Shelf] = field(default_factory=dict)
    views: Mapping[str, View] = field(default_factory=dict)
    refused: tuple[str, ...] = ()
    versions: Versions = field(default_factory=Versions)
    alone: dict[str, View] = field(default_factory=dict)  # servers by themselves, made when somebody first asks

    def view(self, profile: str) -> View | None:
        """Return a profile, or else the server of that name by itself, under its own names."""
        found = self.views.get(profile)
        if found is None and (shelf := self.shelves.get(profile)) is not None and is_server_name(profile):
            found = self.alone.get(profile)
            if found is None:
                found = self.alone[profile] = view_of(ProfileSpec(servers=(profile,), names="identity"), [shelf])
        return found

    def find(self, key: Key) -> Entry | None:
        """Return what is in force under a key."""
        shelf = self.shelves.get(key[1])
        return shelf.entries.get(key) if shelf is not None else None


class MemoryCatalog:
    """Port `Catalog`. Empty until the first `reload`.

    A reader sees one state or the next, never a mixture. Two definitions that claim one name are both dropped and
    reported: picking one would let a newcomer take the place of a tool that somebody trusts.

    Where no profile has the name of a server, that server by itself can be asked for by it.

    Args:
        pins: asked at each reload which project sees which version.
    """

    def __init__(
        self, sources: Sequence[Source], profiles: Mapping[str, ProfileSpec] | None = None, *,
        pins: Callable[[], Pins] = dict,
    ) -> None:  # fmt: skip
        self._sources = tuple(sources)
        self._pins = pins
        self._profiles = dict(BUILTIN_PROFILES if profiles is None else profiles)
        self._brought: dict[int, Sequence[Entry]] = {}
        self._problems: dict[int, tuple[Problem, ...]] = {}
        self._now = finish(_snapshot([], self._profiles, {}, None))
        self._states = 0
        self._renewing = asyncio.Lock()
        self._listeners: list[Callable[[CatalogDiff], None]] = []

    @property
    def version(self) -> str:
        """sha256 over the key, state and digest of every entry, of older versions, and of what pins make of them."""
        return self._now.version

    @property
    def profiles(self) -> Mapping[str, ProfileSpec]:
        """The profiles by name."""
        return self._profiles

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Why sources refused when they were asked last; what they brought before is in force."""
        return tuple(problem for number in sorted(self._problems) for problem in self._problems[number])

    def reload(self) -> CatalogDiff:
        """Ask every source again and put the new state in force in one step; tells the listeners if it differs.

        Raises:
            ConfigError: with the problems of every source that refused: what each of these brought before, and what
                the others bring now, is in force then.
        """
        found: dict[int, Sequence[Entry] | ConfigError] = {}
        for number, source in enumerate(self._sources):
            try:
                found[number] = tuple(source.load())
            except ConfigError as error:
                found[number] = error
        brought = self._take(found)
        diff = self._put(brought, finish(_snapshot(_all(brought), self._profiles, self._pins(), self._now)))
        return _unless_refused(diff, found)

    async def renew(self, *asked: Source) -> CatalogDiff:
        """The same as `reload` without keeping the loop from others: they get their turn while the state is made.

        Renewals come one after the other, in the order in which they were asked for.

        Args:
            asked: sources of this catalog that have something new; all of them if none is named.

        Raises:
            ConfigError: as `reload`, with the problems of every source that was asked and refused.
        """
        async with self._renewing:
            while True:
                states = self._states
                found = {
                    number: await _ask(source)
                    for number, source in enumerate(self._sources)
                    if not asked or number not in self._brought or any(source is one for one in asked)
                }
                brought = self._take(found)
                made = await in_turns(_snapshot(_all(brought), self._profiles, self._pins(), self._now))
                if states == self._states:
                    return _unless_refused(self._put(brought, made), found)

    def _take(self, found: Mapping[int, Sequence[Entry] | ConfigError]) -> dict[int, Sequence[Entry]]:
        """Return what all sources bring; those that refused or were not asked, what they brought before."""
        refused = {number: tuple(one.problems) for number, one in found.items() if isinstance(one, ConfigError)}
        self._problems = {number: one for number, one in self._problems.items() if number not in found} | refused
        return self._brought | {number: one for number, one in found.items() if not isinstance(one, ConfigError)}

    def _put(self, brought: dict[int, Sequence[Entry]], made: _Snapshot) -> CatalogDiff:
        before, self._now, self._brought = self._now, made, brought
        self._states += 1
        diff = _difference(before, made)
        if diff:
            for listener in self._listeners:
                listener(diff)
        return diff

    def listen(self, listener: Callable[[CatalogDiff], None]) -> None:
        """Call *listener* after each reload that changed something."""
        self._listeners.append(listener)

    def find(self, profile: str, kind: CallKind, name: str, *, project: str = "") -> Entry | None:
        """Return what *name* means in *profile*, quarantined or not; a URI means its resource before a template.

        A tool's name may end in `@1.2.0`, `@latest` or `@` and a tag of its manifest.
        """
        now = self._now
        view = now.view(profile)
        if view is None:
            return None
        found = view.named.get((kind, name))
        if found is None and kind == "resource" and is_canonical_uri(name):
            found = next((entry for template, entry in view.templates if template_matches(template, name)), None)
        if found is None and kind == "tool" and "@" in name:
            base, _, wanted = name.rpartition("@")
            found = view.named.get((kind, base))
            return now.versions.named(project, found, wanted) if found is not None else None
        return found if found is None or not now.versions.pinned else now.versions.seen_by(project, found)

    def entries(self, profile: str, kind: str, *, project: str = "") -> list[tuple[str, Entry]]:
        """Return (public name, URI or URI template; entry) of everything accepted, sorted by the first."""
        now = self._now
        view = now.view(profile)
        listed = view.listed.get(kind, ()) if view is not None else ()
        if not now.versions.pinned.get(project):
            return list(listed)
        seen = ((name, now.versions.seen_by(project, entry)) for name, entry in listed)
        return [(name, entry) for name, entry in seen if entry.state == "accepted"]

    def get(self, kind: str, server: str, name: str) -> Entry | None:
        """Return an entry by its key, quarantined or not."""
        return self._now.find((kind, server, name))

    def versions(self, kind: str, server: str, name: str) -> list[Entry]:
        """Return an entry by its key, and its older versions."""
        now = self._now
        entry = now.find((kind, server, name))
        return now.versions.of(entry) if entry is not None else []

    def all_entries(self) -> list[Entry]:
        """Return every entry of every server, quarantined ones too, sorted by kind, server and name."""
        found = [entry for shelf in self._now.shelves.values() for entry in shelf.entries.values()]
        return sorted(found, key=attrgetter("key"))

    @property
    def refused(self) -> tuple[str, ...]:
        """What was dropped because two definitions claim one name."""
        return self._now.refused


async def _ask(source: Source) -> Sequence[Entry] | ConfigError:
    try:
        if isinstance(source, Gradual):
            return tuple(await in_turns(source.steps()))
        return await asyncio.to_thread(_load, source)
    except ConfigError as error:
        return error


def _unless_refused(diff: CatalogDiff, found: Mapping[int, Sequence[Entry] | ConfigError]) -> CatalogDiff:
    refused = [problem for one in found.values() if isinstance(one, ConfigError) for problem in one.problems]
    if refused:
        raise ConfigError(refused)
    return diff


def _load(source: Source) -> Sequence[Entry]:
    return tuple(source.load())


def _all(brought: Mapping[int, Sequence[Entry]]) -> list[Sequence[Entry]]:
    return [brought[number] for number in sorted(brought)]


def _snapshot(
    brought: Iterable[Sequence[Entry]], profiles: Mapping[str, ProfileSpec], pins: Pins, before: _Snapshot | None
) -> Work[_Snapshot]:
    """Make a state, in turns. What *before* has of a server that brings the same again is used again."""
    came: dict[str, list[Entry]] = {}
    for entries in brought:
        for entry in entries:
            came.setdefault(entry.server, []).append(entry)
        yield
    shelves: dict[str, Shelf] = {}
    for server in sorted(came):
        known = before.shelves.get(server) if before is not None else None
        shelves[server] = known if known is not None and known.is_of(came[server]) else shelf_of(server, came[server])
        yield
    versions = versions_of(shelves, pins)
    yield
    views: dict[str, View] = {}
    for name, profile in profiles.items():
        views[name] = view_of(profile, shelves.values(), before.views[name] if before is not None else NO_VIEW)
        yield
    refused = [one for shelf in shelves.values() for one in shelf.refused]
    refused += [f"{clash} (in profile {name})" for name, view in views.items() for clash in view.clashes]
    facts = [*([server, shelf.digest] for server, shelf in shelves.items() if shelf.entries), *versions.facts()]
    return _Snapshot(digest(facts), shelves, views, tuple(refused), versions)


def _difference(before: _Snapshot, after: _Snapshot) -> CatalogDiff:
    old: dict[Key, Entry] = {}
    new: dict[Key, Entry] = {}
    for server in before.shelves.keys() | after.shelves.keys():
        one, other = before.shelves.get(server), after.shelves.get(server)
        if one is not other:
            old.update(one.entries if one is not None else {})
            new.update(other.entries if other is not None else {})
    return CatalogDiff(
        added=tuple(label(new[key]) for key in sorted(new.keys() - old.keys())),
        changed=tuple(
            label(new[key])
            for key in sorted(new.keys() & old.keys())
            if (old[key].digest, old[key].state) != (new[key].digest, new[key].state)
        ),
        removed=tuple(label(old[key]) for key in sorted(old.keys() - new.keys())),
        refused=after.refused,
        repinned=before.versions.facts() != after.versions.facts(),
        relisted=_relisted(before, after),
    )


def _relisted(before: _Snapshot, after: _Snapshot) -> dict[str, frozenset[str]]:
    servers = {
        server: frozenset(kind for kind in KINDS if _accepted(before, server, kind) != _accepted(after, server, kind))
        for server in before.shelves.keys() | after.shelves.keys()
        if before.shelves.get(server) is not after.shelves.get(server)
    }
    profiles: dict[str, frozenset[str]] = {}
    for name, view in after.views.items():
        old = before.views.get(name, NO_VIEW)
        profiles[name] = frozenset(
            kind for kind in KINDS if old is not view and not _lists_same(old.listed.get(kind, ()), view.listed[kind])
        )
    return servers | profiles


def _accepted(state: _Snapshot, server: str, kind: str) -> list[tuple[Key, str]]:
    shelf = state.shelves.get(server)
    entries = shelf.entries.values() if shelf is not None else ()
    return [(entry.key, entry.digest) for entry in entries if entry.kind == kind and entry.state == "accepted"]


def _lists_same(one: Named, other: Named) -> bool:
    return len(one) == len(other) and all(
        a is b or (a[0] == b[0] and a[1].digest == b[1].digest) for a, b in zip(one, other, strict=True)
    )
