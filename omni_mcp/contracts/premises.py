"""What many decisions of a run rest on is recorded once; whoever reads a decision gets it put together again.

Of a call that is allowed most of the request is the same as for the call before: who asks, what they are, which tool
of which version, under which policy. A run's first decision on such premises says them itself. With the second they
are recorded as an event of the run, `decision_premises`, and this decision and those behind it name that event.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from functools import cached_property
from operator import itemgetter

from omni_mcp.contracts.events import DecisionPremises, PolicyDecided, RunEvent
from omni_mcp.contracts.json import JsonObject, canonical

SHARED = tuple(name for name in DecisionPremises.model_fields if name not in ("code", "request"))
OWN = tuple(name for name in PolicyDecided.model_fields if name not in (*SHARED, "premises"))

_own_fields = itemgetter(*OWN)


class Premises:
    """The constant part of decisions. Made once for many: a log tells them apart by `key`.

    Args:
        payload: the fields of a `DecisionPremises`, of a request all but what one call alone has; not to be changed.
    """

    def __init__(self, payload: JsonObject) -> None:
        self.payload = payload

    @cached_property
    def key(self) -> bytes:
        """sha256 of the payload. For comparing only: it is not masked, so it is not recorded either."""
        return hashlib.sha256(canonical(self.payload)).digest()


def own_part(told: JsonObject) -> JsonObject:
    """Return what of a decision is recorded beside its premises."""
    return dict(zip(OWN, _own_fields(told), strict=True))


def own_context(context: JsonObject) -> JsonObject:
    """Return what of a request's context is recorded with a decision: the rest is its run, or shared."""
    own = context.copy()
    del own["project"], own["run"]
    return own


def together(own: JsonObject, premises: JsonObject | None, *, run: str) -> JsonObject:
    """Return a decision with its premises, as one that says them itself is recorded.

    Args:
        own: the payload of a decision of *run* that names its premises.
        premises: the payload that it names; None if that is gone, as after an erasure: its fields are None then.
    """
    shared = premises or {}
    asked: JsonObject = shared.get("request") or {}
    told: JsonObject = own.get("request") or {}
    context = {**(asked.get("context") or {}), **(told.get("context") or {}), "run": run}
    fields = {name: shared.get(name) for name in SHARED}
    return {**fields, "premises": None, **own, "request": {**asked, **told, "context": context}}


def with_premises(events: Iterable[RunEvent], find: Callable[[str, int], JsonObject | None]) -> list[RunEvent]:
    """Return *events* with each decision put together; the others, and decisions that say everything, as they are.

    Args:
        find: returns the payload of the `decision_premises` of a run with that seq; None if there is none, or no more.
    """
    known: dict[tuple[str, int], JsonObject | None] = {}
    found: list[RunEvent] = []
    for event in events:
        place = place_of_premises(event)
        if place is None or event.payload is None:
            found.append(event)
            continue
        if place not in known:
            known[place] = find(*place)
        payload = together(event.payload, known[place], run=event.run)
        found.append(event.model_copy(update={"payload": payload}))
    return found


def place_of_premises(event: RunEvent) -> tuple[str, int] | None:
    """Return (run, seq) of the premises that an event names; None for any other event."""
    if event.code != "policy_decided" or event.payload is None:
        return None
    seq = event.payload.get("premises")
    return (event.run, seq) if isinstance(seq, int) else None
