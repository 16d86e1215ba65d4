"""Sight: what of a context a rule can look at. Requests that differ in nothing else get the same judgement."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from cedarpy import pst

_CONTEXT = pst.Var("context")


def seen_by(rules: Iterable[pst.Template], present: frozenset[str]) -> frozenset[str] | None:
    """Return the fields that *rules* can look at in a context that has the fields *present*; None for all of them.

    What stands behind `context has x &&` is never evaluated where there is no `x`, so it is not counted then.
    """
    seen: set[str] = set()
    todo: list[Any] = [rule.clauses for rule in rules]
    while todo:  # no recursion: an expression may be a hundred levels deep
        part = todo.pop()
        if isinstance(part, Mapping):
            todo.extend(part.values())
        elif isinstance(part, tuple):
            todo.extend(part)
        elif part == _CONTEXT:
            return None
        elif (field := _field_of(part)) is not None:
            seen.add(field)
        elif isinstance(part, pst.BinaryOp) and part.op == "and" and _never_holds(part.left, present):
            todo.append(part.left)
        elif is_dataclass(part) and not isinstance(part, type):
            todo.extend(getattr(part, item.name) for item in fields(part))
    return frozenset(seen)


def _field_of(part: object) -> str | None:
    """Return the field of the context that *part* gets, or asks for."""
    if isinstance(part, pst.GetAttr) and part.base == _CONTEXT:
        return part.attr
    if isinstance(part, pst.HasAttr) and part.base == _CONTEXT:
        return part.attrs[0]
    return None


def _never_holds(part: object, present: frozenset[str]) -> bool:
    """Whether *part* is known to be false, or an error, where the context has only the fields *present*."""
    while isinstance(part, pst.BinaryOp) and part.op == "and":
        if _is_missing(part.right, present):
            return True
        part = part.left
    return _is_missing(part, present)


def _is_missing(part: object, present: frozenset[str]) -> bool:
    return isinstance(part, pst.HasAttr) and part.base == _CONTEXT and part.attrs[0] not in present
