"""Requests to the proxy: what a request head asks for, and the head that goes to the host in its place."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from omni_mcp.contracts.sandbox import Credential
from omni_mcp.engines.sandbox.egress.head import (
    Framing,
    Malformed,
    RequestHead,
    end_to_end,
    framing_of,
    read_fields,
    read_request_line,
    render,
    values_of,
)
from omni_mcp.engines.sandbox.egress.target import Target, parse_target

_ABSOLUTE = re.compile(r"(https?)://([^/?]*)([/?].*)?", re.IGNORECASE)
_PORTS = {"http": 80, "https": 443}
_ECHOES = frozenset(("TRACE", "TRACK"))  # they send a credential of ours back to the job


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyRequest:
    """`scheme` is `http`, `https`, or empty for CONNECT, which has no `path` and no body."""

    method: str
    scheme: str
    target: Target
    path: str
    head: RequestHead
    framing: Framing

    @property
    def waits_for_continue(self) -> bool:
        """Whether the job holds the body back until it is told to go on."""
        has_body = self.framing.chunked or bool(self.framing.length)
        return has_body and self.head.minor == 1 and bool(values_of(self.head.fields, "expect"))

    def upstream_head(self, credentials: Iterable[Credential]) -> bytes:
        """Return the head for the host: origin form, `Host` the target, *credentials* in place of the job's fields."""
        credentials = tuple(credentials)
        ours = {"host", *(_folded(each.header) for each in credentials)}
        fields = [(name, value) for name, value in end_to_end(self.head.fields) if _folded(name) not in ours]
        fields.insert(0, ("host", self.target.authority(default_port=_PORTS[self.scheme])))
        fields += [(each.header, each.value) for each in credentials]
        return render(f"{self.method} {self.path} HTTP/1.1", tuple(fields), self.framing)


async def read_request(reader: asyncio.StreamReader, *, seen: Callable[[str, str, int], None]) -> ProxyRequest:
    """Read a request head.

    Args:
        reader: the job's side.
        seen: told the method, the host and the port as soon as they can be told, whatever becomes of the request.

    Raises:
        Malformed: it is no request to a proxy, or one that two readers could understand differently.
        EOFError: the job closed before the end.
    """
    line = await read_request_line(reader)
    scheme, authority, path = _parts(line)
    seen(line.method, *_shown(authority, _PORTS.get(scheme, 0)))
    if line.method.upper() in _ECHOES:
        raise Malformed("method")
    target = _target(authority, 0 if line.method == "CONNECT" else _PORTS[scheme])
    head = replace(line, fields=await read_fields(reader))
    _check_host(head, target, _PORTS.get(scheme, 443))
    _check_wishes(head)
    framing = framing_of(head.fields, minor=head.minor)
    if not scheme and framing != Framing():
        raise Malformed("CONNECT with a body")
    return ProxyRequest(method=line.method, scheme=scheme, target=target, path=path, head=head, framing=framing)


def _parts(line: RequestHead) -> tuple[str, str, str]:
    if line.method == "CONNECT":
        return "", line.target, ""
    found = _ABSOLUTE.fullmatch(line.target)
    if found is None or "\\" in line.target or "#" in line.target:
        raise Malformed("target")
    scheme, authority, path = found.groups()
    path = path or "/"
    return scheme.lower(), authority, path if path.startswith("/") else f"/{path}"


def _shown(authority: str, default_port: int) -> tuple[str, int]:
    """What stands in the record: never the userinfo, and text that is no target as far as it goes."""
    authority = authority.rpartition("@")[2]
    try:
        target = parse_target(authority, default_port=default_port)
    except ValueError:
        return authority, default_port
    return target.host, target.port


def _target(authority: str, default_port: int) -> Target:
    try:
        return parse_target(authority, default_port=default_port)
    except ValueError as error:
        raise Malformed("authority") from error


def _check_host(head: RequestHead, target: Target, default_port: int) -> None:
    hosts = values_of(head.fields, "host")
    if len(hosts) > 1 or (not hosts and head.minor == 1):
        raise Malformed("not one host field")
    if hosts and _target(hosts[0], default_port) != target:
        raise Malformed("host field of another host")


def _check_wishes(head: RequestHead) -> None:
    if values_of(head.fields, "upgrade"):
        raise Malformed("upgrade")
    if any(value.lower() != "100-continue" for value in values_of(head.fields, "expect")):
        raise Malformed("expectation")


def _folded(name: str) -> str:
    """Servers that hand fields on as variables do not tell these apart."""
    return name.lower().replace("_", "-")
