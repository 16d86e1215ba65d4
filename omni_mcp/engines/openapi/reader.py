"""An operator's file, YAML or JSON, as plain JSON values, bounded in size, depth and number of values.

YAML is built from the parser's events: no tags, no anchors, no aliases, and scalars as YAML 1.2 has them. Keys are
always text, so the response codes `200:` and `"200":` are the same.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from omni_mcp.contracts.errors import ConfigError, Problem
from omni_mcp.contracts.json import JsonObject, JsonValue, depth_of, json_path

SIZE_LIMIT_BYTES = 8 * 1024 * 1024
DEPTH_LIMIT = 96
VALUE_LIMIT = 400_000

Place = tuple[str | int, ...]

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, JsonValue] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadFile:
    """What a file says. `lines` holds the line of each member by the identity of what holds it; JSON has none."""

    file: str
    value: JsonObject
    lines: dict[int, dict[str | int, int]] = field(default_factory=dict)

    def problem(self, place: Place, message: str) -> Problem:
        """Return a fault at *place*, with the line of the value there or of the nearest one around it."""
        line, value = 0, self.value
        for step in place:
            line = self.lines.get(id(value), {}).get(step, line)
            value = _member(value, step)
        return Problem(file=self.file, line=line, path=json_path(place), message=message)


def _member(value: JsonValue, step: str | int) -> JsonValue:
    if isinstance(value, dict):
        return value.get(str(step))
    if isinstance(value, list) and isinstance(step, int) and step < len(value):
        return value[step]
    return None


def read_bytes(file: Path) -> bytes:
    """Read a file of the operator's own, through one descriptor, so that what was checked is what is read.

    Raises:
        ConfigError: it is not there, a link, somebody else's, writable by others, or too large.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _refusal(
            str(file), 0, "must be a file, not a link" if file.is_symlink() else f"cannot be read: {error.strerror}"
        ) from error
    with open(descriptor, "rb") as stream:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise _refusal(str(file), 0, "must be a regular file")
        if facts.st_uid not in (os.geteuid(), 0):
            raise _refusal(
                str(file), 0, f"belongs to uid {facts.st_uid}; it defines what is called, so it must be yours"
            )
        if facts.st_mode & 0o022:
            raise _refusal(str(file), 0, f"others can write to it; it defines what is called: chmod go-w {file}")
        data = stream.read(SIZE_LIMIT_BYTES + 1)
    if len(data) > SIZE_LIMIT_BYTES:
        raise _refusal(str(file), 0, f"is larger than {SIZE_LIMIT_BYTES} bytes")
    return data


