"""Sender: which request a refused message was, as far as its first and last bytes say, so that its sender hears why.

Source: JSON-RPC 2.0, section 5: the id of an error is null only where the request's id could not be found out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from omni_mcp.protocol.frames import ECHO_LIMIT, INT_MAX, INT_MIN, RequestId

HEAD_BYTES = 64 * 1024
TAIL_BYTES = 2 * 1024
TOKENS_LIMIT = 8192  # of the head: what is looked at costs no more than some milliseconds, whatever is sent

_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],:]|[^"{}\[\],:]+', re.DOTALL)
_LAST = re.compile(
    rb',\s*"id"\s*:\s*(-?\d{1,20}|"[^"\\]{0,1024}")\s*(?:,\s*"jsonrpc"\s*:\s*"2\.0"\s*)?\}\s*$'
)  # what ends with one closing brace ends with a member of the message itself


@dataclass(frozen=True, slots=True)
class Sender:
    """Who waits for something about a message: the request *id*, or, where it is an answer, whoever asked *id*."""

    id: RequestId | None = None
    is_answer: bool = False


def sender_of(head: bytes, tail: bytes = b"") -> Sender:
    """Return what a refused message was; without an id where none can be read, or two.

    Args:
        head: all of the message, or its first HEAD_BYTES at least.
        tail: its last TAIL_BYTES, where the head is not all.
    """
    if not head.lstrip().startswith(b"{"):
        return Sender()
    found, members, complete = _outermost(head[:HEAD_BYTES])
    if not complete and (last := _LAST.search(tail or head[-TAIL_BYTES:])) is not None:
        found.append(last[1])
    is_answer = "method" not in members and ("result" in members or "error" in members)
    if "method" not in members and complete and not is_answer:
        return Sender()
    whole = complete or (tail or head).rstrip().endswith(b"}")  # half a message may be any message
    ids = {_id_of(text) for text in found} if whole and not (complete and len(found) > 1) else set()
    return Sender(ids.pop() if len(ids) == 1 else None, is_answer)


def _outermost(data: bytes) -> tuple[list[bytes], set[str], bool]:
    """Return the values of `id` among the outermost members, the names of all of these, and whether it was all."""
    found: list[bytes] = []
    members: set[str] = set()
    depth, key, awaits_value = 0, "", False
    for match in islice(_tokens(data), TOKENS_LIMIT):
        token = match[0]
        if token in (b"{", b"["):
            if awaits_value and depth == 1 and key == "id":
                found.append(b"")
            depth += 1
            awaits_value = False
        elif token in (b"}", b"]"):
            depth -= 1
            if depth == 0:
                return found, members, not data[match.end() :].strip()
        elif depth != 1 or not token.strip():
            continue
        elif token == b":":
            awaits_value = True
        elif token == b",":
            awaits_value = False
        elif awaits_value:
            if key == "id":
                found.append(token.strip())
            awaits_value = False
        elif token.startswith(b'"'):
            key = _text(token) or ""
            members.add(key)
    return found, members, False


def _tokens(data: bytes) -> Iterator[re.Match[bytes]]:
    """Yield strings, punctuation and the rest, up to a string that does not end."""
    place = 0
    while (token := _TOKEN.match(data, place)) is not None:
        yield token
        place = token.end()


def _id_of(text: bytes) -> RequestId | None:
    if text.startswith(b'"'):
        return _text(text)
    if re.fullmatch(rb"-?(0|[1-9]\d{0,19})", text) is None:
        return None
    return number if INT_MIN <= (number := int(text)) <= INT_MAX else None


def _text(token: bytes) -> str | None:
    try:
        text = json.loads(token)
        text.encode()
    except ValueError:
        return None
    return text if len(text) <= ECHO_LIMIT else None
