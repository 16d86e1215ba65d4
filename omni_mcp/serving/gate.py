"""Gate: what every HTTP request passes before any route sees it: Host, Origin, and who is asking."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.ports import Identities


@dataclass(frozen=True, slots=True)
class Stop:
    """A refusal: HTTP status, what the client reads, and the word for the record."""

    status: int
    detail: str
    reason: str
    headers: tuple[tuple[bytes, bytes], ...] = ()


BAD_HOST = Stop(421, "this Host is not served here; the operator lists hosts in omni.toml", "bad_host")
BAD_ORIGIN = Stop(403, "this Origin may not send requests here; the operator lists origins in omni.toml", "bad_origin")
TWO_CREDENTIALS = Stop(400, "Authorization and X-API-Key differ: send one of them", "two_credentials")
NO_TOKEN = Stop(
    401, "send Authorization: Bearer TOKEN or X-API-Key: TOKEN; `omni-mcp keys create NAME` makes one",
    "unauthenticated", ((b"www-authenticate", b'Bearer realm="omni-mcp"'),),
)  # fmt: skip


class Gate:
    """Checks headers against exact lists. An absent Origin may pass: programs send none, browsers cannot omit it."""

    def __init__(self, identities: Identities, *, hosts: Iterable[str], origins: Iterable[str] = ()) -> None:
        self._identities = identities
        self._hosts = frozenset(host.lower() for host in hosts)
        self._origins = frozenset(origin.lower() for origin in origins)

    def check_sender(self, headers: dict[str, str]) -> Stop | None:
        """Refuse a request for another host (DNS rebinding), from a web page that is not listed, or of two senders."""
        if headers.get("host", "").lower() not in self._hosts:
            return BAD_HOST
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in self._origins:
            return BAD_ORIGIN
        if origin is None and headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return BAD_ORIGIN
        return TWO_CREDENTIALS if "x-api-key" in headers and _are_two(headers) else None

    def principal_of(self, headers: dict[str, str]) -> Principal | None:
        """Return who sent the request; None without a valid token."""
        token = headers.get("x-api-key")
        if token is None:
            scheme, _, token = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer":
                return None
        token = token.strip()
        return self._identities.principal_of(token) if token else None


def _are_two(headers: dict[str, str]) -> bool:
    """Whether both ways to send a token are used, for two different ones."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return scheme.lower() == "bearer" and token.strip() != headers["x-api-key"].strip()


def local_hosts(port: int) -> tuple[str, ...]:
    """Return the Host values of a gateway that listens on loopback."""
    return (f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}")


def local_origins(port: int) -> tuple[str, ...]:
    """Return the Origin values of pages that the gateway itself serves on loopback."""
    return tuple(f"http://{host}" for host in local_hosts(port))
