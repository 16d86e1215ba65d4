"""Texts of a document on their way to a model: bounded, and without characters that a person does not see."""

from __future__ import annotations

import unicodedata

from omni_mcp.contracts.json import JsonValue

_ORDINARY = frozenset("\n\t")


def plain_text(text: str, most_characters: int) -> str:
    """Return *text* with one kind of line end, without hidden characters, at most *most_characters* long."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    shown = "".join(char for char in lines if not is_hidden(char)).strip()
    return shown if len(shown) <= most_characters else shown[: most_characters - 1].rstrip() + "…"


def is_hidden(char: str) -> bool:
    """Whether *char* shows nothing, or turns the text around it."""
    if char.isascii():
        return (char < " " and char not in _ORDINARY) or char == "\x7f"
    return unicodedata.category(char) in ("Cf", "Cc", "Cn", "Co", "Cs")


def find_hidden(value: JsonValue) -> str | None:
    """Return a hidden character that stands in a key or a text of *value*, written `U+200B`."""
    todo: list[JsonValue] = [value]
    while todo:
        one = todo.pop()
        if isinstance(one, dict):
            todo.extend(one)
            todo.extend(one.values())
        elif isinstance(one, list):
            todo.extend(one)
        elif isinstance(one, str) and not one.isprintable():  # what is hidden is never printable, and this is fast
            bad = next((char for char in one if is_hidden(char)), None)
            if bad is not None:
                return f"U+{ord(bad):04X}"
    return None
