"""Finding: one thing in a definition that a person should look at before accepting it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from omni_mcp.contracts.json import JsonObject, JsonValue, json_path

Severity = Literal["note", "warning", "severe"]
RANK: dict[Severity, int] = {"note": 0, "warning": 1, "severe": 2}
EXCERPT_LIMIT = 160

Place = tuple[str | int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that stands out. `severe` ones are accepted only where a person says so in particular.

    Args:
        rule: name of what was looked for, such as `invisible_character`.
        path: JSON path in the definition.
        excerpt: what stands there, not yet made safe for a terminal.
    """

    rule: str
    severity: Severity
    path: str
    excerpt: str = ""

    def as_json(self) -> JsonObject:
        return {"rule": self.rule, "severity": self.severity, "path": self.path, "excerpt": self.excerpt}


@dataclass(frozen=True, slots=True)
class Text:
    """One string of a definition: a value, or the name of a member that the server chose."""

    place: Place
    text: str
    is_name: bool = False

    @property
    def path(self) -> str:
        return json_path(self.place)


def texts_of(definition: JsonObject) -> Iterator[Text]:
    """Yield every string of a definition, member names included, in order."""
    todo: list[tuple[Place, JsonValue]] = [((), definition)]
    while todo:
        place, value = todo.pop()
        if isinstance(value, str):
            yield Text(place, value)
        elif isinstance(value, dict):
            for name in value:
                yield Text((*place, name), name, is_name=True)
            todo += [((*place, name), value[name]) for name in reversed(value)]
        elif isinstance(value, list):
            todo += [((*place, number), value[number]) for number in range(len(value) - 1, -1, -1)]


def excerpt_of(text: str, start: int = 0, end: int | None = None) -> str:
    """Return the part of *text* from *start* to *end* with a little around it, on one line."""
    end = len(text) if end is None else end
    around = max(0, (EXCERPT_LIMIT - (end - start)) // 2)
    part = text[max(0, start - around) : min(len(text), end + around)]
    return " ".join(part[: EXCERPT_LIMIT * 2].split())[:EXCERPT_LIMIT]
