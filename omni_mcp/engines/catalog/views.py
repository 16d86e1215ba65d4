"""View: one profile of the catalog, put together from what each server brings to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

from omni_mcp.contracts.errors import ConfigError, Problem
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.catalog.names import NameStyle, is_marked, is_server_name, marked_uri, public_name, scheme_of
from omni_mcp.engines.catalog.shelf import URI_KINDS, Shelf, label, uri_of

ALL_SERVERS = ("*",)
KINDS = ("tool", "resource", "resource_template", "prompt")

Named = tuple[tuple[str, Entry], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileSpec:
    """Which servers a profile shows, and whether names carry their server. `("*",)` is every server.

    Raises:
        ConfigError: identity names for more than one server, or a name that no server can have.
    """

    servers: tuple[str, ...] = ALL_SERVERS
    names: NameStyle = "prefixed"

    def __post_init__(self) -> None:
        if self.names == "identity" and (len(self.servers) != 1 or self.servers == ALL_SERVERS):
            raise ConfigError([_profile_problem("identity names need exactly one server")])
        for server in self.servers:
            if self.servers != ALL_SERVERS and not is_server_name(server):
                raise ConfigError([_profile_problem(f"{server!r} cannot be the name of a server")])

    def has(self, server: str) -> bool:
        return self.servers == ALL_SERVERS or server in self.servers

    @property
    def is_of_one(self) -> bool:
        """Whether it names a single server, so that no URI has to say whose it is."""
        return len(self.servers) == 1 and self.servers != ALL_SERVERS


def _profile_problem(message: str) -> Problem:
    return Problem(file="profiles", line=0, path="$", message=message)


@dataclass(frozen=True, slots=True)
class Part:
    """What one server brings to one profile, sorted by public name; `stays` are the schemes that go unmarked."""

    shelf: Shelf
    stays: frozenset[str]
    pairs: Named
    named: Mapping[tuple[str, str], Entry]
    listed: Mapping[str, Named]


@dataclass(frozen=True, slots=True)
class View:
    """One profile: all names that mean something, and what is listed of them, by kind. Never changed once made."""

    parts: Mapping[str, Part]
    named: Mapping[tuple[str, str], Entry]
    listed: Mapping[str, Named]
    templates: Named
    clashes: tuple[str, ...] = ()


NO_VIEW = View({}, {}, {}, ())


def view_of(profile: ProfileSpec, shelves: Iterable[Shelf], before: View = NO_VIEW) -> View:
    """Return *profile* of *shelves*; what *before* has of a server that brings the same to it is used again."""
    mine = [shelf for shelf in shelves if profile.has(shelf.server)]
    stays = _unmarked(profile, mine)
    parts = {shelf.server: _part(profile, shelf, stays[shelf.server], before.parts.get(shelf.server)) for shelf in mine}
    if len(parts) == len(before.parts) and all(before.parts.get(name) is part for name, part in parts.items()):
        return before
    return _together(parts)


def _together(parts: Mapping[str, Part]) -> View:
    found = list(parts.values())
    named: dict[tuple[str, str], Entry] = {}
    for part in found:
        named.update(part.named)
    clashes: tuple[str, ...] = ()
    if len(named) != sum(len(part.pairs) for part in found):
        found, clashes = _without_clashes(found)
        named = {name: entry for part in found for name, entry in part.named.items()}
    listed = {kind: _merged(part.listed[kind] for part in found) for kind in KINDS}
    templates = [(uri, entry) for (kind, uri), entry in named.items() if kind == "resource_template"]
    templates.sort(key=lambda pair: (-len(pair[0].split("{", 1)[0]), "{+" in pair[0], pair[0]))  # the most exact first
    return View(parts, named, listed, tuple(templates), clashes)


def _merged(parts: Iterable[Named]) -> Named:
    found = [part for part in parts if part]
    if len(found) < 2:
        return found[0] if found else ()
    return tuple(sorted((pair for part in found for pair in part), key=itemgetter(0)))


def _without_clashes(parts: Sequence[Part]) -> tuple[list[Part], tuple[str, ...]]:
    """Return the parts without the names that two entries claim, and what was dropped."""
    count = Counter((entry.kind, name) for part in parts for name, entry in part.pairs)
    dropped = [entry for part in parts for name, entry in part.pairs if count[entry.kind, name] > 1]
    fit = [
        _sorted_part(part.shelf, part.stays, [pair for pair in part.pairs if count[pair[1].kind, pair[0]] == 1])
        for part in parts
    ]
    return fit, tuple(map(label, sorted(dropped, key=lambda entry: entry.key)))


def _part(profile: ProfileSpec, shelf: Shelf, stays: frozenset[str], before: Part | None) -> Part:
    if before is not None and before.shelf is shelf and before.stays == stays:
        return before

    def public(entry: Entry) -> str:
        if entry.kind == "prompt" and profile.names == "identity":
            return entry.name  # what clients call a prompt has no limits that it could break
        if entry.kind not in URI_KINDS:
            return public_name(entry.server, entry.name, profile.names)
        uri = uri_of(entry)
        keeps = profile.is_of_one or (scheme_of(uri) in stays and not is_marked(uri))
        return uri if keeps else marked_uri(entry.server, uri)

    return _sorted_part(shelf, stays, [(public(entry), entry) for entry in shelf.entries.values()])


def _sorted_part(shelf: Shelf, stays: frozenset[str], named: Sequence[tuple[str, Entry]]) -> Part:
    pairs = tuple(sorted(named, key=itemgetter(0)))
    listed = {kind: tuple(p for p in pairs if p[1].kind == kind and p[1].state == "accepted") for kind in KINDS}
    return Part(shelf, stays, pairs, {(entry.kind, name): entry for name, entry in pairs}, listed)


def _unmarked(profile: ProfileSpec, shelves: Sequence[Shelf]) -> dict[str, frozenset[str]]:
    """Return, by server, the schemes whose URIs stay as they are in this profile.

    A URI stays as it is where its scheme says whose it is: one server in the profile, a scheme that no other server of
    the profile uses, or one of the gateway's own servers, which a newcomer cannot push aside. Else the server is
    written in front.
    """
    users: dict[str, set[str]] = {}
    own: dict[str, set[str]] = {}
    for shelf in shelves:
        for scheme in shelf.schemes:
            users.setdefault(scheme, set()).add(shelf.server)
        for scheme in shelf.own_schemes:
            own.setdefault(scheme, set()).add(shelf.server)
    return {
        shelf.server: frozenset(
            scheme for scheme in shelf.schemes if scheme and own.get(scheme, users[scheme]) == {shelf.server}
        )
        for shelf in shelves
    }
