"""The `requestState` of a multi-round call: sealed, bound to everything it was made for, and good for one use.

The client holds it and may do with it what it likes; what it cannot do is change it, use it twice, or use it for
another principal, method, name or arguments. Source: MCP 2026-07-28, basic/patterns, "Multi round-trip requests".
"""

from __future__ import annotations

import base64
import binascii
import os
from dataclasses import asdict, dataclass, field

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from omni_mcp.contracts.json import JsonObject, JsonValue, canonical

LABEL = b"omni-mcp requestState 1"
NONCE_BYTES = 12
STATE_LIMIT_BYTES = 256 * 1024


class BadState(Exception):
    """A `requestState` that is not ours, was changed, or belongs to another request; which of it is for the log."""


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
class Sealed:
    """What is inside: the open call, its place in the record, and what the chain and the server want back."""

    bound: Bound
    call: str
    run: str
    round: int
    intent_seq: int
    expires_at_ns: int
    nonce: str
    requests: tuple[str, ...] = ()
    carry: JsonObject = field(default_factory=dict)
    state: JsonValue = None


class Seal:
    """AES-256-GCM under one key of the gateway."""

    def __init__(self, key: bytes) -> None:
        if len(key) != 32:
            raise ValueError("a seal needs a key of 32 bytes")
        self._aead = AESGCM(key)

    def close(self, inside: Sealed) -> str:
        """Return the text that the client gets.

        Raises:
            ValueError: it would be larger than STATE_LIMIT_BYTES.
        """
        plain = canonical(asdict(inside))
        if len(plain) > STATE_LIMIT_BYTES:
            raise ValueError("the state of a multi-round call is too large")
        nonce = os.urandom(NONCE_BYTES)
        return base64.urlsafe_b64encode(nonce + self._aead.encrypt(nonce, plain, LABEL)).decode().rstrip("=")

    def open(self, text: str, *, bound: Bound, now_ns: int) -> Sealed:
        """Return what is inside, if it is ours, unchanged, in time, and made for *bound*. Single use is the caller's.

        Raises:
            BadState: with the reason for the log.
        """
        inside = self._decrypt(text)
        found = inside.bound
        for name in ("principal", "profile", "method", "name", "arguments_digest", "policy_version"):
            if getattr(found, name) != getattr(bound, name):
                raise BadState(f"the state was made for another {name}")
        if now_ns > inside.expires_at_ns:
            raise BadState("the state has expired")
        return inside

    def _decrypt(self, text: str) -> Sealed:
        if len(text) > 2 * STATE_LIMIT_BYTES or not text.isascii():
            raise BadState("the state is not ours")
        try:
            raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            plain = self._aead.decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], LABEL)
        except (binascii.Error, InvalidTag, ValueError) as error:
            raise BadState("the state is not ours, or was changed") from error
        values = orjson.loads(plain)
        values["bound"] = Bound(**values["bound"])
        values["requests"] = tuple(values["requests"])
        return Sealed(**values)
