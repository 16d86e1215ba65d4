"""Adds and removes one `[table]` of a TOML text; every byte outside that table stays, proved by reading it again."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omni_mcp.clients.json_edit import CannotEdit
from omni_mcp.contracts.json import JsonObject
from omni_mcp.toml_writer import toml_key, toml_value

_TOKEN = re.compile(
    r'"""(?:[^\\]|\\.)*?"""+|'
    r"'''.*?'''+|"
    r'"(?:[^"\\\n]|\\.)*"|'
    r"'[^'\n]*'|"
    r"#[^\n]*|"
    r"[\[\]{}\n]",
    re.DOTALL,
)


class NotToml(ValueError):
    """The text cannot be read; `line` counts from 1."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        found = re.search(r"line (\d+)", message)
        self.line = int(found[1]) if found else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSpan:
    """One `[table]` by its offsets: from its header to the next header or the end of the text."""

    path: tuple[str, ...]
    start: int
    end: int


def read_toml(text: str) -> JsonObject:
    """Return what *text* says.

    Raises:
        NotToml: it is no TOML.
    """
    try:
        return tomllib.loads(text.removeprefix("\ufeff"))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise NotToml(str(error)) from error


def set_table(text: str, path: Sequence[str], value: JsonObject) -> str:
    """Return *text* with the table *path* saying *value*; replaced where it stands, or added at the end.

    Raises:
        CannotEdit: the table is written in a way that cannot be changed in place, such as an inline table.
        NotToml: *text* cannot be read.
    """
    before = read_toml(text)
    if _at(before, path) == value:
        return text
    newline = "\r\n" if "\r\n" in text else "\n"
    shown = newline.join([_header(path), *(f"{toml_key(key)} = {toml_value(item)}" for key, item in value.items())])
    spans = _spans_below(text, path)
    if spans:
        start, end = spans[0].start, spans[0].end
        last = text[spans[-1].start : spans[-1].end]
        gap = last[len(last.rstrip()) :] or newline
        text = _without(text, spans[1:])
        changed = text[:start] + shown + gap + text[end:]
    else:
        changed = text + _gap_before(text, newline) + shown + newline
    wanted = _copy_with(before, path, value)
    return _proved(changed, wanted)


def append_tables(text: str, tables: str) -> str:
    """Return *text* with whole tables, as they stood in another text, at its end.

    Raises:
        CannotEdit: they cannot stand there.
    """
    newline = "\r\n" if "\r\n" in text else "\n"
    changed = text + _gap_before(text, newline) + tables.strip("\r\n") + newline
    try:
        read_toml(changed)
    except NotToml as error:
        raise CannotEdit(f"the change would break the file: {error}") from error
    return changed


def remove_table(text: str, path: Sequence[str]) -> str:
    """Return *text* without the table *path* and those below it.

    Raises:
        CannotEdit: it is written in a way that cannot be removed in place, such as an inline table.
        NotToml: *text* cannot be read.
    """
    before = read_toml(text)
    if _at(before, path) is None:
        return text
    return _proved(_without(text, _spans_below(text, path)), _copy_without(before, path))


def raw_tables(text: str, path: Sequence[str]) -> str | None:
    """Return the table *path* and those below it as they stand in *text*, or None."""
    spans = _spans_below(text, path)
    return "".join(text[span.start : span.end] for span in spans) if spans else None


def _spans_below(text: str, path: Sequence[str]) -> list[TableSpan]:
    return [span for span in _spans(text) if span.path[: len(path)] == tuple(path)]


def _spans(text: str) -> list[TableSpan]:
    """Return every table with a header of its own. A bracket opens a header only at the start of a line, outside
    strings, comments and arrays."""
    starts: list[tuple[int, tuple[str, ...]]] = []
    depth, line_start, at = 0, 0, 0
    while (match := _TOKEN.search(text, at)) is not None:
        token, at = match[0], match.end()
        if token == "\n":
            line_start = at
        elif token == "[" and depth == 0 and not text[line_start : match.start()].strip(" \t\ufeff"):
            end = text.find("\n", match.start())
            line = text[match.start() : end if end >= 0 else len(text)]
            starts.append((match.start(), _path_of(line)))
            at = match.start() + len(line)
        elif token in ("[", "{"):
            depth += 1
        elif token in ("]", "}"):
            depth -= 1
    ends = [*(start for start, _ in starts[1:]), len(text)][: len(starts)]
    return [
        TableSpan(path=path, start=start, end=_end_of_body(text, start, end))
        for (start, path), end in zip(starts, ends, strict=True)
    ]


def _end_of_body(text: str, start: int, end: int) -> int:
    """Comment lines right above the next header belong to that header."""
    body = text[start:end]
    if end == len(text):
        return end
    lines = body.splitlines(keepends=True)
    while lines and lines[-1].lstrip().startswith("#"):
        lines.pop()
    return start + sum(map(len, lines))


def _path_of(line: str) -> tuple[str, ...]:
    try:
        value: Any = tomllib.loads(line.strip())
    except tomllib.TOMLDecodeError:
        return ()
    path: list[str] = []
    while isinstance(value, dict) and value:
        key = next(iter(value))
        path.append(key)
        value = value[key]
    return tuple(path)


def _without(text: str, spans: Sequence[TableSpan]) -> str:
    for span in reversed(spans):
        before, after = text[: span.start], text[span.end :]
        if not after:  # the blank line that stood before the last table goes with it
            before = re.sub(r"(\r?\n)[ \t]*\r?\n$", r"\1", before)
        text = before + after
    return text


def _gap_before(text: str, newline: str) -> str:
    if not text.strip("\ufeff"):
        return ""
    return newline if text.endswith("\n") else newline * 2


def _header(path: Sequence[str]) -> str:
    return "[" + ".".join(map(toml_key, path)) + "]"


def _at(value: Any, path: Sequence[str]) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _copy_with(value: JsonObject, path: Sequence[str], new: JsonObject) -> JsonObject:
    inner = value.get(path[0], {})
    if len(path) > 1 and not isinstance(inner, dict):
        raise CannotEdit(f"{path[0]!r} is no table")
    return {**value, path[0]: new if len(path) == 1 else _copy_with(inner, path[1:], new)}


def _copy_without(value: JsonObject, path: Sequence[str]) -> JsonObject:
    if len(path) == 1:
        return {key: item for key, item in value.items() if key != path[0]}
    return {**value, path[0]: _copy_without(value[path[0]], path[1:])}


def _proved(changed: str, wanted: JsonObject) -> str:
    try:
        found = read_toml(changed)
    except NotToml as error:
        raise CannotEdit(f"the change would break the file: {error}") from error
    if _pruned(found) != _pruned(wanted):
        raise CannotEdit("the table is not written as a [table] of its own; change it by hand")
    return changed


def _pruned(value: Any) -> Any:
    """A table that became empty may be gone: the header of a table above is often not written."""
    if not isinstance(value, dict):
        return value
    inner = {key: _pruned(item) for key, item in value.items()}
    return {key: item for key, item in inner.items() if item != {}}
