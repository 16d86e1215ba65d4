"""Targets: which host and port a text names, read so strictly that there is only one way to understand it."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

MOST_HOST_CHARACTERS = 253  # RFC 1035, 2.3.4, without the final dot
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_INSIDE_BRACKETS = re.compile(r"[0-9a-f:.]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A host in lower case, an IPv6 address without brackets, and a port. `address` is set for a literal."""

    host: str
    port: int
    address: Address | None = None

    def authority(self, *, default_port: int = 0) -> str:
        """Return `host:port`, or `host` alone where the port goes without saying."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == default_port else f"{host}:{self.port}"


def parse_target(text: str, *, default_port: int = 0) -> Target:
    """Read `host`, `host:port` or `[address]:port`.

    Raises:
        ValueError: it is no such text, could be understood in two ways (an IPv4 address in octal, in hexadecimal, in
            fewer than four parts, or inside an IPv6 address), or the port is missing and there is no *default_port*.
    """
    host, port_text = _split(text.lower() if text.isascii() else "")
    if port_text is None and default_port:
        port = default_port
    elif port_text is not None and _PORT.fullmatch(port_text) and int(port_text) < 1 << 16:
        port = int(port_text)
    else:
        raise ValueError("the port is missing or no number from 1 to 65535")
    address = _literal(host)
    return Target(host=host if address is None else str(address), port=port, address=address)


def _split(text: str) -> tuple[str, str | None]:
    if not text.startswith("["):
        host, colon, port = text.partition(":")
        return host, port if colon else None
    inside, closed, rest = text[1:].partition("]")
    if not closed or (rest and not rest.startswith(":")) or ":" not in inside:
        raise ValueError("the brackets do not hold an IPv6 address")
    return inside, rest[1:] if rest else None


def _literal(host: str) -> Address | None:
    if ":" in host:
        if not _INSIDE_BRACKETS.fullmatch(host):
            raise ValueError("the brackets do not hold an IPv6 address")
        address = ipaddress.IPv6Address(host)
        if address.ipv4_mapped is not None:
            raise ValueError("an IPv4 address inside an IPv6 address is ambiguous")
        return address
    labels = host.split(".")
    if len(host) > MOST_HOST_CHARACTERS or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError("not a host name in ASCII without a final dot")
    return ipaddress.IPv4Address(host) if _NUMBER.fullmatch(labels[-1]) else None
