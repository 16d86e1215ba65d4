"""The `requestState` of a multi-round call: a text that stands for what is kept here, good for one use.

The client holds nothing but a keyed hash over the call and its round: nothing can be read from it or changed in it, and
it is of no use to another principal, or for another method, name or arguments. What it stands for is kept in memory, as
the open call is: after a restart both are over. The key outlives a restart, and so an offline replay, which gives calls
their recorded ids, gives the same text for the same round. Source: MCP 2026-07-28, basic/patterns, "Multi round-trip
requests".
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections import Counter, OrderedDict
from dataclasses import dataclass, field

import orjson

from omni_mcp.contracts.json import JsonObject, JsonValue, canonical

KEY_BYTES = 32
STATE_LIMIT_BYTES = 256 * 1024
SHARE_BYTES = 8 * 1024 * 1024  # of one principal
ROOM_BYTES = 64 * 1024 * 1024


class BadState(Exception):
    """A `requestState` that stands for nothing, or for another request; which of it is for the log."""


class NoRoom(Exception):
    """Too much is kept for calls that wait for input; which is no fault of the call that comes now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """What a state is good for. Two requests may share a state only if all of this is equal."""

    principal: str
    profile: str
    method: str
    name: str
    arguments_digest: str
    policy_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What a state stands for: the open call, its place in the record, and what the chain and the server want back."""

    bound: Bound
    call: str
    run: str
    round: int
    intent_seq: int
    expires_at_ns: int
    requests: tuple[str, ...] = ()
    carry: JsonObject = field(default_factory=dict)
    state: JsonValue = None


@dataclass(frozen=True, slots=True)
class _Stored:
    owner: str
    expires_at_ns: int
    data: bytes


class States:
    """The states that were given out and not used yet.

    Args:
        key: of this home, for nothing else.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"states need a key of {KEY_BYTES} bytes")
        self._key = key
        self._stored: OrderedDict[str, _Stored] = OrderedDict()
        self._shares: Counter[str] = Counter()

    def put(self, kept: Kept, *, now_ns: int) -> str:
        """Return the text that the client gets.

        Raises:
            ValueError: JSON cannot say it, or it is larger than STATE_LIMIT_BYTES.
            NoRoom: it has to wait until another is used or has expired.
        """
        try:
            data = canonical(kept)
        except TypeError as error:
            raise ValueError("the state of a multi-round call is no JSON") from error
        if len(data) > STATE_LIMIT_BYTES:
            raise ValueError("the state of a multi-round call is too large")
        self._forget_expired(now_ns)
        owner = kept.bound.principal
        if self._shares[owner] + len(data) > SHARE_BYTES or self._shares.total() + len(data) > ROOM_BYTES:
            raise NoRoom
        told = canonical([kept.call, kept.round])
        text = base64.urlsafe_b64encode(hmac.new(self._key, told, hashlib.sha256).digest()).decode().rstrip("=")
        self._stored[text] = _Stored(owner, kept.expires_at_ns, data)
        self._shares[owner] += len(data)
        return text

    def take(self, text: str, *, bound: Bound, now_ns: int) -> Kept:
        """Return what *text* stands for if that was made for *bound*, and forget it: the next one to ask gets nothing.

        Raises:
            BadState: with the reason for the log. What was made for another request stays for that one.
        """
        stored = self._stored.get(text)
        if stored is None:
            raise BadState("the state is not ours, was changed, or was used before")
        values = orjson.loads(stored.data)
        found = Bound(**values.pop("bound"))
        for name in ("principal", "profile", "method", "name", "arguments_digest", "policy_version"):
            if getattr(found, name) != getattr(bound, name):
                raise BadState(f"the state was made for another {name}")
        if now_ns > stored.expires_at_ns:
            raise BadState("the state has expired")
        self._forget(text)
        return Kept(bound=found, requests=tuple(values.pop("requests")), **values)

    def _forget_expired(self, now_ns: int) -> None:
        """All are good for as long as each other, so the oldest go first."""
        while self._stored and (oldest := next(iter(self._stored.items())))[1].expires_at_ns < now_ns:
            self._forget(oldest[0])

    def _forget(self, text: str) -> None:
        stored = self._stored.pop(text)
        self._shares[stored.owner] -= len(stored.data)
        if not self._shares[stored.owner]:
            del self._shares[stored.owner]
