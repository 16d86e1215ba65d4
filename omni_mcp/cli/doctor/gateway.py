"""The gateway itself: whether it runs, or could, and whether any client could get in."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

from omni_mcp.cli.doctor.finding import Finding, Level, Patient, faults
from omni_mcp.config import Settings
from omni_mcp.contracts.errors import ConfigError
from omni_mcp.daemon.address import is_loopback
from omni_mcp.engines.identity.keys import read_keys


def check_gateway(patient: Patient) -> Iterator[Finding]:
    """Whether one runs, else whether its port is free; and whether any client could get in."""
    facts = patient.gateway
    if facts["running"]:
        yield Finding(name="gateway", level="ok", text=f"process {facts.get('pid')} at {facts.get('url', 'stdio')}")
    elif "pid" in facts:
        yield Finding(
            name="gateway", level="fail", text=facts["next"], next=f"look at its log, or: kill {facts['pid']}"
        )
    else:
        yield Finding(name="gateway", level="ok", text="not running; a client or `omni-mcp serve` starts it")
        yield from _port_findings(patient.settings)
    try:
        valid = sum(key.holds_at(time.time_ns()) for key in read_keys(patient.home.keys_file))
    except ConfigError as error:
        yield from faults("tokens", error)
        return
    hint = "" if valid else "the first `omni-mcp serve` makes one; so does `omni-mcp keys create NAME`"
    yield Finding(name="tokens", level="ok" if valid else "warn", text=f"{valid} valid", next=hint)


def try_port(host: str, port: int) -> None:
    """Bind the address for an instant.

    Raises:
        OSError: it cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))


def _port_findings(settings: Settings | None) -> Iterator[Finding]:
    if settings is None:
        return
    server = settings.server
    try:
        try_port(server.host, server.port)
    except OSError as error:
        text = f"cannot listen on {server.host}:{server.port}: {error.strerror}"
        yield Finding(name="port", level="fail", text=text, next="set server.port in omni.toml, or use --port")
    else:
        yield Finding(name="port", level="ok", text=f"{server.host}:{server.port} is free")
    if not is_loopback(server.host):
        level: Level = "ok" if server.behind_proxy else "fail"
        hint = "" if server.behind_proxy else "put a proxy that ends TLS in front and set server.behind_proxy = true"
        yield Finding(name="address", level=level, text=f"{server.host} can be reached from outside", next=hint)
