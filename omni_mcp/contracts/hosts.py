"""A host that a call may reach, written `name:port`: how it is read from a URL, and which patterns cover it.

One spelling per host: lower case ASCII, IP addresses in their canonical form, no trailing dot, the port always there.
What can be written in two ways is refused, so that a person, the policy and the proxy cannot read it differently.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address

NO_HOST = "invalid:0"  # stands for a URL that names no host; nothing is dispatched with it and no pattern covers it

_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9a-f:.]{2,45}\]|[a-z0-9._-]{1,253})(?::(?P<port>[0-9]{1,5}))?"
    r"(?:[/?#][!-\[\]-~]*)?",  # printable ASCII without space and backslash
    re.IGNORECASE | re.ASCII,
)
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # a last label like this makes a name an IPv4 address (WHATWG URL, 3.5)
_DEFAULT_PORTS = {"http": 80, "https": 443}


def host_of_url(url: object) -> str:
    """Return the `name:port` that an http or https URL points to; `NO_HOST` for anything else or anything odd.

    Odd are: user information, characters beyond ASCII, a backslash, a space, an IP address that is not in its
    canonical form, a trailing dot.
    """
    found = _URL.fullmatch(url) if isinstance(url, str) else None
    if found is None:
        return NO_HOST
    name = found["host"].lower()
    port = int(found["port"]) if found["port"] else _DEFAULT_PORTS[found["scheme"].lower()]
    return f"{name}:{port}" if _is_name(name) and 0 < port < 65536 else NO_HOST


def check_host(text: str) -> str:
    """Return *text* if it is a host as a grant may name it: `name:port`, or `*.suffix:port` for every name below it.

    Raises:
        ValueError: it is not, or not spelled in its one way.
    """
    name, _, port = text.rpartition(":")
    plain = name.removeprefix("*.")
    if not _is_name(plain) or (plain != name and (plain.startswith("[") or _is_number(plain))):
        raise ValueError(f"{text!r} is no host: write name:port or *.suffix:port, in lower case")
    if not re.fullmatch(r"[1-9][0-9]{0,4}", port, re.ASCII) or int(port) > 65535:
        raise ValueError(f"{text!r} has no port: write name:port, such as api.example.org:443")
    return text


def check_exact_host(text: str) -> str:
    """Return *text* if it is one single host, `name:port`.

    Raises:
        ValueError: it is not, or a pattern.
    """
    if text.startswith("*"):
        raise ValueError(f"{text!r} is a pattern; one exact host is needed here")
    return check_host(text)


def is_covered(host: str, patterns: Iterable[str]) -> bool:
    """Whether *host*, which may be a pattern itself, lies within one of *patterns*. `*.suffix` is not `suffix`."""
    return any(pattern == host or (pattern[:2] == "*." and host.endswith(pattern[1:])) for pattern in patterns)


def _is_name(name: str) -> bool:
    if name.startswith("["):
        return name.endswith("]") and _is_canonical_v6(name[1:-1])
    if _is_number(name):
        return _is_canonical_v4(name)
    return len(name) <= 253 and all(_LABEL.fullmatch(label) for label in name.split("."))


def _is_number(name: str) -> bool:
    return _NUMBER.fullmatch(name.rpartition(".")[2]) is not None


def _is_canonical_v4(text: str) -> bool:
    try:
        address = IPv4Address(text)
    except ValueError:
        return False
    return str(address) == text and _is_of_one_host(address)


def _is_canonical_v6(text: str) -> bool:
    """An IPv4 address within IPv6 has two spellings, so it is none."""
    try:
        address = IPv6Address(text)
    except ValueError:
        return False
    plain = address.ipv4_mapped is None and address.scope_id is None
    return str(address) == text and plain and _is_of_one_host(address)


def _is_of_one_host(address: IPv4Address | IPv6Address) -> bool:
    return not (address.is_unspecified or address.is_multicast)
