"""LockedSource: of what upstream servers offer, only what the operator accepted is in force."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from omni_mcp.contracts.events import DefinitionQuarantined, QuarantinedDefinition
from omni_mcp.contracts.json import digest
from omni_mcp.contracts.lock import AcceptedVersion, Lock, QuarantineReason, item_name, launch_digest
from omni_mcp.contracts.manifest import Labels
from omni_mcp.contracts.ports import Source
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.catalog.acceptance import Waiting, judge, reference_of
from omni_mcp.engines.catalog.difference import Surroundings
from omni_mcp.engines.catalog.lockfile import LockFile
from omni_mcp.engines.catalog.pins import pins_by_key

NAMED_IN_EVENT = 200
ANALYSED_IN_EVENT = 8  # a look takes a few milliseconds, and the catalog waits for it
EVENTS_PER_SERVER = 64  # until the lock changes: a server that changes its list for ever must not fill the log
KEPT_EVENTS = 256  # while nobody listens

Key = tuple[str, str, str]
LaunchOf = Callable[[str], Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class _Judged:
    """One entry as it came, and what became of it under one state of the lock and one launch."""

    came_as: str
    under: tuple[int, str]
    entry: Entry
    version: str | None
    reason: QuarantineReason | None
    definition_digest: str


class LockedSource:
    """Port `Source` around the entries of upstream servers.

    A definition that equals an accepted one, of a server that is launched as it was then, is accepted and carries the
    operator's labels. Everything else is quarantined with the labels of the worst.

    A version that a project is pinned to comes beside the one in force, as `superseded`: it is called at the same
    server, so what the server does now must be accepted too, and each of its labels is the worse of the two.

    Args:
        source: what servers offer.
        lock: what is accepted.
        launch_of: what launches a server now (`launch_parts`); raises KeyError for one that it does not know.
    """

    def __init__(self, source: Source, lock: LockFile, *, launch_of: LaunchOf) -> None:
        self._source = source
        self._lock = lock
        self._launch_of = launch_of
        self._judged: dict[tuple[Key, int], _Judged] = {}
        self._waiting: tuple[Waiting, ...] = ()
        self._said: dict[str, dict[Key, tuple[str, QuarantineReason]]] = {}
        self._events: dict[str, tuple[int, int]] = {}
        self._unheard: deque[DefinitionQuarantined] = deque(maxlen=KEPT_EVENTS)
        self._listener: Callable[[DefinitionQuarantined], object] | None = None

    @property
    def waiting(self) -> tuple[Waiting, ...]:
        """What was quarantined at the last load."""
        return self._waiting

    def listen(self, listener: Callable[[DefinitionQuarantined], object]) -> None:
        """Have *listener* told of everything that is quarantined, also of what was before anybody listened."""
        self._listener = listener
        while self._unheard:
            listener(self._unheard.popleft())

    def load(self) -> Iterable[Entry]:
        """As the port.

        Raises:
            ConfigError: as the source.
        """
        launches: dict[str, Mapping[str, str] | None] = {}
        judged: dict[tuple[Key, int], _Judged] = {}
        by_key: dict[Key, list[_Judged]] = {}
        for entry in self._source.load():
            if entry.server not in launches:
                launches[entry.server] = self._find_launch(entry.server)
            same_name = by_key.setdefault(entry.key, [])
            place = entry.key, len(same_name)
            judged[place] = self._judge(place, entry, launches[entry.server])
            same_name.append(judged[place])
        self._judged = judged
        self._waiting = self._all_waiting(judged.values(), launches)
        self._tell(judged.values())
        wanted = _pinned_versions(self._lock.now)
        return [
            entry
            for key, found in by_key.items()
            for one in _in_force(found)
            for entry in (one.entry, *self._older(one, wanted.get(key, ())))
        ]

    def _older(self, one: _Judged, wanted: Iterable[str]) -> list[Entry]:
        """Return the versions of an accepted entry that projects are pinned to, apart from its own."""
        entry = one.entry
        locked = self._lock.now.find(entry.server, item_name(entry.kind, entry.name))
        if locked is None or one.version is None:
            return []
        return [
            _as_version(entry, version, locked.versions[version])
            for version in wanted
            if version in locked.versions and version != one.version
        ]

    def _find_launch(self, server: str) -> Mapping[str, str] | None:
        try:
            return self._launch_of(server)
        except KeyError:
            return None

    def _judge(self, place: tuple[Key, int], entry: Entry, launch: Mapping[str, str] | None) -> _Judged:
        """Judge an entry again only if it, the lock or the launch changed: most loads bring what the last one did."""
        started = launch_digest(launch) if launch is not None else ""
        under = self._lock.revision, started
        before = self._judged.get(place)
        if before is not None and (before.came_as, before.under) == (entry.digest, under):
            return before
        is_known = before is not None and before.came_as == entry.digest
        known = before.definition_digest if before is not None and is_known else digest(entry.definition)
        locked = self._lock.now.find(entry.server, item_name(entry.kind, entry.name))
        verdict = judge(locked, known, started)
        if locked is None or verdict.version is None:
            quarantined = replace(entry, state="quarantined")
            return _Judged(entry.digest, under, quarantined, None, verdict.reason, known)
        labels = locked.versions[verdict.version].labels
        accepted = replace(
            entry,
            state="degraded" if entry.state == "degraded" else "accepted",
            labels=labels,
            side_effects="none" if labels.read_only else "non_idempotent",
            version=verdict.version,
            digest="",
        )
        return _Judged(entry.digest, under, accepted, verdict.version, None, known)

    def _all_waiting(
        self, judged: Iterable[_Judged], launches: Mapping[str, Mapping[str, str] | None]
    ) -> tuple[Waiting, ...]:
        tools: dict[str, set[str]] = {}
        for one in judged:
            if one.entry.kind == "tool":
                tools.setdefault(one.entry.server, set()).add(one.entry.name)
        beside: dict[str, Surroundings] = {}
        for server in {one.entry.server for one in judged if one.reason is not None}:
            others = frozenset(name for other, names in tools.items() if other != server for name in names)
            beside[server] = Surroundings(siblings=frozenset(tools.get(server, ())), others=others)
        return tuple(
            self._waiting_of(one, one.reason, launches[one.entry.server] or {}, beside[one.entry.server])
            for one in judged
            if one.reason is not None
        )

    def _waiting_of(
        self, one: _Judged, reason: QuarantineReason, launch: Mapping[str, str], beside: Surroundings
    ) -> Waiting:
        entry = one.entry
        locked = self._lock.now.find(entry.server, item_name(entry.kind, entry.name))
        return Waiting(
            server=entry.server, kind=entry.kind, name=entry.name, definition=entry.definition,
            digest=one.definition_digest, reason=reason, accepted=reference_of(locked, one.definition_digest),
            launch=launch, beside=beside,
        )  # fmt: skip

    def _tell(self, judged: Iterable[_Judged]) -> None:
        """Tell of what is quarantined now and was not, or for another reason, at the last load: an event a server."""
        said: dict[str, dict[Key, tuple[str, QuarantineReason]]] = {}
        for one in judged:
            if one.reason is not None:
                said.setdefault(one.entry.server, {})[one.entry.key] = one.definition_digest, one.reason
        for server, now in said.items():
            before = self._said.get(server, {})
            news = {key for key, fact in now.items() if before.get(key) != fact}
            if news and self._may_tell(server):
                self._say(server, [one for one in self._waiting if (one.kind, one.server, one.name) in news])
        self._said = said

    def _may_tell(self, server: str) -> bool:
        revision, count = self._events.get(server, (self._lock.revision, 0))
        count = count + 1 if revision == self._lock.revision else 1
        self._events[server] = self._lock.revision, count
        return count <= EVENTS_PER_SERVER

    def _say(self, server: str, news: list[Waiting]) -> None:
        for reason in dict.fromkeys(one.reason for one in news):
            of_reason = [one for one in news if one.reason == reason]
            payload = DefinitionQuarantined(
                server=server,
                reason=reason,
                definitions=tuple(
                    _named(one, looked_at=number < ANALYSED_IN_EVENT)
                    for number, one in enumerate(of_reason[:NAMED_IN_EVENT])
                ),
                more=max(0, len(of_reason) - NAMED_IN_EVENT),
            )
            if self._listener is None:
                self._unheard.append(payload)
            else:
                self._listener(payload)


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


def _named(one: Waiting, *, looked_at: bool) -> QuarantinedDefinition:
    """Rules, places and kinds of change: never a text of the server, which would act on whoever reads the log."""
    if not looked_at:
        return QuarantinedDefinition(item=one.item, digest=one.digest)
    found = one.difference()
    return QuarantinedDefinition(
        item=one.item,
        digest=one.digest,
        severity=found.severity,
        findings=tuple(dict.fromkeys(finding.rule for finding in found.findings)),
        changes=tuple(dict.fromkeys(change.kind for change in found.changes)),
    )
