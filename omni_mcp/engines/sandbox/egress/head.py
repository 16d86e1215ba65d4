"""Heads: the start line and the fields of an HTTP/1 message, refused when two readers could differ about them.

Sources: RFC 9112 (2.2, 3, 4, 5, 6.3), RFC 9110 (5.1, 5.5).
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass

MOST_LINE_BYTES = 8 << 10
MOST_FIELDS_BYTES = 32 << 10
MOST_FIELDS = 100

Fields = tuple[tuple[str, str], ...]  # in their order, names in lower case

HOP_BY_HOP = frozenset(
    (
        "connection",
        "proxy-connection",
        "proxy-authorization",
        "proxy-authenticate",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "content-length",
        "upgrade",
        "http2-settings",
        "expect",
    )
)
_REQUEST = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}) ([\x21-\x7e]+) HTTP/1\.([01])")
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*))?")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([\t\x20-\x7e\x80-\xff]*)")
_LENGTH = re.compile(r"[0-9]{1,15}")
_FRAMING = frozenset(("host", "content-length", "transfer-encoding"))


class Malformed(ValueError):
    """What came is not HTTP/1, or is more than one reading allows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Framing:
    """Where a body ends: after `length` bytes, at its last chunk, or (neither) where the message says."""

    length: int | None = None
    chunked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestHead:
    """`minor` is 1 for HTTP/1.1 and 0 for HTTP/1.0."""

    method: str
    target: str
    minor: int
    fields: Fields = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseHead:
    status: int
    phrase: str
    minor: int
    fields: Fields = ()


async def read_request_line(reader: asyncio.StreamReader) -> RequestHead:
    """Read the first line, so that it can be judged before the rest comes.

    Raises:
        Malformed: it is no request of HTTP/1.0 or HTTP/1.1.
        EOFError: the other side closed before its end.
    """
    found = _REQUEST.fullmatch(await read_line(reader, most_bytes=MOST_LINE_BYTES))
    if found is None:
        raise Malformed("request line")
    method, target, minor = found.groups()
    return RequestHead(method=method.decode(), target=target.decode(), minor=int(minor))


async def read_response_head(reader: asyncio.StreamReader) -> ResponseHead:
    """Read a status line and the fields. Raises as `read_request_line` does."""
    found = _STATUS.fullmatch(await read_line(reader, most_bytes=MOST_LINE_BYTES))
    if found is None:
        raise Malformed("status line")
    minor, status, phrase = found.groups()
    fields = await read_fields(reader)
    return ResponseHead(status=int(status), phrase=(phrase or b"").decode("latin-1"), minor=int(minor), fields=fields)


async def read_fields(reader: asyncio.StreamReader) -> Fields:
    """Read fields up to the empty line after them. Raises as `read_request_line` does."""
    fields: list[tuple[str, str]] = []
    left = MOST_FIELDS_BYTES
    while line := await read_line(reader, most_bytes=left):
        left -= len(line) + 2
        found = _FIELD.fullmatch(line)
        if found is None or len(fields) == MOST_FIELDS:
            raise Malformed("field")
        name = found.group(1).decode().lower()
        if name not in _FRAMING and name.replace("_", "-") in _FRAMING:
            raise Malformed("a field that some take for another")
        fields.append((name, found.group(2).strip(b" \t").decode("latin-1")))
    return tuple(fields)


async def read_line(reader: asyncio.StreamReader, *, most_bytes: int) -> bytes:
    """Read one line without its CRLF. Raises as `read_request_line` does; a bare LF is malformed.

    A CR within a line is left to the patterns of whoever asked: none lets a control character through.
    """
    try:
        line = await reader.readuntil(b"\n")
    except asyncio.IncompleteReadError as error:
        raise EOFError from error
    except asyncio.LimitOverrunError as error:
        raise Malformed("long line") from error
    if not line.endswith(b"\r\n") or len(line) - 2 > most_bytes:
        raise Malformed("line")
    return line[:-2]


def values_of(fields: Fields, name: str) -> list[str]:
    """Return all values of the fields called *name*."""
    return [value for each, value in fields if each == name]


def framing_of(fields: Fields, *, minor: int) -> Framing:
    """Return how the body is delimited.

    Raises:
        Malformed: two lengths, a length and a coding, or a coding other than `chunked`.
    """
    lengths, codings = values_of(fields, "content-length"), values_of(fields, "transfer-encoding")
    if codings:
        if lengths or minor == 0 or len(codings) > 1 or codings[0].lower() != "chunked":
            raise Malformed("transfer coding")
        return Framing(chunked=True)
    if not lengths:
        return Framing()
    if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]):
        raise Malformed("content length")
    return Framing(length=int(lengths[0]))


def end_to_end(fields: Fields) -> Fields:
    """Return the fields that are meant for the other end: none of one hop, none that `Connection` names."""
    named = {word.strip().lower() for value in values_of(fields, "connection") for word in value.split(",")}
    return tuple((name, value) for name, value in fields if name not in HOP_BY_HOP and name not in named)


def render(start: str, fields: Fields, framing: Framing) -> bytes:
    """Return a head as it goes out: closing after this message, with our own framing."""
    framed = (("content-length", str(framing.length)),) if framing.length is not None else ()
    framed = (("transfer-encoding", "chunked"),) if framing.chunked else framed
    lines = [start, *(f"{name}: {value}" for name, value in (*fields, *framed, ("connection", "close")))]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
