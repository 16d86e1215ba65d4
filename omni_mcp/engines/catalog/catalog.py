"""MemoryCatalog holds what can be named, per profile, and replaces all of it at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from omni_mcp.contracts.errors import ConfigError, Problem
from omni_mcp.contracts.json import digest
from omni_mcp.contracts.ports import Source
from omni_mcp.contracts.tool import CallKind, Entry
from omni_mcp.engines.catalog.names import (
    NameStyle,
    is_canonical_uri,
    is_marked,
    is_server_name,
    marked_uri,
    public_name,
    scheme_of,
    template_matches,
)
from omni_mcp.engines.catalog.versions import Pins, Versions, versions_of

ALL_SERVERS = ("*",)
_KINDS = ("tool", "resource", "resource_template", "prompt")
_URI_KINDS = ("resource", "resource_template")


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


def _profile_problem(message: str) -> Problem:
    return Problem(file="profiles", line=0, path="$", message=message)


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

    `repinned`: some project sees another version of something, or an older version came or went.
    """

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    repinned: bool = False

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed or self.repinned)


@dataclass(frozen=True, slots=True)
class _View:
    """One profile: all names that mean something, and what is listed of them, by kind."""

    named: Mapping[tuple[str, str], Entry]
    listed: Mapping[str, tuple[tuple[str, Entry], ...]]
    templates: tuple[tuple[str, Entry], ...]


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """One state of the whole catalog; never changed after it was made."""

    version: str
    entries: Mapping[tuple[str, str, str], Entry] = field(default_factory=dict)
    views: Mapping[str, _View] = field(default_factory=dict)
    refused: tuple[str, ...] = ()
    versions: Versions = field(default_factory=Versions)


