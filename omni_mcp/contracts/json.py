"""JSON values, their one canonical form, and the digests taken over it."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import orjson

JsonValue: TypeAlias = (
    Any  # a recursive alias costs every caller a cast and catches nothing that strict parsing does not
)
JsonObject: TypeAlias = dict[str, Any]


def canonical(value: object) -> bytes:
    """Encode *value* as UTF-8 JSON with sorted keys and no spaces: the form that is hashed and stored.

    Raises:
        TypeError: *value* holds something that JSON cannot say.
    """
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def verbatim(value: object) -> bytes:
    """Encode *value* as JSON with its keys in the order in which they came, and integers of any size."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value, separators=(",", ":")).encode()


def digest(value: object) -> str:
    """Return ``sha256:<hex>`` of the canonical form of *value*."""
    return digest_bytes(canonical(value))


def digest_bytes(data: bytes) -> str:
    """Return ``sha256:<hex>`` of *data*."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def keyed_digest(key: bytes, value: object) -> str:
    """Return ``hmac-sha256:<hex>`` of the canonical form: it names a value without letting a reader guess it.

    `hmac.digest` would let other threads run meanwhile, and then wait for them: longer than all of this takes.
    """
    return "hmac-sha256:" + hmac.new(key, canonical(value), "sha256").hexdigest()


def depth_of(value: object, *, limit: int) -> int:
    """Return the nesting depth of *value* (a scalar is 0), or ``limit + 1`` as soon as it is deeper than *limit*."""
    depth, layer = 0, [value]
    while layer:
        inner: list[object] = []
        for item in layer:
            if isinstance(item, Mapping):
                inner.extend(item.values())
                inner.append(None)
            elif isinstance(item, Sequence) and not isinstance(item, str | bytes):
                inner.extend(item)
                inner.append(None)
        if not inner:
            return depth
        depth += 1
        if depth > limit:
            return depth
        layer = [item for item in inner if isinstance(item, Mapping | list | tuple)] or []
    return depth


def json_path(parts: Sequence[str | int]) -> str:
    """Write a place in a JSON value as people read it: `$.binding.kind`, `$.items[0]`, `$["odd key"]`."""
    text = "$"
    for part in parts:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part.isidentifier() or part.lstrip("$").isidentifier():
            text += f".{part}"
        else:
            text += f"[{orjson.dumps(part).decode()}]"
    return text
