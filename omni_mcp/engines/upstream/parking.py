"""Parking: a call whose server waits for its caller's answer, kept open between two rounds of a modern client."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from omni_mcp.engines.upstream.connection import Connection
from omni_mcp.engines.upstream.exchange import Exchange, Question
from omni_mcp.engines.upstream.talk import Talk
from omni_mcp.protocol.rpc import INTERNAL_ERROR

PARKED_S = 605.0  # a little longer than the gateway waits for the caller (`limits.round_ttl_s`)
PER_PRINCIPAL = 16
IN_ALL = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Parked:
    """One call that waits. `questions` are those that its caller was given, by the key of the answer."""

    call: str
    principal: str
    server: str
    connection: Connection
    talk: Talk
    exchange: Exchange
    questions: dict[str, Question]
    let_go: Callable[[], None]


class Parking:
    """Holds the calls that wait. Whoever does not come back is cancelled at the server."""

    def __init__(self, *, parked_s: float = PARKED_S, per_principal: int = PER_PRINCIPAL, in_all: int = IN_ALL) -> None:
        self._parked_s = parked_s
        self._per_principal = per_principal
        self._in_all = in_all
        self._places: dict[str, tuple[Parked, asyncio.TimerHandle]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def has_room(self, principal: str) -> bool:
        """Whether another call of *principal* can be parked."""
        mine = sum(parked.principal == principal for parked, _ in self._places.values())
        return mine < self._per_principal and len(self._places) < self._in_all

    def park(self, parked: Parked) -> str:
        """Keep a call; returns the key under which it is taken again."""
        key = secrets.token_urlsafe(18)
        timer = asyncio.get_running_loop().call_later(self._parked_s, self._expire, key)
        self._places[key] = parked, timer
        return key

    def take(self, key: object, *, call: str, principal: str) -> Parked | None:
        """Take a call out again; None if it is over, or another's."""
        found = self._places.get(key) if isinstance(key, str) else None
        if found is None or found[0].call != call or found[0].principal != principal or not isinstance(key, str):
            return None
        del self._places[key]
        found[1].cancel()
        return found[0]

    def end_all(self) -> None:
        """Cancel everything that waits."""
        for key in list(self._places):
            self._places[key][1].cancel()
            self._expire(key)

    def _expire(self, key: str) -> None:
        parked, _ = self._places.pop(key)
        for question in list(parked.exchange.open_questions.values()):
            parked.talk.refuse(parked.exchange, question.id, INTERNAL_ERROR, "the caller did not answer")
        parked.exchange.cancel("the caller did not come back")
        parked.let_go()
