"""A YAML file as plain JSON values, with the line of every value, so that each fault has a place.

Built on the parser's event stream and not on its object layer: no tags, no anchors, no aliases, no merge keys and no
recursion, so a file cannot build objects, refer to itself or blow up. Scalars follow the YAML 1.2 core schema: `no`
is a word and not a truth value, a date is text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import yaml

from omni_mcp.contracts.errors import Problem
from omni_mcp.contracts.json import JsonValue, json_path

SIZE_LIMIT_BYTES = 256 * 1024
DEPTH_LIMIT = 48  # a manifest's own 2 levels + a schema of 32 subschemas, which may take more than one level each
VALUE_LIMIT = 20_000

Place = tuple[str | int, ...]

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, JsonValue] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip


@dataclass
class Document:
    """What a file says. It may not be used if there are `problems`; `complete` says whether all of it was read."""

    file: str
    value: JsonValue = None
    lines: dict[Place, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    complete: bool = False

    def line_of(self, place: Place) -> int:
        """Return the line of the value at *place*, or of the nearest value around it; counts from 1."""
        for end in range(len(place), -1, -1):
            if place[:end] in self.lines:
                return self.lines[place[:end]]
        return 1

    def problem(self, place: Place, message: str) -> Problem:
        """Return a fault at *place*."""
        return Problem(file=self.file, line=self.line_of(place), path=json_path(place), message=message)


def read_document(data: bytes, *, file: str) -> Document:
    """Read the one YAML document in *data*; never raises: what is wrong is in `problems`."""
    document = Document(file=file)
    if len(data) > SIZE_LIMIT_BYTES:
        document.problems.append(_fault(file, 0, f"is larger than {SIZE_LIMIT_BYTES} bytes"))
        return document
    try:
        text = data.decode("utf-8-sig")
        _Builder(document).build(yaml.parse(text, Loader=_LOADER))
        document.complete = True
    except UnicodeDecodeError as error:
        document.problems.append(_fault(file, data[: error.start].count(b"\n") + 1, "is not UTF-8"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        document.problems.append(_fault(file, mark.line + 1 if mark else 0, f"not YAML: {error.problem}"))
    except yaml.YAMLError as error:
        document.problems.append(_fault(file, 0, f"not YAML: {str(error).splitlines()[0]}"))
    except _GivenUpError:
        pass  # the reason is already among the problems
    return document


def _fault(file: str, line: int, message: str) -> Problem:
    """A fault of the file as text; there is no JSON path yet."""
    return Problem(file=file, line=line, path="", message=message)


class _GivenUpError(Exception):
    """The file is over a limit; reading on would serve nobody."""


@dataclass
class _Open:
    """A mapping or sequence whose end has not been seen. `key` is the mapping key that waits for its value."""

    value: dict[str, JsonValue] | list[JsonValue]
    place: Place
    key: str | None = None
    keep: bool = True  # False while the value of a refused key is read and thrown away


class _Builder:
    def __init__(self, document: Document) -> None:
        self._document = document
        self._open: list[_Open] = []
        self._count = 0
        self._documents = 0

    def build(self, events: Iterator[yaml.Event]) -> None:
        for event in events:
            line = event.start_mark.line + 1 if event.start_mark else 0
            if isinstance(event, yaml.DocumentStartEvent):
                self._documents += 1
                if self._documents > 1:
                    self._give_up(line, "holds more than one YAML document")
            elif isinstance(event, yaml.AliasEvent):
                self._give_up(line, "aliases (*name) are not allowed; write the value out")
            elif isinstance(event, yaml.ScalarEvent):
                self._scalar(event, line)
            elif isinstance(event, yaml.MappingStartEvent):
                self._start({}, event, line)
            elif isinstance(event, yaml.SequenceStartEvent):
                self._start([], event, line)
            elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
                self._open.pop()

    def _give_up(self, line: int, message: str) -> None:
        place = self._open[-1].place if self._open else ()
        self._document.problems.append(
            Problem(file=self._document.file, line=line, path=json_path(place), message=message)
        )
        raise _GivenUpError

    def _complain(self, line: int, place: Place, message: str) -> None:
        self._document.problems.append(
            Problem(file=self._document.file, line=line, path=json_path(place), message=message)
        )

    def _scalar(self, event: yaml.ScalarEvent, line: int) -> None:
        self._check_plain(event, line)
        top = self._open[-1] if self._open else None
        plain = event.implicit[0] and not event.style  # the C parser says '' where the Python one says None
        if top is not None and isinstance(top.value, dict) and top.key is None:
            self._key(top, event.value, plain, line)
            return
        self._add(self._value(event.value, line) if plain else event.value, line)

    def _key(self, top: _Open, text: str, plain: bool, line: int) -> None:
        assert isinstance(top.value, dict)
        top.key, top.keep = text, True
        if plain and not isinstance(self._value(text, line), str):
            self._complain(line, (*top.place, text), "a key must be text; put it in quotes")
        if text in top.value:
            first = self._document.lines[(*top.place, text)]
            self._complain(line, (*top.place, text), f"duplicate key; the first one is on line {first}")
            top.keep = False
        else:
            self._document.lines[(*top.place, text)] = line

    def _start(self, value: dict[str, JsonValue] | list[JsonValue], event: yaml.NodeEvent, line: int) -> None:
        self._check_plain(event, line)
        top = self._open[-1] if self._open else None
        if top is not None and isinstance(top.value, dict) and top.key is None:
            self._give_up(line, "a key must be text")
        if len(self._open) >= DEPTH_LIMIT:
            self._give_up(line, f"is nested deeper than {DEPTH_LIMIT} levels")
        place = self._add(value, line)
        self._open.append(_Open(value, place))

    def _check_plain(self, event: yaml.NodeEvent, line: int) -> None:
        self._count += 1
        if self._count > VALUE_LIMIT:
            self._give_up(line, f"holds more than {VALUE_LIMIT} values")
        if event.anchor is not None:
            self._give_up(line, "anchors (&name) are not allowed; write the value out")
        if getattr(event, "tag", None) is not None:
            self._give_up(line, "tags (!name) are not allowed")

    def _add(self, value: JsonValue, line: int) -> Place:
        if not self._open:
            self._document.value = value
            self._document.lines[()] = line
            return ()
        top = self._open[-1]
        if isinstance(top.value, list):
            place: Place = (*top.place, len(top.value))
            top.value.append(value)
            self._document.lines[place] = line
            return place
        assert top.key is not None
        place, key, top.key = (*top.place, top.key), top.key, None
        if top.keep:
            top.value[key] = value
        return place

    def _value(self, text: str, line: int) -> JsonValue:
        if text in _WORDS:
            return _WORDS[text]
        if _INT.fullmatch(text):
            number = int(text) if len(text) <= 20 else 2**64
            if not -(2**63) <= number < 2**63:
                self._give_up(line, "a whole number must fit 64 bits")
            return number
        if _FLOAT.fullmatch(text):
            value = float(text)
            if not math.isfinite(value):
                self._give_up(line, "a number must be finite")
            return value
        return text
