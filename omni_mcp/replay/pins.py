"""What a run was made with, what a gateway has now, and where the two differ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from omni_mcp import __version__
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.tool import Entry
from omni_mcp.gateway import Gateway
from omni_mcp.replay.recorded import RecordedCall

PINNED = ("definition_digest", "executor", "sandbox_profile", "sandbox_profile_digest", "policy_version",
          "gateway_version")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """One thing that is not what it was when *call* was made."""

    call: str
    name: str
    what: str
    was: str | None
    now: str | None

    def as_json(self) -> JsonObject:
        return {"call": self.call, "name": self.name, "what": self.what, "was": self.was, "now": self.now}

    def __str__(self) -> str:
        return f"{self.what} of {self.name} was {self.was or '(nothing)'}, now {self.now or '(nothing)'}"


def changes(calls: Iterable[RecordedCall], gateway: Gateway) -> list[Changed]:
    """Return what differs from what *calls* were decided on; each difference once, at the first call that shows it."""
    found: dict[tuple[str, str, str | None], Changed] = {}
    for call in calls:
        for change in _changes_of(call, gateway):
            about = change.name if change.what not in ("policy_version", "gateway_version") else ""
            found.setdefault((about, change.what, change.was), change)
    return list(found.values())


def entry_of(call: RecordedCall, gateway: Gateway) -> Entry | None:
    """Return what the name that *call* used means now, to whoever made it."""
    return gateway.names.find(call.profile, call.kind, call.name, project=call.principal.project)


def _changes_of(call: RecordedCall, gateway: Gateway) -> Iterator[Changed]:
    decided = call.decided
    if not decided:
        return
    now = _facts(entry_of(call, gateway), gateway)
    for what in PINNED:
        was = decided.get(what)
        if was != now[what] and not (what == "sandbox_profile_digest" and was is None):  # older records have none
            yield Changed(call=call.id, name=call.name, what=what, was=was, now=now[what])


def _facts(entry: Entry | None, gateway: Gateway) -> dict[str, str | None]:
    known = entry if entry is not None and entry.state != "quarantined" else None
    return {
        "definition_digest": known.digest if known is not None else None,
        "executor": known.binding if known is not None else None,
        "sandbox_profile": known.profile if known is not None else None,
        "sandbox_profile_digest": gateway.profile_digests.get(known.profile) if known is not None else None,
        "policy_version": gateway.policy_version,
        "gateway_version": __version__,
    }
