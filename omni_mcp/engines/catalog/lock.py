"""LockedSource: of what upstream servers offer, only what the operator accepted is in force."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import is_

from omni_mcp.contracts.events import DefinitionQuarantined
from omni_mcp.contracts.json import digest
from omni_mcp.contracts.lock import AcceptedVersion, Lock, LockedItem, QuarantineReason, item_name, launch_digest
from omni_mcp.contracts.manifest import Labels
from omni_mcp.contracts.ports import Source
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.catalog.acceptance import Waiting, judge, reference_of
from omni_mcp.engines.catalog.difference import Surroundings
from omni_mcp.engines.catalog.gradual import steps_of
from omni_mcp.engines.catalog.lockfile import LockFile
from omni_mcp.engines.catalog.pins import pins_by_key
from omni_mcp.engines.catalog.quarantine_news import QuarantineNews
from omni_mcp.turns import Work, finish

Key = tuple[str, str, str]
LaunchOf = Callable[[str], Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class _Judged:
    """One entry as it came, and what became of it under one state of the lock and one launch."""

    came: Entry
    under: tuple[int, str]
    entry: Entry
    version: str | None
    reason: QuarantineReason | None
    definition_digest: str


@dataclass(frozen=True, slots=True)
class _Bench:
    """What became of all that one server offers, and what is in force of it."""

    came: Sequence[Entry]
    under: tuple[int, str]
    judged: Mapping[tuple[Key, int], _Judged]
    in_force: Sequence[Entry]
    quarantined: Sequence[_Judged]

    def is_of(self, came: Sequence[Entry], under: tuple[int, str]) -> bool:
        return self.under == under and len(came) == len(self.came) and all(map(is_, came, self.came))


@dataclass(frozen=True, slots=True)
class _Load:
    """What one load found, by server, and the lock and the launches that it went by."""

    lock: Lock = field(default_factory=Lock)
    launches: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    benches: Mapping[str, _Bench] = field(default_factory=dict)


class LockedSource:
    """Port `Source` around the entries of upstream servers.

    A definition that equals an accepted one, of a server that is launched as it was then, is accepted and carries the
    operator's labels. Everything else is quarantined with the labels of the worst.

    A version that a project is pinned to comes beside the one in force, as `superseded`: it is called at the same
    server, so what the server does now must be accepted too, and each of its labels is the worse of the two.

    A server is looked at again only if it offers other entries, or if the lock or its launch changed; an entry of it,
    only if that one is another.

    Args:
        source: what servers offer.
        lock: what is accepted.
        launch_of: what launches a server now (`launch_parts`); raises KeyError for one that it does not know.
    """

    def __init__(self, source: Source, lock: LockFile, *, launch_of: LaunchOf) -> None:
        self._source = source
        self._lock = lock
        self._launch_of = launch_of
        self._last = _Load()
        self._news = QuarantineNews()

    @property
    def waiting(self) -> tuple[Waiting, ...]:
        """What was quarantined at the last load."""
        return tuple(_waiting_of(self._last, self._last.benches))

    @property
    def quarantined(self) -> int:
        """How many definitions were quarantined at the last load."""
        return sum(len(bench.quarantined) for bench in self._last.benches.values())

    def listen(self, listener: Callable[[DefinitionQuarantined], object]) -> None:
        """Have *listener* told of everything that is quarantined, also of what was before anybody listened."""
        self._news.listen(listener)

    def load(self) -> Iterable[Entry]:
        """As the port.

        Raises:
            ConfigError: as the source.
        """
        return finish(self.steps())

    def steps(self) -> Work[Sequence[Entry]]:
        """As `load`, in turns."""
        lock, revision = self._lock.now, self._lock.revision
        before = self._last
        came: dict[str, list[Entry]] = {}
        for entry in (yield from steps_of(self._source)):
            came.setdefault(entry.server, []).append(entry)
        launches = {server: self._find_launch(server) for server in came}
        wanted = _pinned_versions(lock)
        benches: dict[str, _Bench] = {}
        for server, entries in came.items():
            yield
            launch = launches[server]
            under = revision, launch_digest(launch) if launch is not None else ""
            known = before.benches.get(server)
            if known is not None and known.is_of(entries, under):
                benches[server] = known
            else:
                benches[server] = yield from _bench(entries, under, lock, wanted, known)
        found = _Load(lock, {server: launch or {} for server, launch in launches.items()}, benches)
        self._last = found
        for server, bench in benches.items():
            if bench is not before.benches.get(server):
                facts = {one.entry.key: (one.definition_digest, str(one.reason)) for one in bench.quarantined}
                if news := self._news.of(server, facts, revision=revision):
                    yield
                    waiting = _waiting_of(found, [server])
                    yield from self._news.tell(server, [w for w in waiting if (w.kind, w.server, w.name) in news])
        self._news.forget_all_but(benches)
        return [entry for bench in benches.values() for entry in bench.in_force]

    def _find_launch(self, server: str) -> Mapping[str, str] | None:
        try:
            return self._launch_of(server)
        except KeyError:
            return None


def _bench(
    came: Sequence[Entry], under: tuple[int, str], lock: Lock, wanted: Mapping[Key, Sequence[str]],
    before: _Bench | None,
) -> Work[_Bench]:  # fmt: skip
    """Judge what one server offers; what was judged under the same lock and launch needs no second look."""
    judged: dict[tuple[Key, int], _Judged] = {}
    by_key: dict[Key, list[_Judged]] = {}
    in_force: list[Entry] = []
    for entry in came:
        same_name = by_key.setdefault(entry.key, [])
        place = entry.key, len(same_name)
        known = before.judged.get(place) if before is not None else None
        if known is None or known.came is not entry or known.under != under:
            known = _judge(entry, under, lock.find(entry.server, item_name(entry.kind, entry.name)), known)
            yield
        judged[place] = known
        same_name.append(known)
    for key, found in by_key.items():
        for one in _in_force(found):
            in_force += [one.entry, *_older(one, wanted.get(key, ()), lock)]
    return _Bench(came, under, judged, in_force, [one for one in judged.values() if one.reason is not None])


def _judge(entry: Entry, under: tuple[int, str], locked: LockedItem | None, before: _Judged | None) -> _Judged:
    same = before is not None and (before.came.digest, before.came.state) == (entry.digest, entry.state)
    if before is not None and same and before.under == under:
        return replace(before, came=entry)
    known = before.definition_digest if before is not None and same else digest(entry.definition)
    verdict = judge(locked, known, under[1])
    if locked is None or verdict.version is None:
        return _Judged(entry, under, replace(entry, state="quarantined"), None, verdict.reason, known)
    labels = locked.versions[verdict.version].labels
    accepted = replace(
        entry,
        state="degraded" if entry.state == "degraded" else "accepted",
        labels=labels,
        side_effects="none" if labels.read_only else "non_idempotent",
        version=verdict.version,
        digest="",
    )
    return _Judged(entry, under, accepted, verdict.version, None, known)


def _older(one: _Judged, wanted: Iterable[str], lock: Lock) -> list[Entry]:
    """Return the versions of an accepted entry that projects are pinned to, apart from its own."""
    entry = one.entry
    if one.version is None or (locked := lock.find(entry.server, item_name(entry.kind, entry.name))) is None:
        return []
    return [
        _as_version(entry, version, locked.versions[version])
        for version in wanted
        if version in locked.versions and version != one.version and locked.versions[version].launch == one.under[1]
    ]


def _waiting_of(load: _Load, servers: Iterable[str]) -> list[Waiting]:
    """Return what is quarantined of *servers*, beside the names of all tools."""
    names = {
        name: frozenset(one.name for one in bench.came if one.kind == "tool") for name, bench in load.benches.items()
    }
    found: list[Waiting] = []
    for server in servers:
        if not (quarantined := load.benches[server].quarantined):
            continue
        others = frozenset(one for name, tools in names.items() if name != server for one in tools)
        beside = Surroundings(siblings=names[server], others=others)
        found += [_waiting(one, one.reason, load, beside) for one in quarantined if one.reason is not None]
    return found


def _waiting(one: _Judged, reason: QuarantineReason, load: _Load, beside: Surroundings) -> Waiting:
    entry = one.entry
    locked = load.lock.find(entry.server, item_name(entry.kind, entry.name))
    return Waiting(
        server=entry.server, kind=entry.kind, name=entry.name, definition=entry.definition,
        digest=one.definition_digest, reason=reason, accepted=reference_of(locked, one.definition_digest),
        launch=load.launches[entry.server], beside=beside,
    )  # fmt: skip


def _in_force(found: list[_Judged]) -> list[_Judged]:
    """The newest of several accepted versions; all, where one is not accepted, so that the catalog drops them."""
    versions = {one.version: one for one in found if one.version is not None}
    return [versions[max(versions, key=int)]] if len(found) > 1 and len(versions) == len(found) else found


def _pinned_versions(lock: Lock) -> dict[Key, list[str]]:
    wanted: dict[Key, list[str]] = {}
    for pins in pins_by_key(lock).values():
        for key, version in pins.items():
            wanted.setdefault(key, []).append(version)
    return {key: sorted(set(versions)) for key, versions in wanted.items()}


def _as_version(entry: Entry, version: str, accepted: AcceptedVersion) -> Entry:
    labels = worse_of(accepted.labels, entry.labels)
    return replace(
        entry, state="superseded", version=version, definition=accepted.definition, labels=labels,
        side_effects="none" if labels.read_only else "non_idempotent", digest="",
    )  # fmt: skip


def worse_of(one: Labels, other: Labels) -> Labels:
    """Return what can be vouched for if both are true."""
    return Labels(
        read_only=one.read_only and other.read_only,
        destructive=one.destructive or other.destructive,
        egress=one.egress or other.egress,
        reads_private=one.reads_private or other.reads_private,
        reads_untrusted=one.reads_untrusted or other.reads_untrusted,
    )
