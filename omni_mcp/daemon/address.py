"""Where a gateway may listen, and how that is written."""

from __future__ import annotations

import ipaddress

from omni_mcp.config import ServerSettings
from omni_mcp.contracts.errors import ConfigError, Problem


def check_address(server: ServerSettings) -> None:
    """Refuse an address that others can reach, unless a proxy in front ends TLS.

    A token is always needed; without TLS it would cross the network in the clear.

    Raises:
        ConfigError: the address is not a loopback one.
    """
    if server.behind_proxy or is_loopback(server.host):
        return
    raise ConfigError(
        [
            Problem(
                file="omni.toml", line=0, path="$.server.host",
                message=f"{server.host} can be reached from outside and this gateway speaks plain HTTP; put a proxy "
                "that ends TLS in front and say so with --behind-proxy, or listen on 127.0.0.1",
            )
        ]
    )  # fmt: skip


def is_loopback(host: str) -> bool:
    """Whether *host* can only be reached from this machine. Names other than `localhost` are not asked for."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def cannot_listen(server: ServerSettings, error: OSError) -> ConfigError:
    """Return what a person is told of an address that cannot be had."""
    message = f"cannot listen on {server.host}:{server.port}: {error.strerror}; choose another with --port (0 for any)"
    return ConfigError([Problem(file="omni.toml", line=0, path="$.server.port", message=message)])


def url_host(host: str) -> str:
    """Return *host* as it stands in a URL."""
    return f"[{host}]" if ":" in host else host
