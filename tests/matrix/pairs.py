"""Every end that a client or a server can be: a version and a transport; a pair of ends is one line of the matrix."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

from omni_mcp.protocol.eras import KNOWN_VERSIONS, MODERN_VERSIONS

Transport = Literal["stdio", "http", "sse"]
# The versions that define a transport: 2024-11-05 has stdio and HTTP+SSE; 2025-03-26 put Streamable HTTP in its place.
TRANSPORTS: dict[Transport, tuple[str, ...]] = {
    "stdio": KNOWN_VERSIONS,
    "http": KNOWN_VERSIONS[1:],
    "sse": KNOWN_VERSIONS[:1],
}


@dataclass(frozen=True, slots=True, order=True)
class End:
    """One version over one transport; `made` says what it is made with, if not by hand."""

    version: str
    transport: Transport
    made: str = ""

    def __str__(self) -> str:
        return f"{self.version}/{self.transport}{'/' if self.made else ''}{self.made}"

    @property
    def name(self) -> str:
        """As the name of a server."""
        return f"s{self.version.replace('-', '')}{self.transport}{self.made}"

    @property
    def modern(self) -> bool:
        """Whether it speaks the modern era."""
        return self.version in MODERN_VERSIONS


@dataclass(frozen=True, slots=True, order=True)
class Pair:
    """A client's end and a server's."""

    client: End
    server: End

    def __str__(self) -> str:
        return f"{self.client} -> {self.server}"


ENDS = tuple(sorted(End(version, transport) for transport, versions in TRANSPORTS.items() for version in versions))
PAIRS = tuple(Pair(client, server) for client, server in itertools.product(ENDS, ENDS))


def fast_pairs() -> list[Pair]:
    """Return a few pairs that hold each end on either side once, and each pair of eras more than once."""
    turned = ENDS[3:] + ENDS[:3]
    eras = {(True, True), (True, False), (False, True)}
    chosen = {Pair(client, server) for client, server in zip(ENDS, turned, strict=True)}
    for modern_client, modern_server in sorted(eras):
        fit = [p for p in PAIRS if (p.client.modern, p.server.modern) == (modern_client, modern_server)]
        chosen |= {fit[0], fit[-1]}
    return sorted(chosen)
