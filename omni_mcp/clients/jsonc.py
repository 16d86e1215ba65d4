"""JSON as people keep it (comments, trailing commas, a byte order mark), with the place of every member, so that one
member can be changed and every other byte stays.

The text is never written anew. Comments and trailing commas are blanked in a copy of the same length; the standard
parser reads the copy, so what counts as a value is strict; offsets into the copy are offsets into the text.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from omni_mcp.contracts.json import JsonValue, json_path

DEPTH_LIMIT = 200  # nested deeper than any client's file, and far from what the parser itself can bear

_STRING = r'"[^"\\\n]*+(?:\\.[^"\\\n]*+)*+"'
_COMMENT = re.compile(rf"({_STRING})|//[^\n]*|/\*.*?\*/", re.DOTALL)
_TRAILING_COMMA = re.compile(rf"({_STRING}|[\[{{][ \t\r\n]*,)|,(?=[ \t\r\n]*[}}\]])", re.DOTALL)
_BRACKETS = re.compile(rf"({_STRING})|([\[{{])|([\]}}])", re.DOTALL)
_SPACE = re.compile(r"[ \t\r\n]*")


class NotJson(ValueError):
    """The text cannot be read; `line` counts from 1."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One `"key": value` of an object, by its offsets. `comma` is where the comma after it stands, if one does."""

    key: str
    start: int
    value_start: int
    end: int
    comma: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectPlace:
    """One object: offsets of its braces (`end` is behind the closing one) and its members in order."""

    start: int
    end: int
    members: tuple[Member, ...]

    def find(self, key: str) -> Member | None:
        """Return the member that counts: the last one of that name, as every JSON parser has it."""
        return next((member for member in reversed(self.members) if member.key == key), None)

    @property
    def repeated(self) -> tuple[str, ...]:
        """Keys that stand there more than once."""
        counts = Counter(member.key for member in self.members)
        return tuple(sorted(key for key, count in counts.items() if count > 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonText:
    """A text that was read: `value` is what it says; an empty one says an empty object."""

    text: str
    value: JsonValue
    comments: bool
    trailing_commas: bool
    clean: str = field(repr=False)

    def object_at(self, path: Sequence[str]) -> ObjectPlace | None:
        """Return where the object below *path* stands; None if there is none or something else stands there."""
        start = _skip_space(self.clean, 0)
        for key in path:
            place = self._object(start)
            member = place.find(key) if place else None
            if member is None:
                return None
            start = member.value_start
        return self._object(start)

    def object_of(self, member: Member) -> ObjectPlace | None:
        """Return where the object that is the value of *member* stands; None if its value is something else."""
        return self._object(member.value_start)

    def line_of(self, offset: int) -> int:
        """Return the line of *offset*, counted from 1."""
        return self.text.count("\n", 0, offset) + 1

    def _object(self, start: int) -> ObjectPlace | None:
        clean = self.clean
        if clean[start : start + 1] != "{":
            return None
        members: list[Member] = []
        at = _skip_space(clean, start + 1)
        while clean[at] != "}":
            key, after_key = _DECODER.raw_decode(clean, at)
            value_start = _skip_space(clean, _skip_space(clean, after_key) + 1)
            _, end = _DECODER.raw_decode(clean, value_start)
            after = _skip_space(clean, end)
            comma = after if clean[after] == "," else None
            if comma is None:  # it may be there in the text itself, as a trailing one
                found = self.text.find(",", end, after)
                comma = self._trailing_comma(end, after) if found >= 0 else None
            members.append(Member(key=key, start=at, value_start=value_start, end=end, comma=comma))
            at = _skip_space(clean, after + 1) if clean[after] == "," else after
        return ObjectPlace(start=start, end=at + 1, members=tuple(members))

    def _trailing_comma(self, start: int, end: int) -> int | None:
        for match in re.finditer(r"//[^\n]*|/\*.*?\*/|,", self.text[start:end], re.DOTALL):
            if match.group() == ",":
                return start + match.start()
        return None


def read_jsonc(text: str) -> JsonText:
    """Read *text*.

    Raises:
        NotJson: it is not JSON even without comments and trailing commas, or is nested too deep.
    """
    body = " " + text[1:] if text.startswith("\ufeff") else text
    without_comments = _COMMENT.sub(_blank, body)
    clean = _TRAILING_COMMA.sub(_blank, without_comments)
    if not clean.strip(" \t\r\n"):
        value: JsonValue = {}
    else:
        _check_depth(clean)
        try:
            value = json.loads(clean, parse_constant=_refuse_constant)
        except json.JSONDecodeError as error:
            raise NotJson(error.msg, error.lineno) from error
        except (ValueError, RecursionError) as error:
            raise NotJson(str(error), 0) from error
    return JsonText(
        text=text,
        value=value,
        comments=without_comments != body,
        trailing_commas=clean != without_comments,
        clean=clean,
    )


def repeated_keys(document: JsonText, path: Sequence[str]) -> list[str]:
    """Return the JSON paths of keys that stand twice in the object at *path* or in one directly below it."""
    place = document.object_at(path)
    if place is None:
        return []
    found = [path_of([*path, key]) for key in place.repeated]
    for member in place.members:
        inner = document.object_of(member)
        found += [path_of([*path, member.key, key]) for key in (inner.repeated if inner else ())]
    return sorted(set(found))


def path_of(keys: Sequence[str]) -> str:
    """Write a place as a JSON path; halves of characters, which JSON can spell, are escaped."""
    return json_path([writable(key) for key in keys])


def writable(text: str) -> str:
    """Return *text* as it can be written anywhere: halves of characters are escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


_DECODER = json.JSONDecoder()


def _blank(match: re.Match[str]) -> str:
    if match[1] is not None:
        return match[1]
    return re.sub(r"[^\r\n]", " ", match[0])


def _skip_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _check_depth(clean: str) -> None:
    depth = 0
    for match in _BRACKETS.finditer(clean):
        depth += 1 if match[2] else -1 if match[3] else 0
        if depth > DEPTH_LIMIT:
            raise NotJson(f"nested deeper than {DEPTH_LIMIT} levels", clean.count("\n", 0, match.start()) + 1)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
