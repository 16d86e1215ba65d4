"""What a caller is told of an answer: status, some headers, and the body as JSON, as text, or as an artifact."""

from __future__ import annotations

import codecs
import json
import os
import re

import http_proxy
from failure import ToolFailure
from http_proxy import Response

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

JSON_LIMIT = 512 * 1024  # escaped, it may be three times as long
TEXT_LIMIT = 256 * 1024
DEPTH_LIMIT = 48
ERROR_CHARS = 3500
HEADERS_KEPT = 32
HEADER_CHARS = 1024

_SHOWN = re.compile(
    r"content-(type|language|disposition|range)|etag|last-modified|location|retry-after|link|allow|deprecation|sunset|"
    r"(x-)?rate-?limit(-[a-z-]*)?|x-(request|correlation|trace)-id|x-total(-count|-pages)?|x-next-page|x-page|x-per-page"
)
_JSON_TYPES = re.compile(r"application/(.+\+)?json|text/json")
_TEXT_TYPES = re.compile(
    r"text/.*|application/(.*\+)?(xml|yaml|x-ndjson|jsonl|javascript|graphql|sql|toml|x-www-form-urlencoded)"
)
_CHARSETS = frozenset({"utf-8", "ascii", "iso8859-1", "iso8859-15", "cp1252", "utf-16"})
_SUFFIXES = {
    "application/pdf": "pdf", "image/png": "png", "image/jpeg": "jpg", "image/gif": "gif", "application/zip": "zip",
    "text/csv": "csv", "text/html": "html", "text/plain": "txt", "application/xml": "xml", "text/xml": "xml",
}  # fmt: skip


def told(response: Response, form: str) -> dict[str, Any]:
    """Return the facts of a success; with *form* `body`, its JSON object alone.

    Raises:
        ToolFailure: it is no success, or (with `body`) no JSON object.
    """
    kind, charset = _type_of(response)
    if not 200 <= response.status < 300:
        passing = response.status in http_proxy.TRANSIENT and "retry-after" not in response.headers
        raise ToolFailure(_failure(response, kind, charset), passing=passing)
    body = _json_of(response, kind)
    if form == "body":
        if body is None or not isinstance(body[0], dict):
            raise ToolFailure(f"HTTP {response.status}: the answer is no JSON object of at most {JSON_LIMIT} bytes")
        return body[0]
    facts: dict[str, Any] = {
        "status": response.status, "headers": _headers(response), "size": len(response.body),
    }  # fmt: skip
    if response.cut:
        facts["truncated"] = True
    if body is not None:
        return {**facts, "body": body[0]}
    if not response.body:
        return facts
    text = _text_of(response.body, kind, charset)
    if text is not None and len(text) <= TEXT_LIMIT:
        return {**facts, "text": text}
    return {**facts, "saved": _save(response.body, kind)}


def _failure(response: Response, kind: str, charset: str) -> str:
    """Say what came instead of a success, with as much of its body as an error may hold."""
    words = f"HTTP {response.status}"
    if 300 <= response.status < 400 and "location" in response.headers:
        words += f": it points to {response.headers['location'][:500]!r}, which is not followed"
    if "retry-after" in response.headers:
        words += f" (retry-after: {response.headers['retry-after'][:64]})"
    text = _text_of(response.body, kind, charset)
    if text is None:
        return f"{words}\n({len(response.body)} bytes of {kind or 'no known type'})"
    more = "\n(there is more)" if len(text) > ERROR_CHARS else ""
    return f"{words}\n{text[:ERROR_CHARS]}{more}".rstrip()


def _headers(response: Response) -> dict[str, str]:
    shown = [(name, value) for name, value in response.headers.items() if _SHOWN.fullmatch(name)]
    return {name: value[:HEADER_CHARS] for name, value in shown[:HEADERS_KEPT]}


def _type_of(response: Response) -> tuple[str, str]:
    """Return the media type and the charset; a coding that nobody asked for makes it binary."""
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        return "application/octet-stream", ""
    kind, _, rest = response.headers.get("content-type", "").partition(";")
    named = re.search(r'charset\s*=\s*"?([A-Za-z0-9_.:-]{1,40})', rest, re.IGNORECASE)
    return kind.strip().lower(), named[1] if named else ""


def _json_of(response: Response, kind: str) -> tuple[Any] | None:
    """Return the value of a JSON body; None if it is none, or one that could not be passed on as it is."""
    if not _JSON_TYPES.fullmatch(kind) or response.cut or not 0 < len(response.body) <= JSON_LIMIT:
        return None
    try:
        value = json.loads(
            response.body.decode("utf-8-sig"), parse_constant=_refuse, parse_float=_finite, parse_int=_exact,
            object_pairs_hook=_once,
        )  # fmt: skip
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return (value,) if _is_shallow(value) else None


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    return value if value - value == 0 else _refuse(text)


def _exact(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**64:
        _refuse("an integer over 64 bits")  # a reader would round it
    return int(text)


def _once(members: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(members)
    return found if len(found) == len(members) else _refuse("an object that has a key twice")


def _is_shallow(value: Any) -> bool:
    layer = [value]
    for _ in range(DEPTH_LIMIT):
        layer = [
            inner
            for one in layer
            if isinstance(one, list | dict)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not layer:
            return True
    return False


def _text_of(body: bytes, kind: str, charset: str) -> str | None:
    """Return the body as text, what does not fit replaced; None if it is no text."""
    if not kind:
        try:
            return body.decode() if b"\x00" not in body else None
        except UnicodeDecodeError:
            return None
    if not _TEXT_TYPES.fullmatch(kind) and not _JSON_TYPES.fullmatch(kind):
        return None
    try:
        name = codecs.lookup(charset).name
    except (LookupError, ValueError):
        name = "utf-8"
    return body.decode(name if name in _CHARSETS else "utf-8", "replace").removeprefix("\ufeff")


def _save(body: bytes, kind: str) -> str:
    """Leave the body in `out/`, which the gateway keeps as an artifact of the call."""
    name = f"body.{'json' if _JSON_TYPES.fullmatch(kind) else _SUFFIXES.get(kind, 'bin')}"
    os.makedirs("out", exist_ok=True)
    with open(os.path.join("out", name), "wb") as file:
        file.write(body)
    return name
