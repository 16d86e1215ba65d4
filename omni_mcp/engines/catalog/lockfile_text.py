"""omni.lock as text: strict JSON in, with a line for each fault; sorted JSON out, in which nothing is invisible."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from omni_mcp.contracts.errors import ConfigError, Problem
from omni_mcp.contracts.json import json_path
from omni_mcp.contracts.lock import LOCK_VERSION, Lock
from omni_mcp.engines.catalog.difference_characters import is_shown

PROBLEMS_LIMIT = 50
DEPTH_LIMIT = 64  # a definition may have 48 levels

Place = tuple[str | int, ...]

_UNUSUAL = re.compile(r"[^\n\x20-\x7e]")
_TOKEN = re.compile(r'"(?:[^"\\\x00-\x1f]|\\.)*"|[{}\[\]:,]|[^\s{}\[\]:,"]+')


def write_lock(lock: Lock) -> str:
    """Return the text of the file. Characters that a reader would not see stand there as escapes."""
    text = json.dumps(lock.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return _UNUSUAL.sub(lambda found: found[0] if is_shown(found[0]) else _escaped(found[0]), text) + "\n"


def read_lock(text: str, *, file: str) -> Lock:
    """Read the text of the file.

    Raises:
        ConfigError: it is no JSON, a key stands twice, is unknown or wrong, or a newer omni-mcp wrote it.
    """
    value = _parsed(text, file)
    version = value.get("omni_lock") if isinstance(value, dict) else None
    if type(version) is int and version > LOCK_VERSION:
        message = f"was written by a newer omni-mcp (format {version}; this one reads {LOCK_VERSION}); update omni-mcp"
        raise ConfigError([_problem(text, file, ("omni_lock",), message)])
    if type(version) is not int or version != LOCK_VERSION:
        raise ConfigError([_problem(text, file, (), f'must be an object that begins with "omni_lock": {LOCK_VERSION}')])
    try:
        return Lock.model_validate_json(text, strict=True)  # as JSON: a list is a tuple there, and a word no boolean
    except ValidationError as error:
        raise ConfigError([_fault(text, file, fault) for fault in error.errors()[:PROBLEMS_LIMIT]]) from error


def _parsed(text: str, file: str) -> Any:
    duplicates: list[str] = []

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = dict(found)
        if len(keys) != len(found):
            duplicates.append(found[0][0])
        return keys

    try:
        value = json.loads(text, object_pairs_hook=pairs, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ConfigError([Problem(file=file, line=error.lineno, path="", message=f"not JSON: {error.msg}")]) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError([Problem(file=file, line=0, path="", message=f"not JSON: {error}")]) from error
    if duplicates:
        place, line = _first_duplicate(text)
        raise ConfigError([Problem(file=file, line=line, path=json_path(place), message="this key stands here twice")])
    return value


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is no number")


def _escaped(character: str) -> str:
    return json.dumps(character, ensure_ascii=True)[1:-1]


def _fault(text: str, file: str, fault: Any) -> Problem:
    if fault["type"] == "json_invalid":  # a lone surrogate, say: the standard library reads it and we do not
        place = re.search(r"line (\d+)", str(fault["msg"]))
        return Problem(file=file, line=int(place[1]) if place else 0, path="", message=f"not JSON: {fault['msg']}")
    where = tuple(part for part in fault["loc"] if part != "[key]")
    return _problem(text, file, where, _message(fault))


def _message(fault: Any) -> str:
    if fault["type"] == "extra_forbidden":
        return "unknown key"
    return str(fault["msg"]).removeprefix("Value error, ")


def _problem(text: str, file: str, place: Place, message: str) -> Problem:
    return Problem(file=file, line=_line_of(text, place), path=json_path(place), message=message)


def _line_of(text: str, wanted: Place) -> int:
    """Return the line of the value at *wanted*, or of the nearest value around it."""
    best, line = -1, 1
    for place, number in _places(text):
        if len(place) > best and place == wanted[: len(place)]:
            best, line = len(place), number
    return line


def _first_duplicate(text: str) -> tuple[Place, int]:
    seen: set[Place] = set()
    for place, line in _places(text):
        if place in seen:
            return place, line
        seen.add(place)
    return (), 0


def _places(text: str) -> Iterator[tuple[Place, int]]:
    """Yield (place, line) of every value of a text that is JSON, in order."""
    stack: list[list[Any]] = []  # [is object, key or index]
    line, position, key = 1, 0, ""
    expects_key = False
    for token in _TOKEN.finditer(text):
        line += text.count("\n", position, token.start())
        position = token.start()
        word = token[0]
        if word in "}]":
            stack.pop()
            expects_key = False
        elif word == ",":
            expects_key = stack[-1][0]
            if not expects_key:
                stack[-1][1] += 1
        elif word == ":":
            expects_key = False
        elif expects_key:
            key = json.loads(word)
            stack[-1][1] = key
            yield tuple(level[1] for level in stack), line
        else:
            if not stack or not stack[-1][0]:
                yield tuple(level[1] for level in stack), line
            if word in "{[":
                stack.append([word == "{", 0])
                expects_key = word == "{"
