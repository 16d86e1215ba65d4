"""Sender: which request a refused message was, as far as its first and last bytes say, so that its sender hears why.

Source: JSON-RPC 2.0, section 5: the id of an error is null only where the request's id could not be found out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

from omni_mcp.protocol.frames import ECHO_LIMIT, INT_MAX, INT_MIN, RequestId

HEAD_BYTES = 64 * 1024
TAIL_BYTES = 2 * 1024
TOKENS_LIMIT = 8192  # of the head: what is looked at costs no more than some milliseconds, whatever is sent

_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],:]|[^"{}\[\],:]+', re.DOTALL)
_LAST = re.compile(
    rb',\s*"id"\s*:\s*(-?\d{1,20}|"[^"\\]{0,1024}")\s*(?:,\s*"jsonrpc"\s*:\s*"2\.0"\s*)?\}\s*$'
)  # what ends with one closing brace ends with a member of the message itself
_CLOSERS = {b"{": b"}", b"[": b"]"}


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
    read = _outermost(head[:HEAD_BYTES])
    if read.closed and read.goes_on:
        return Sender()  # nobody can say where it ends
    ids, members = read.ids, read.members
    is_out_of_view = bool(tail) or len(head) > HEAD_BYTES or read.goes_on
    if not read.closed and is_out_of_view and (last := _LAST.search(tail or head[-TAIL_BYTES:])) is not None:
        ids = [*ids, last[1]]
    is_answer = "method" not in members and ("result" in members or "error" in members)
    if "method" not in members and read.closed and not is_answer:
        return Sender()
    whole = read.closed or (tail or head).rstrip().endswith(b"}")  # half a message may be any message
    found = {_id_of(text) for text in ids} if whole and not (read.closed and len(ids) > 1) else set()
    return Sender(found.pop() if len(found) == 1 else None, is_answer)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """What was read of a message: the values of `id` and the names among its outermost members.

    `closed`: up to its own closing brace. `goes_on`: something is behind that, or behind as much as is looked at.
    """

    ids: list[bytes]
    members: set[str]
    closed: bool = False
    goes_on: bool = False


def _outermost(data: bytes) -> _Read:
    """Read *data* up to its end, to where a bracket is closed by another kind, or for as long as may be looked at."""
    read = _Read(ids=[], members=set())
    closers: list[bytes] = []
    key = ""
    value: list[bytes] | None = None  # after a colon: its tokens
    tokens = _tokens(data)
    for match in islice(tokens, TOKENS_LIMIT):
        token = match[0]
        is_outermost = len(closers) == 1
        if is_outermost and token in (b",", b"}"):
            if key == "id":
                read.ids.append(value[0] if value and len(value) == 1 else b"")
            key, value = "", None
        elif is_outermost and value is not None and token.strip():
            value.append(token.strip())
        elif is_outermost and token == b":":
            value = []
        elif is_outermost and token.startswith(b'"'):
            key = _text(token) or ""
            read.members.add(key)
        if token in _CLOSERS:
            closers.append(_CLOSERS[token])
        elif token in (b"}", b"]"):
            if closers.pop() != token:
                tokens = iter(())  # what is behind says nothing
                break
            if not closers:
                return replace(read, closed=True, goes_on=bool(data[match.end() :].strip()))
    if key == "id":
        read.ids.append(b"")
    return replace(read, goes_on=next(tokens, None) is not None)


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