class MemoryCatalog:
    """Port `Catalog`. Empty until the first `reload`.

    A reader sees one state or the next, never a mixture. Two definitions that claim one name are both dropped and
    reported: picking one would let a newcomer take the place of a tool that somebody trusts.

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
        self._now = _snapshot([], self._profiles, {})
        self._listeners: list[Callable[[CatalogDiff], None]] = []

    @property
    def version(self) -> str:
        """sha256 over the key, state and digest of every entry, of older versions, and of what pins make of them."""
        return self._now.version

    @property
    def profiles(self) -> Mapping[str, ProfileSpec]:
        """The profiles by name."""
        return dict(self._profiles)

    def reload(self) -> CatalogDiff:
        """Ask every source again and put the new state in force in one step; tells the listeners if it differs.

        Raises:
            ConfigError: with the problems of every source that refused; nothing has changed then.
        """
        loaded: list[Entry] = []
        problems: list[Problem] = []
        for source in self._sources:
            try:
                loaded.extend(source.load())
            except ConfigError as error:
                problems.extend(error.problems)
        if problems:
            raise ConfigError(problems)
        before, self._now = self._now, _snapshot(loaded, self._profiles, self._pins())
        diff = _difference(before, self._now)
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
        view = now.views.get(profile)
        if view is None:
            return None
        found = view.named.get((kind, name))
        if found is None and kind == "resource" and is_canonical_uri(name):
            found = next((entry for template, entry in view.templates if template_matches(template, name)), None)
        if found is None and kind == "tool" and "@" in name:
            base, _, wanted = name.rpartition("@")
            found = view.named.get((kind, base))
            return now.versions.named(project, found, wanted) if found is not None else None
        return now.versions.seen_by(project, found) if found is not None else None

    def entries(self, profile: str, kind: str, *, project: str = "") -> list[tuple[str, Entry]]:
        """Return (public name, URI or URI template; entry) of everything accepted, sorted by the first."""
        now = self._now
        view = now.views.get(profile)
        listed = view.listed.get(kind, ()) if view is not None else ()
        if not now.versions.pinned.get(project):
            return list(listed)
        seen = ((name, now.versions.seen_by(project, entry)) for name, entry in listed)
        return [(name, entry) for name, entry in seen if entry.state == "accepted"]

    def get(self, kind: str, server: str, name: str) -> Entry | None:
        """Return an entry by its key, quarantined or not."""
        return self._now.entries.get((kind, server, name))

    def versions(self, kind: str, server: str, name: str) -> list[Entry]:
        """Return an entry by its key, and its older versions."""
        now = self._now
        entry = now.entries.get((kind, server, name))
        return now.versions.of(entry) if entry is not None else []

    def all_entries(self) -> list[Entry]:
        """Return every entry of every server, quarantined ones too, sorted by kind, server and name."""
        return list(self._now.entries.values())

    @property
    def refused(self) -> tuple[str, ...]:
        """What was dropped because two definitions claim one name."""
        return self._now.refused


def _label(entry: Entry) -> str:
    return f"{entry.kind} {entry.server}/{entry.name}"


def _snapshot(loaded: Sequence[Entry], profiles: Mapping[str, ProfileSpec], pins: Pins) -> _Snapshot:
    entries, refused = _unique(entry for entry in loaded if entry.state != "superseded")
    versions = versions_of(entries, (entry for entry in loaded if entry.state == "superseded"), pins)
    views: dict[str, _View] = {}
    for name, profile in profiles.items():
        views[name], clashes = _view(profile, [entry for entry in entries.values() if profile.has(entry.server)])
        refused.extend(f"{clash} (in profile {name})" for clash in clashes)
    facts = [*([*key, entry.state, entry.digest] for key, entry in entries.items()), *versions.facts()]
    return _Snapshot(version=digest(facts), entries=entries, views=views, refused=tuple(refused), versions=versions)


def _unique(loaded: Iterable[Entry]) -> tuple[dict[tuple[str, str, str], Entry], list[str]]:
    """Return the entries by key, sorted, without those whose key two entries claim or whose server has no fit name."""
    found = list(loaded)
    count = Counter(entry.key for entry in found)
    good = {e.key: e for e in sorted(found, key=lambda e: e.key) if count[e.key] == 1 and is_server_name(e.server)}
    refused = sorted({_label(entry) for entry in found if entry.key not in good})
    return good, refused


def _view(profile: ProfileSpec, entries: Sequence[Entry]) -> tuple[_View, list[str]]:
    publish = _uri_publisher(profile, entries)
    public = [
        (publish(entry) if entry.kind in _URI_KINDS else public_name(entry.server, entry.name, profile.names), entry)
        for entry in entries
    ]
    count = Counter((entry.kind, name) for name, entry in public)
    fit = sorted((pair for pair in public if count[pair[1].kind, pair[0]] == 1), key=lambda pair: pair[0])
    clashes = [_label(entry) for name, entry in public if count[entry.kind, name] > 1]
    listed = {kind: tuple(p for p in fit if p[1].kind == kind and p[1].state == "accepted") for kind in _KINDS}
    templates = [pair for pair in fit if pair[1].kind == "resource_template"]
    templates.sort(key=lambda pair: (-len(pair[0].split("{", 1)[0]), "{+" in pair[0], pair[0]))  # the most exact first
    return _View({(e.kind, name): e for name, e in fit}, listed, tuple(templates)), clashes


def _uri_publisher(profile: ProfileSpec, entries: Sequence[Entry]) -> Callable[[Entry], str]:
    """Return the function from an entry to its public URI in this profile.

    A URI stays as it is where its scheme says whose it is: one server in the profile, a scheme that no other server of
    the profile uses, or one of the gateway's own servers, which a newcomer cannot push aside. Else the server is
    written in front.
    """
    users: dict[str, set[str]] = {}
    own: dict[str, set[str]] = {}
    for entry in entries:
        if entry.kind in _URI_KINDS:
            scheme = scheme_of(_uri_of(entry))
            users.setdefault(scheme, set()).add(entry.server)
            if entry.binding == "inproc_safe":
                own.setdefault(scheme, set()).add(entry.server)
    alone = len(profile.servers) == 1 and profile.servers != ALL_SERVERS

    def publish(entry: Entry) -> str:
        uri = _uri_of(entry)
        owners = own.get(scheme_of(uri)) or users[scheme_of(uri)]
        stays = scheme_of(uri) != "" and owners == {entry.server} and not is_marked(uri)
        return uri if alone or stays else marked_uri(entry.server, uri)

    return publish


def _uri_of(entry: Entry) -> str:
    """The server's own URI or URI template."""
    field_name = "uri" if entry.kind == "resource" else "uriTemplate"
    return str(entry.definition.get(field_name, entry.name))


def _difference(before: _Snapshot, after: _Snapshot) -> CatalogDiff:
    old, new = before.entries, after.entries
    return CatalogDiff(
        added=tuple(_label(new[key]) for key in new if key not in old),
        changed=tuple(
            _label(new[key])
            for key in new
            if key in old and (old[key].digest, old[key].state) != (new[key].digest, new[key].state)
        ),
        removed=tuple(_label(old[key]) for key in old if key not in new),
        refused=after.refused,
        repinned=before.versions.facts() != after.versions.facts(),
    )
