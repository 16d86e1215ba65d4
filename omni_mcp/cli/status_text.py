"""What `omni-mcp status` knows, as lines for a person: times of the clock on the wall, and no words of Python."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from omni_mcp.contracts.json import JsonObject

_LONG_LIST = 8


def status_lines(facts: JsonObject) -> list[str]:
    """Return the snapshot as aligned lines; nested objects are indented, what says nothing is left out."""
    return list(_table(facts, ""))


def _table(facts: JsonObject, indent: str) -> Iterator[str]:
    rows = {_name(key): (key, value) for key, value in facts.items() if value not in (None, [], {}, "")}
    width = max((len(name) for name in rows), default=0)
    for name, (key, value) in rows.items():
        if isinstance(value, dict):
            below = list(_table(value, indent + "  "))
            if below:
                yield f"{indent}{_safe(name)}"
                yield from below
        else:
            yield f"{indent}{_safe(name):<{width}}  {_safe(_text(key, value))}"


def _name(key: str) -> str:
    """The unit stands behind the value."""
    return key.removesuffix("_s")


def _text(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return _list(value)
    if key.endswith("_at") and isinstance(value, str):
        return _time(value)
    if key.endswith("_s") and isinstance(value, int | float):
        return _span(value)
    return str(value)


def _list(values: list[Any]) -> str:
    if all(isinstance(one, dict) and "key" in one for one in values):
        return ", ".join(_chosen(one) for one in values)
    words = [str(one) for one in values if not isinstance(one, dict)]
    if len(words) < len(values):
        return f"{len(values)}; see --json"
    return f"{len(words)}; see --json" if len(words) > _LONG_LIST else ", ".join(words)


def _chosen(one: JsonObject) -> str:
    """Return what was chosen for a key; where it ships with the gateway there is nothing to say."""
    return one["key"] if one.get("winner") == "bundled" else f"{one['key']} ({one.get('winner')})"


def _time(text: str) -> str:
    try:
        return f"{datetime.fromisoformat(text).astimezone():%Y-%m-%d %H:%M:%S %Z}"
    except ValueError:
        return text


def _span(seconds: float) -> str:
    whole = int(seconds)
    if whole < 60:
        return f"{seconds:.3g} s"
    parts = ((whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s"))
    said = [f"{count} {unit}" for count, unit in parts if count]
    return " ".join(said[:2])


def _safe(text: str) -> str:
    return "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in text)
