"""The body of a request: JSON, a form, a multipart form, text or bytes, as its media type says.

Sources: OpenAPI 3.1.1, 4.8.15 (encoding); RFC 7578, with names as the URL standard's encoder writes them.
"""

from __future__ import annotations

import base64
import binascii
import json
import secrets
import urllib.parse

from failure import ToolFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def written(body: dict[str, Any], value: Any) -> tuple[str, bytes]:
    """Return the content type and the bytes of *value*.

    Raises:
        ToolFailure: it cannot be written in that form.
    """
    form, media = body["form"], body["media"]
    if form == "json":
        return media, _json(value)
    if form == "form":
        return media, "&".join(_form_parts(value, body["parts"])).encode()
    if form == "multipart":
        return _multipart(value, body["parts"])
    if not isinstance(value, str):
        raise ToolFailure("the body must be a text")
    return media, _bytes_of(value, "the body") if form == "base64" else _utf8(value)


def _json(value: Any) -> bytes:
    return _utf8(json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False))


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ToolFailure("a text holds half of a surrogate pair") from error


def _bytes_of(text: Any, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise ToolFailure(f"{what} must be base64: {error}") from error


def _text_of(value: Any) -> str:
    """A scalar as it is, anything else as JSON (OpenAPI 3.1.1, 4.8.15.1)."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _members(value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        raise ToolFailure("the body must be an object")
    return [(name, one) for name, one in value.items() if one is not None]


def _form_parts(value: Any, parts: dict[str, Any]) -> list[str]:
    found: list[str] = []
    for name, one in _members(value):
        part = parts.get(name, {"style": "form", "explode": True})
        if isinstance(one, dict) and part["style"] == "deepObject":
            found += [f"{_quoted(f'{name}[{key}]')}={_quoted(_text_of(inner))}" for key, inner in one.items()]
        elif isinstance(one, list) and part["explode"]:
            found += [f"{_quoted(name)}={_quoted(_text_of(item))}" for item in one]
        elif isinstance(one, list):
            found.append(f"{_quoted(name)}={','.join(_quoted(_text_of(item)) for item in one)}")
        else:
            found.append(f"{_quoted(name)}={_quoted(_text_of(one))}")
    return found


def _quoted(text: str) -> str:
    return urllib.parse.quote_plus(_utf8(text))


def _multipart(value: Any, parts: dict[str, Any]) -> tuple[str, bytes]:
    pieces: list[tuple[str, bytes]] = []
    for name, one in _members(value):
        part = parts.get(name, {"media": "", "bytes": False})
        for item in one if isinstance(one, list) else [one]:
            pieces.append(_piece(name, item, part))
    boundary = secrets.token_hex(16)
    while any(boundary.encode() in data for _, data in pieces):
        boundary = secrets.token_hex(16)
    lines = [
        _utf8(f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n") + data + b"\r\n"
        for head, data in pieces
    ]
    return f"multipart/form-data; boundary={boundary}", b"".join(lines) + f"--{boundary}--\r\n".encode()


def _piece(name: str, value: Any, part: dict[str, Any]) -> tuple[str, bytes]:
    shown = name.replace("\r", "%0D").replace("\n", "%0A").replace('"', "%22")
    if part["bytes"]:
        media = part["media"] or "application/octet-stream"
        return f'name="{shown}"; filename="{shown}"\r\nContent-Type: {media}', _bytes_of(value, f"the part {name!r}")
    media = part["media"] or ("application/json" if isinstance(value, dict | list) else "")
    return f'name="{shown}"' + (f"\r\nContent-Type: {media}" if media else ""), _utf8(_text_of(value))
