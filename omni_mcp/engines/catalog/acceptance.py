"""Acceptance: whether a definition is the one that a person accepted, what waits, and how a yes changes the lock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from omni_mcp.contracts.errors import NotFound
from omni_mcp.contracts.json import JsonObject, digest
from omni_mcp.contracts.lock import (
    AcceptedVersion,
    Lock,
    LockedItem,
    LockedServer,
    QuarantineReason,
    RiskClass,
    RiskFlag,
    item_name,
    launch_digest,
)
from omni_mcp.contracts.manifest import Labels
from omni_mcp.contracts.tool import EntryKind
from omni_mcp.engines.catalog.difference import Difference, Surroundings, difference
from omni_mcp.engines.catalog.difference_risks import WHY_LIMIT

# A part of what launches a server, and what a change of it may add. Of a command anything may come.
_RISKS_OF_PARTS: Mapping[str, tuple[RiskClass, ...]] = {
    "hosts": ("egress",), "url": ("egress",), "headers": ("secret_path",), "env": ("secret_path",),
    "secrets": ("secret_path",), "mounts": ("write", "secret_path"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the lock says about one definition: an accepted version, or why it is not one."""

    version: str | None
    reason: QuarantineReason | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """One definition that nobody accepted as it is, with the newest accepted one beside it."""

    server: str
    kind: EntryKind
    name: str
    definition: JsonObject
    digest: str
    reason: QuarantineReason
    accepted: AcceptedVersion | None = None
    launch: Mapping[str, str]
    beside: Surroundings

    @property
    def item(self) -> str:
        """Its name in the lock, such as `tool/read_file`."""
        return item_name(self.kind, self.name)

    def difference(self) -> Difference:
        """Compare it with what is accepted. Takes a few milliseconds, so it is done when somebody looks."""
        return difference(
            self.accepted.definition if self.accepted is not None else None, self.definition, beside=self.beside
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A person's yes to one definition."""

    waiting: Waiting
    labels: Labels
    risks: Mapping[RiskClass, tuple[str, ...]]


def judge(locked: LockedItem | None, definition_digest: str, launch: str) -> Verdict:
    """Say what the lock says about a definition of a server that *launch* (a `launch_digest`) started."""
    if locked is None or not locked.versions:
        return Verdict(None, "new")
    fit = [version for version, known in locked.versions.items() if known.digest == definition_digest]
    if not fit:
        return Verdict(None, "changed")
    good = [version for version in fit if locked.versions[version].launch == launch]
    return Verdict(max(good, key=int), None) if good else Verdict(None, "launch_changed")


def waiting_of(
    lock: Lock,
    server: str,
    definitions: Iterable[tuple[EntryKind, str, JsonObject]],
    launch: Mapping[str, str],
    *,
    others: frozenset[str] = frozenset(),
) -> list[Waiting]:
    """Return what of a server's definitions is not accepted, in their order.

    Args:
        launch: what launched the server when it offered them (`launch_parts`).
        others: names of other servers' tools.
    """
    offered = list(definitions)
    started = launch_digest(launch)
    beside = Surroundings(siblings=frozenset(name for kind, name, _ in offered if kind == "tool"), others=others)
    found: list[Waiting] = []
    for kind, name, definition in offered:
        locked = lock.find(server, item_name(kind, name))
        known = digest(definition)
        verdict = judge(locked, known, started)
        if verdict.reason is not None:
            found.append(
                Waiting(
                    server=server, kind=kind, name=name, definition=definition, digest=known, reason=verdict.reason,
                    accepted=reference_of(locked, known), launch=launch, beside=beside,
                )
            )  # fmt: skip
    return found


def reference_of(locked: LockedItem | None, definition_digest: str) -> AcceptedVersion | None:
    """Return what a definition is shown against: the same one where it was accepted before, else the newest."""
    if locked is None or (version := locked.version_of(definition_digest) or locked.newest) is None:
        return None
    return locked.versions[version]


def launch_changes(lock: Lock, server: str, launch: Mapping[str, str]) -> tuple[str, ...]:
    """Return which parts of what launches a server differ from those accepted last; nothing for a new server."""
    known = lock.servers.get(server)
    if known is None or not known.items:
        return ()
    names = known.launch.keys() | launch.keys()
    return tuple(sorted(name for name in names if known.launch.get(name) != launch.get(name)))


def answer_to(waiting: Waiting, found: Difference, labels: Labels, *, launch_changed: Iterable[str] = ()) -> Answer:
    """Return the yes to one definition, with the risks of it.

    Args:
        found: its difference.
        launch_changed: as `launch_changes` says.
    """
    before = waiting.accepted.labels if waiting.accepted is not None else None
    risks = dict(found.risks(labels, before=before))
    for part in launch_changed if waiting.accepted is not None else ():
        for risk in _RISKS_OF_PARTS.get(part, ("launch",)):
            risks[risk] = (*risks.get(risk, ()), f"what starts the server changed: {part}")[:WHY_LIMIT]
    return Answer(waiting=waiting, labels=labels, risks=risks)


def accept(lock: Lock, answers: Iterable[Answer], *, by: str, at: str) -> Lock:
    """Return the lock with *answers* in it. A definition that was accepted before keeps its version.

    Args:
        by: who answered.
        at: ISO 8601, UTC.
    """
    servers = dict(lock.servers)
    for answer in answers:
        waiting = answer.waiting
        server = servers.get(waiting.server, LockedServer())
        before = server.items.get(waiting.item)
        known_as = before.version_of(waiting.digest) if before is not None else None
        last = before.last_version if before is not None else 0
        version = known_as or str(last + 1)
        accepted = AcceptedVersion(
            accepted_at=at, accepted_by=by, definition=waiting.definition, digest=waiting.digest,
            launch=launch_digest(waiting.launch), labels=answer.labels, risks=_flags(answer, before, known_as),
        )  # fmt: skip
        item = LockedItem(
            last_version=max(last, int(version)),
            versions={**(before.versions if before is not None else {}), version: accepted},
        )
        servers[waiting.server] = LockedServer(launch=dict(waiting.launch), items={**server.items, waiting.item: item})
    return lock.model_copy(update={"servers": servers})


def _flags(answer: Answer, before: LockedItem | None, known_as: str | None) -> dict[RiskClass, RiskFlag]:
    """The flags of this answer; those of the same version stay, so that accepting again closes nothing."""
    kept = dict(before.versions[known_as].risks) if before is not None and known_as is not None else {}
    return {**kept, **{risk: RiskFlag(why=why) for risk, why in answer.risks.items()}}


def open_risks(lock: Lock) -> list[tuple[str, str, str, RiskClass, RiskFlag]]:
    """Return (server, item, version, class, flag) of every open flag of a version that is in use."""
    return [
        (server, item, version, risk, flag)
        for server, item, version, known in lock.versions()
        if version in lock.in_use(server, item)
        for risk, flag in sorted(known.risks.items())
        if flag.closed_at is None
    ]


def close_risk(lock: Lock, flag_id: str, *, by: str, at: str, note: str | None) -> Lock:
    """Return the lock with one open flag closed.

    Raises:
        NotFound: there is no open flag of this id.
    """
    for server, item, version, risk, flag in open_risks(lock):
        if risk_id(server, item, version, risk) == flag_id:
            closed = flag.model_copy(update={"closed_by": by, "closed_at": at, "note": note})
            return _with_flag(lock, server, item, version, risk, closed)
    raise NotFound(f"there is no open risk {flag_id!r}; see: omni-mcp risks")


def risk_id(server: str, item: str, version: str, risk: RiskClass) -> str:
    """Return the short name of a flag."""
    return digest([server, item, version, risk])[7:19]


def _with_flag(lock: Lock, server: str, item: str, version: str, risk: RiskClass, flag: RiskFlag) -> Lock:
    locked = lock.servers[server]
    known = locked.items[item]
    accepted = known.versions[version]
    changed = accepted.model_copy(update={"risks": {**accepted.risks, risk: flag}})
    items = {**locked.items, item: known.model_copy(update={"versions": {**known.versions, version: changed}})}
    return lock.model_copy(update={"servers": {**lock.servers, server: locked.model_copy(update={"items": items})}})
