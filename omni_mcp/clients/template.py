"""A value in a client's file that refers to something else: `${VAR}`, `${env:VAR}`, `${input:id}`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from omni_mcp.clients.places import Syntax

_SHELL = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_EDITOR = re.compile(r"\$\{([^}]*)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """One reference: to a variable of the environment, or to an input that the client asks a person for.

    The client does without an `optional` one that is not set.
    """

    kind: Literal["env", "input"]
    name: str
    default: str | None = None
    optional: bool = False


Template = tuple[str | Reference, ...]


class Unclear(ValueError):
    """Something in a server's entry cannot be understood; the message says what, and holds no value."""


def parse_template(text: str, syntax: Syntax, fixed: Mapping[str, str | None]) -> Template:
    """Return the parts of *text*.

    Args:
        fixed: names that mean one text here, such as `workspaceFolder`; None where it is not known which.

    Raises:
        Unclear: a reference is of a kind that is not known, or means nothing here.
    """
    if syntax == "none" or "${" not in text:
        return (text,)
    parts: list[str | Reference] = []
    at = 0
    for match in (_SHELL if syntax == "shell" else _EDITOR).finditer(text):
        parts += [text[at : match.start()], _reference(match, syntax, fixed)]
        at = match.end()
    parts.append(text[at:])
    return _joined(parts)


def only_text(template: Template) -> str | None:
    """Return the text of a template without references, else None."""
    if any(isinstance(part, Reference) for part in template):
        return None
    return "".join(part for part in template if isinstance(part, str))


def _reference(match: re.Match[str], syntax: Syntax, fixed: Mapping[str, str | None]) -> str | Reference:
    name = match[1]
    if name in fixed:
        known = fixed[name]
        if known is None:
            raise Unclear(f"{match[0]} means nothing outside a project; name it with --project DIR")
        return known
    if syntax == "shell":
        return Reference(kind="env", name=name, default=match[2])
    kind, _, rest = name.partition(":")
    if kind == "env" and rest:
        return Reference(kind="env", name=rest)
    if kind == "input" and rest:
        return Reference(kind="input", name=rest)
    raise Unclear(f"{match[0]} is not known outside its client")


def _joined(parts: list[str | Reference]) -> Template:
    joined: list[str | Reference] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        elif part != "":
            joined.append(part)
    return tuple(joined) or ("",)
