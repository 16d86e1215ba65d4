"""An env file (`NAME=value` lines), as VS Code and Cursor read them for a server."""

from __future__ import annotations

import re

_LINE = re.compile(
    r"""^[ \t]*(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_.-]*)[ \t]*=[ \t]*"""
    r"""(?:"((?:[^"\\]|\\.)*)"|'([^']*)'|`([^`]*)`|([^\r\n]*))""",
    re.MULTILINE | re.DOTALL,
)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}


def read_dotenv(text: str) -> dict[str, str]:
    """Return the variables; a later line wins. Lines that set nothing are left out."""
    found: dict[str, str] = {}
    for match in _LINE.finditer(text.removeprefix("\ufeff")):
        name, double, single, tick, bare = match.groups()
        if double is not None:
            found[name] = re.sub(r"\\(.)", lambda escape: _ESCAPES.get(escape[1], escape[1]), double, flags=re.DOTALL)
        elif bare is not None:
            found[name] = re.sub(r"(^|[ \t]+)#.*$", "", bare).strip()
        else:
            found[name] = single if single is not None else tick
    return found