def parse(data: bytes, *, file: str) -> ReadFile:
    """Read the one JSON or YAML mapping in *data*.

    Raises:
        ConfigError: it is neither, or over a limit; with the line where that can be told.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _refusal(file, data[: error.start].count(b"\n") + 1, "is not UTF-8") from error
    lines: dict[int, dict[str | int, int]] = {}
    if file.endswith(".json") or text.lstrip()[:1] == "{":
        value = _parse_json(text, file)
    else:
        builder = _Builder(file)
        value, lines = builder.build(text), builder.lines
    if not isinstance(value, dict):
        raise _refusal(file, 1, "must be a mapping with the fields of an OpenAPI document")
    return ReadFile(file=file, value=value, lines=lines)


def _refusal(file: str, line: int, message: str, place: Place = ()) -> ConfigError:
    path = json_path(place) if place else ""
    return ConfigError([Problem(file=file, line=line, path=path, message=message)])


def _parse_json(text: str, file: str) -> JsonValue:
    try:
        value = json.loads(
            text, object_pairs_hook=_without_doubles, parse_constant=_no_constant, parse_int=_integer,
            parse_float=_finite,
        )  # fmt: skip
    except json.JSONDecodeError as error:
        raise _refusal(file, error.lineno, f"not JSON: {error.msg}") from error
    except RecursionError as error:
        raise _refusal(file, 0, f"is nested deeper than {DEPTH_LIMIT} levels") from error
    except ValueError as error:
        raise _refusal(file, 0, str(error)) from error
    if depth_of(value, limit=DEPTH_LIMIT) > DEPTH_LIMIT:
        raise _refusal(file, 0, f"is nested deeper than {DEPTH_LIMIT} levels")
    try:
        text.encode()
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise _refusal(file, 0, "holds half of a surrogate pair") from error
    return value


def _without_doubles(pairs: list[tuple[str, JsonValue]]) -> JsonObject:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {double[:100]!r} stands twice in one object")
    return found


def _no_constant(name: str) -> JsonValue:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is too large for a number")
    return value


def _integer(text: str) -> int | float:
    """Numbers that 64 bits do not hold (limits of unsigned types, mostly) become floats, as other readers have them."""
    number = int(text) if len(text) <= 20 else 2**64
    return number if -(2**63) <= number < 2**63 else float(text[:300])


@dataclass
class _Open:
    """A mapping or sequence whose end has not been seen. `key` is the mapping key that waits for its value."""

    value: dict[str, JsonValue] | list[JsonValue]
    place: Place
    key: str | None = None


class _Builder:
    def __init__(self, file: str) -> None:
        self._file = file
        self._open: list[_Open] = []
        self._count = 0
        self._root: JsonValue = None
        self.lines: dict[int, dict[str | int, int]] = {}

    def build(self, text: str) -> JsonValue:
        documents = 0
        try:
            for event in yaml.parse(text, Loader=_LOADER):
                line = event.start_mark.line + 1 if event.start_mark else 0
                if isinstance(event, yaml.DocumentStartEvent):
                    documents += 1
                    if documents > 1:
                        raise self._refused(line, "holds more than one YAML document")
                self._take(event, line)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            raise _refusal(self._file, mark.line + 1 if mark else 0, f"not YAML: {error.problem}") from error
        except yaml.YAMLError as error:
            raise _refusal(self._file, 0, f"not YAML: {str(error).splitlines()[0]}") from error
        return self._root

    def _take(self, event: yaml.Event, line: int) -> None:
        if isinstance(event, yaml.AliasEvent):
            raise self._refused(line, "aliases (*name) are not allowed; write the value out, or use $ref")
        if isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            self._open.pop()
        elif isinstance(event, yaml.NodeEvent):
            self._check_plain(event, line)
            top = self._open[-1] if self._open else None
            is_key = top is not None and isinstance(top.value, dict) and top.key is None
            if is_key and top is not None:
                self._key(top, event, line)
            elif isinstance(event, yaml.ScalarEvent):
                plain = event.implicit[0] and not event.style
                self._add(self._scalar(event.value, line) if plain else event.value, line)
            else:
                value: dict[str, JsonValue] | list[JsonValue] = {} if isinstance(event, yaml.MappingStartEvent) else []
                if len(self._open) >= DEPTH_LIMIT:
                    raise self._refused(line, f"is nested deeper than {DEPTH_LIMIT} levels")
                self._open.append(_Open(value, self._add(value, line)))

    def _refused(self, line: int, message: str, place: Place | None = None) -> ConfigError:
        here = self._open[-1].place if self._open else ()
        return _refusal(self._file, line, message, here if place is None else place)

    def _check_plain(self, event: yaml.NodeEvent, line: int) -> None:
        self._count += 1
        if self._count > VALUE_LIMIT:
            raise self._refused(line, f"holds more than {VALUE_LIMIT} values")
        if event.anchor is not None:
            raise self._refused(line, "anchors (&name) are not allowed; write the value out, or use $ref")
        if getattr(event, "tag", None) is not None:
            raise self._refused(line, "tags (!name) are not allowed")

    def _key(self, top: _Open, event: yaml.NodeEvent, line: int) -> None:
        if not isinstance(event, yaml.ScalarEvent):
            raise self._refused(line, "a key must be text")
        text = str(event.value)
        assert isinstance(top.value, dict)
        if text in top.value:
            first = self.lines[id(top.value)][text]
            raise self._refused(line, f"duplicate key; the first one is on line {first}", (*top.place, text))
        top.key = text
        self.lines.setdefault(id(top.value), {})[text] = line

    def _add(self, value: JsonValue, line: int) -> Place:
        if not self._open:
            self._root = value
            return ()
        top = self._open[-1]
        if isinstance(top.value, list):
            self.lines.setdefault(id(top.value), {})[len(top.value)] = line
            top.value.append(value)
            return (*top.place, len(top.value) - 1)
        assert top.key is not None
        key, top.key = top.key, None
        top.value[key] = value
        return (*top.place, key)

    def _scalar(self, text: str, line: int) -> JsonValue:
        if text in _WORDS:
            return _WORDS[text]
        if _INT.fullmatch(text):
            return _integer(text)
        if _FLOAT.fullmatch(text):
            value = float(text)
            if not math.isfinite(value):
                raise self._refused(line, "a number must be finite")
            return value
        return text
