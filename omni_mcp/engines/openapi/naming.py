"""Names: which operations of a document become tools, and under which names."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from omni_mcp.contracts.openapi import OpenApiSettings, OperationSettings
from omni_mcp.engines.openapi.document import Operation

NAME_CHARACTERS = 48  # as of every tool's own name
_DIGEST_CHARACTERS = 10


def chosen(operations: Sequence[Operation], settings: OpenApiSettings) -> list[Operation]:
    """Return the operations that the operator wants as tools, in the order of the document."""
    wanted = [one for one in operations if not settings.include or _fits_any(one, settings.include)]
    return [one for one in wanted if not _fits_any(one, settings.exclude)]


def loose_ends(operations: Sequence[Operation], settings: OpenApiSettings) -> Iterator[tuple[str, str]]:
    """Yield (key of the settings, message) for what names no operation: a typo there would let one through."""
    for key in ("include", "exclude"):
        for pattern in getattr(settings, key):
            if not any(_fits_any(one, (pattern,)) for one in operations):
                yield key, f"{pattern!r} fits no operation of the document"
    for name in settings.operations:
        if not any(name in (one.id, one.label) for one in operations):
            yield f"operations.{name}", "is no operation of the document"
    given = Counter(one.name for one in settings.operations.values() if one.name is not None)
    for name, count in given.items():
        if count > 1:
            yield "operations", f"the name {name!r} is given twice"


def word_on(operation: Operation, settings: OpenApiSettings) -> OperationSettings:
    """Return what the operator says of *operation*."""
    found = settings.operations.get(operation.label) or settings.operations.get(operation.id)
    return found if found is not None else OperationSettings()


def tool_names(operations: Sequence[Operation], settings: OpenApiSettings) -> dict[str, str]:
    """Return the tool's name of each operation, by its label.

    In this order: the operator's, `x-omni-name`, operationId, method and path. Two operations that would have the same
    name both get a digest of their method and path behind it, so neither takes the other's place.
    """
    found = {one.label: word_on(one, settings).name or _readable(one) for one in operations}
    given = {one.name for one in settings.operations.values()}
    count = Counter(found.values())
    return {
        label: name if count[name] == 1 or (name in given and _is_given(label, operations, settings)) else
        _with_digest(name, label)
        for label, name in found.items()
    }  # fmt: skip


def _is_given(label: str, operations: Sequence[Operation], settings: OpenApiSettings) -> bool:
    return any(one.label == label and word_on(one, settings).name is not None for one in operations)


def _fits_any(operation: Operation, patterns: Sequence[str]) -> bool:
    return any(
        pattern in (operation.id, operation.label)
        or fnmatchcase(operation.label, pattern)
        or (operation.id != "" and fnmatchcase(operation.id, pattern))
        for pattern in patterns
    )


def _readable(operation: Operation) -> str:
    own = operation.value.get("x-omni-name")
    text = own if isinstance(own, str) and own else operation.id or f"{operation.method} {operation.path}"
    name = re.sub(r"[_-]*_[_-]*|-{2,}", "_", re.sub(r"[^A-Za-z0-9-]+", "_", text)).strip("_-")
    if not name:
        return _with_digest("operation", operation.label)
    return name if len(name) <= NAME_CHARACTERS else _with_digest(name, operation.label)


def _with_digest(name: str, label: str) -> str:
    digest = hashlib.sha256(label.encode()).hexdigest()[:_DIGEST_CHARACTERS]
    return f"{name[: NAME_CHARACTERS - _DIGEST_CHARACTERS - 1].rstrip('_-')}_{digest}"
