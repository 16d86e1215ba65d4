"""Adds, replaces and removes one member of an object in a JSON text; every byte that is not part of it stays."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from omni_mcp.clients.jsonc import JsonText, Member, NotJson, ObjectPlace, read_jsonc
from omni_mcp.contracts.json import JsonObject, JsonValue

DEFAULT_INDENT = "  "


class CannotEdit(ValueError):
    """The text has no place for the change; nothing was changed."""


@dataclass(frozen=True, slots=True)
class RawValue:
    """A value as it stands in a text, to be put in as it is."""

    text: str


def set_member(text: str, path: Sequence[str], key: str, value: JsonObject | RawValue) -> str:
    """Return *text* with `key: value` in the object at *path*; what is missing on the way is made.

    A member of that name is replaced where it stands; a new one comes first, because that changes no other line.

    Raises:
        CannotEdit: something on the way is no object.
        NotJson: *text* cannot be read.
    """
    document = read_jsonc(text)
    if not document.clean.strip(" \t\r\n"):
        text = _with_empty_object(text)
        document = read_jsonc(text)
    _check_way(document, path)
    known = len(path)
    while (place := document.object_at(path[:known])) is None:
        known -= 1
    member = place.find(key) if known == len(path) else None
    if member is not None:
        if read_jsonc(text[member.value_start : member.end]).value == _meaning(value):
            return text
        shown = _shown(value, _indent_of_line(text, member.start), text)
        changed = text[: member.value_start] + shown + text[member.end :]
    elif known == len(path):
        changed = _insert_first(text, place, key, value)
    else:
        changed = _insert_first(text, place, path[known], _wrap(path[known + 1 :], key, value))
    return _proved(changed, document, path, key, value)


def remove_members(text: str, path: Sequence[str], keys: Sequence[str]) -> str:
    """Return *text* without *keys* in the object at *path*, every one of that name. Comments around them stay.

    Raises:
        NotJson: *text* cannot be read.
    """
    for key in keys:
        while True:
            document = read_jsonc(text)
            place = document.object_at(path)
            member = place.find(key) if place else None
            if place is None or member is None:
                break
            text = _without(document, place, member)
    return text


def raw_value(text: str, path: Sequence[str], key: str) -> RawValue | None:
    """Return the member's value as it stands in *text*, or None."""
    place = read_jsonc(text).object_at(path)
    member = place.find(key) if place else None
    return RawValue(text[member.value_start : member.end]) if member else None


def _check_way(document: JsonText, path: Sequence[str]) -> None:
    value = document.value
    for depth, key in enumerate(("the file", *path)):
        if depth:
            if key not in value:
                return
            value = value[key]
        if not isinstance(value, dict):
            raise CannotEdit(f"{key if not depth else repr(key)} is no object")


def _wrap(path: Sequence[str], key: str, value: JsonObject | RawValue) -> JsonObject:
    inner: JsonObject = {key: _meaning(value)}
    for name in reversed(path):
        inner = {name: inner}
    return inner


def _with_empty_object(text: str) -> str:
    """Return *text*, which holds nothing but space and comments, with an empty object at its end."""
    if text.strip("\ufeff \t\r\n"):
        return text.rstrip("\r\n") + _newline(text) + "{}" + _newline(text)
    return ("\ufeff" if text.startswith("\ufeff") else "") + "{}" + _newline(text)


def _insert_first(text: str, place: ObjectPlace, key: str, value: JsonValue | RawValue) -> str:
    head = f"{json.dumps(key, ensure_ascii=False)}: "
    behind = place.start + 1
    if _is_one_line(text) and place.members:
        return f"{text[:behind]}{head}{_shown(value, '', text)}, {text[behind:]}"
    newline, outer = _newline(text), _indent_of_line(text, place.start)
    inside = text[behind : place.end - 1]
    indent = outer + _indent_step(text)
    if place.members and "\n" in text[behind : place.members[0].start]:
        indent = _indent_of_line(text, place.members[0].start)
    entry = f"{newline}{indent}{head}{_shown(value, indent, text)}" + ("," if place.members else "")
    tail = "" if "\n" in inside else newline + (indent if place.members else outer)
    return text[:behind] + entry + tail + text[behind:]


def _without(document: JsonText, place: ObjectPlace, member: Member) -> str:
    text = document.text
    start = member.start
    while text[start - 1] in " \t\r\n":
        start -= 1
    if member.comma is not None:
        return text[:start] + text[member.end : member.comma] + text[member.comma + 1 :]
    index = place.members.index(member)
    text = text[:start] + text[member.end :]
    before = place.members[index - 1].comma if index else None
    return text if before is None else text[:before] + text[before + 1 :]


def _shown(value: JsonValue | RawValue, indent: str, text: str) -> str:
    if isinstance(value, RawValue):
        return value.text
    if _is_one_line(text) and text.strip("\ufeff \t\r\n") != "{}":
        return json.dumps(value, ensure_ascii=False)
    shown = json.dumps(value, ensure_ascii=False, indent=_indent_step(text))
    return shown.replace("\n", _newline(text) + indent)


def _proved(changed: str, before: JsonText, path: Sequence[str], key: str, value: JsonObject | RawValue) -> str:
    """Read the result again: it must say what the text said before, and the new member, and nothing else."""
    wanted = json.loads(json.dumps(before.value))
    target = wanted
    for name in path:
        target = target.setdefault(name, {})
    target[key] = _meaning(value)
    try:
        found = read_jsonc(changed).value
    except NotJson as error:
        raise CannotEdit(f"the change would break the file: {error}") from error
    if found != wanted:
        raise CannotEdit("the change would alter something else in the file")
    return changed


def _meaning(value: JsonObject | RawValue) -> JsonValue:
    return read_jsonc(value.text).value if isinstance(value, RawValue) else value


def _is_one_line(text: str) -> bool:
    return "\n" not in text.strip("\ufeff \t\r\n")


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _indent_of_line(text: str, offset: int) -> str:
    line = text[text.rfind("\n", 0, offset) + 1 : offset]
    found = re.match(r"[ \t]*", line.lstrip("\ufeff"))
    return found.group() if found else ""


def _indent_step(text: str) -> str:
    """Return what one level is indented by: the first indented line of the file says it."""
    found = re.search(r"\n([ \t]+)\"", text)
    return found.group(1) if found else DEFAULT_INDENT
