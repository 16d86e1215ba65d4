"""Endings: why a connection of a job was refused or broke off, and what the job is told about it."""

from __future__ import annotations

import json
from typing import Literal, get_args

Verdict = Literal["open", "refused", "failed"]
Reason = Literal[
    "not_granted",
    "private_address",
    "credential_needs_tls",
    "bad_request",
    "sni_mismatch",
    "sni_hidden",
    "not_tls",
    "too_many",
    "limit",
    "not_resolved",
    "unreachable",
    "tls_failed",
    "bad_response",
    "timeout",
    "closed",  # one of the two ends went away
    "ended",  # the job is over
    "internal",
]
REASONS: tuple[Reason, ...] = get_args(Reason)

_STATUS: dict[Reason, tuple[int, str]] = {
    "not_granted": (403, "Forbidden"),
    "private_address": (403, "Forbidden"),
    "credential_needs_tls": (403, "Forbidden"),
    "limit": (403, "Forbidden"),
    "bad_request": (400, "Bad Request"),
    "too_many": (503, "Service Unavailable"),
    "not_resolved": (502, "Bad Gateway"),
    "unreachable": (502, "Bad Gateway"),
    "tls_failed": (502, "Bad Gateway"),
    "bad_response": (502, "Bad Gateway"),
    "internal": (502, "Bad Gateway"),
    "timeout": (504, "Gateway Timeout"),
}
_FAILED: frozenset[Reason] = frozenset(
    ("not_resolved", "unreachable", "tls_failed", "bad_response", "timeout", "closed", "ended", "internal")
)
_ERROR = {400: "bad-request", 403: "egress-denied", 503: "egress-denied"}


class Ended(Exception):
    """The connection goes no further. Holds a reason and nothing that was sent."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


def verdict_of(reason: Reason) -> Verdict:
    """Return how a connection that never opened is recorded."""
    return "failed" if reason in _FAILED else "refused"


def answer_to(reason: Reason, *, method: str, host: str, port: int) -> bytes:
    """Return the HTTP response that tells a job why, or nothing where there is nobody to tell.

    It is JSON with `error`, `host`, `port` and `reason`; HEAD gets the header `X-Omni-Error` only.
    """
    if reason not in _STATUS:
        return b""
    status, phrase = _STATUS[reason]
    error = _ERROR.get(status, "egress-failed")
    told = {"error": error.replace("-", "_"), "host": host, "port": port, "reason": reason}
    body = json.dumps(told).encode()
    head = (
        f"HTTP/1.1 {status} {phrase}\r\n"
        f"X-Omni-Error: {error}\r\n"
        "Content-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + (b"" if method == "HEAD" else body)
