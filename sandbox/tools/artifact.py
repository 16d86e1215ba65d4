"""The artifact tools: read, search and query the one artifact that the gateway put into the cell."""

from __future__ import annotations

import base64
import json

from failure import ToolFailure
from files import TEXT_LIMIT, slice_lines
from json_tools import query

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PLACE = "in/artifact"  # where the gateway puts the artifact that the manifest's artifact_argument names
LINE_LIMIT = 500


def artifact_read(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return a slice of an artifact: lines of text, or bytes."""
    data = _data()
    if "start_byte" in arguments or "max_bytes" in arguments:
        start = arguments.get("start_byte", 0)
        part = data[start : start + arguments.get("max_bytes", 65536)]
        where = {"size": len(data), "start_byte": start, "truncated": start + len(part) < len(data)}
        try:
            return {**where, "text": part.decode()}
        except UnicodeDecodeError:
            return {**where, "base64": base64.b64encode(part).decode()}
    text = _text(data)
    return {"size": len(data), **slice_lines(text, arguments.get("start_line", 1), arguments.get("max_lines", 500))}


def artifact_search(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the lines that hold a text, with their numbers. A plain search: nothing in the text is a pattern."""
    wanted, limit = arguments["text"], arguments.get("max_matches", 50)
    fold = arguments.get("ignore_case", False)
    needle = wanted.casefold() if fold else wanted
    matches: list[dict[str, Any]] = []
    count = size = 0
    for number, line in enumerate(_text(_data()).splitlines(), start=1):
        if needle not in (line.casefold() if fold else line):
            continue
        count += 1
        shown = line[:LINE_LIMIT]
        size += len(shown.encode())
        if len(matches) < limit and size <= TEXT_LIMIT:
            matches.append({"line": number, "text": shown})
    return {"matches": matches, "count": count, "truncated": count > len(matches)}


def artifact_query(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return what a JSONPath query selects of an artifact that holds JSON."""
    try:
        document = json.loads(_data(), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ToolFailure(f"the artifact is not JSON: {error}; artifact_read shows what it holds") from error
    return query(document, arguments["query"], arguments.get("limit", 100))


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _data() -> bytes:
    try:
        with open(PLACE, "rb") as stream:
            return stream.read()
    except FileNotFoundError as error:
        raise ToolFailure("there is no such artifact, or none that you may read") from error


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ToolFailure("the artifact is not UTF-8 text; read it with start_byte and max_bytes") from error
