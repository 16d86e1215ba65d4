"""Public names: what a client calls an entry, and the way back to the server's own name.

`server__tool`, at most 64 characters of `[A-Za-z0-9_-]`. A server's name holds no `__` and does not end in `_`, so the
first `__` always ends it. A tool's name that does not fit gets an alias made of its own digest: it depends on nothing
else, so it never comes to mean another tool. URIs that must be told apart by server get `omni+SERVER+` in front.
"""

from __future__ import annotations

import hashlib
import re
from typing import Literal

NameStyle = Literal["prefixed", "identity"]

NAME_LIMIT = 64
URI_LIMIT = 2048
SEPARATOR = "__"

_FITS = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SERVER = re.compile(r"[a-z0-9]+([_-][a-z0-9]+)*")
_MARKED = re.compile(r"omni\+([a-z0-9.-]+)\+(.+)", re.DOTALL)
_MARK = "omni+"
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_DIGEST_LENGTH = 10  # 40 bits: two of 1,000 tools collide once in two million catalogs, and then both are refused


def is_server_name(name: str) -> bool:
    """Whether *name* may name a server: short, lower case, no `__`."""
    return len(name) <= 24 and _SERVER.fullmatch(name) is not None


def public_name(server: str, name: str, style: NameStyle = "prefixed") -> str:
    """Return what clients call *name* of *server*: the full name where it fits, else a short alias of it."""
    full = f"{server}{SEPARATOR}{name}" if style == "prefixed" else name
    if _FITS.fullmatch(full):
        return full
    digest = hashlib.sha256(f"{server}\x00{name}".encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST_LENGTH]
    readable = re.sub(r"[^A-Za-z0-9_-]", "_", full)[: NAME_LIMIT - _DIGEST_LENGTH - 1]
    return f"{readable}_{digest}"


def server_of(public: str) -> str | None:
    """Return the server part of a prefixed name; None where there is none."""
    server, separator, rest = public.partition(SEPARATOR)
    return server if separator and rest and is_server_name(server) else None


def scheme_of(uri: str) -> str:
    """Return the scheme of a URI or URI template in lower case; empty where there is none."""
    scheme, colon, _ = uri.partition(":")
    return scheme.lower() if colon and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme) else ""


def is_marked(uri: str) -> bool:
    """Whether *uri* begins like one of ours; such a URI of a server is always marked again, so it cannot pretend."""
    return uri.lower().startswith(_MARK)


def marked_uri(server: str, uri: str) -> str:
    """Return *uri* with its server in front. `_` may not stand in a URI scheme; `.` is not in server names."""
    return f"{_MARK}{server.replace('_', '.')}+{uri}"


def unmarked_uri(uri: str) -> tuple[str | None, str]:
    """Return (server, its own URI) of a marked URI, or (None, *uri*) of any other."""
    found = _MARKED.fullmatch(uri)
    if found is None or not is_server_name(found[1].replace(".", "_")):
        return None, uri
    return found[1].replace(".", "_"), found[2]


_EXPRESSION = re.compile(r"\{([^{}]*)\}")
# what may not stand in the expansion of an expression, by its operator (RFC 6570, section 3.2)
_STOPS = {"+": "", "#": "", "/": "?#", "?": "#", "&": "#", ".": "/?#", ";": "/?#"}


def is_canonical_uri(uri: str) -> bool:
    """Whether *uri* is spelled the one way that a server's normalisation would leave alone (RFC 3986, section 6.2.2).

    What a template matches is decided by its spelling; another spelling of a resource must not be another decision.
    """
    if not uri.isprintable() or " " in uri or "\\" in uri:
        return False
    scheme = uri.partition(":")[0]
    if scheme != scheme.lower():
        return False
    for code in re.findall(r"%(.{0,2})", uri):
        if not re.fullmatch(r"[0-9A-F]{2}", code) or chr(int(code, 16)) in _UNRESERVED:
            return False
    path = re.split(r"[?#]", uri, maxsplit=1)[0]
    return not any(segment in (".", "..") for segment in path.split("/"))


def template_matches(template: str, uri: str) -> bool:
    """Whether *uri* can be an expansion of *template* (RFC 6570).

    `{var}` stands for one or more characters other than `/`, `?` and `#`, `{+var}` for any. Takes time proportional
    to both lengths, whatever they hold: all ends that the parts so far can reach are followed at once.
    """
    if len(uri) > URI_LIMIT or len(template) > URI_LIMIT:
        return False
    ends = {0}
    last = 0
    for expression in _EXPRESSION.finditer(template):
        ends = _after_literal(ends, template[last : expression.start()], uri)
        ends = _after_expression(ends, expression[1], uri)
        last = expression.end()
        if not ends:
            return False
    return len(uri) in _after_literal(ends, template[last:], uri)


def _after_literal(ends: set[int], literal: str, uri: str) -> set[int]:
    return {end + len(literal) for end in ends if uri.startswith(literal, end)}


def _after_expression(ends: set[int], expression: str, uri: str) -> set[int]:
    operator = expression[:1] if expression[:1] in _STOPS else ""
    stops = _STOPS.get(operator, "/?#")
    reached = set() if operator in ("", "+") else set(ends)  # the other operators vanish with their variables
    running = False
    for position, character in enumerate(uri):
        running = running or (position in ends and (operator in ("", "+") or character == operator))
        if running and character in stops and not (position in ends and character == operator):
            running = False
        if running:
            reached.add(position + 1)
    return reached
