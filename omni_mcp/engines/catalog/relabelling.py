"""Relabelling: a person vouches anew for definitions that are accepted already; each is an acceptance of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from omni_mcp.contracts.json import JsonObject, digest
from omni_mcp.contracts.lock import Lock, RiskClass, RiskFlag, item_name, launch_digest
from omni_mcp.contracts.manifest import Labels
from omni_mcp.contracts.tool import EntryKind
from omni_mcp.engines.catalog.acceptance import judge
from omni_mcp.engines.catalog.difference import Surroundings, difference


@dataclass(frozen=True, slots=True, kw_only=True)
class Relabelled:
    """One accepted definition, what was vouched for until now, and what is instead; `risks` are those of the change."""

    server: str
    item: str
    version: str
    digest: str
    before: Labels
    labels: Labels
    risks: Mapping[RiskClass, tuple[str, ...]]


def relabelled_of(
    lock: Lock, server: str, offered: Iterable[tuple[EntryKind, str, JsonObject]], launch: Mapping[str, str],
    labels: Labels,
) -> list[Relabelled]:  # fmt: skip
    """Return which of *offered* are accepted as they are, with other labels than *labels*.

    Args:
        launch: what launched the server when it offered them (`launch_parts`).
    """
    started, found = launch_digest(launch), []
    for kind, name, definition in offered:
        item, known = item_name(kind, name), digest(definition)
        locked = lock.find(server, item)
        version = judge(locked, known, started).version
        if locked is None or version is None or locked.versions[version].labels == labels:
            continue
        before = locked.versions[version].labels
        same = difference(definition, definition, beside=Surroundings())
        found.append(
            Relabelled(
                server=server, item=item, version=version, digest=known, before=before, labels=labels,
                risks=same.risks(labels, before=before),
            )
        )  # fmt: skip
    return found


def relabel(lock: Lock, changes: Iterable[Relabelled], *, by: str, at: str) -> Lock:
    """Return the lock with *changes* in it; open risks stay open.

    Args:
        by: who answered.
        at: ISO 8601, UTC.
    """
    servers = dict(lock.servers)
    for change in changes:
        server = servers[change.server]
        locked = server.items[change.item]
        accepted = locked.versions[change.version]
        flags = {**accepted.risks, **{risk: RiskFlag(why=why) for risk, why in change.risks.items()}}
        anew = accepted.model_copy(
            update={"accepted_at": at, "accepted_by": by, "labels": change.labels, "risks": flags}
        )
        item = locked.model_copy(update={"versions": {**locked.versions, change.version: anew}})
        servers[change.server] = server.model_copy(update={"items": {**server.items, change.item: item}})
    return lock.model_copy(update={"servers": servers})
