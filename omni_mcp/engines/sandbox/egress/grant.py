"""The grant: which hosts a job may reach, where their names may lead, and which secrets go along."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field

from omni_mcp.contracts.sandbox import Credential
from omni_mcp.engines.sandbox.egress.addresses import Network, may_be_dialled
from omni_mcp.engines.sandbox.egress.target import Address, Target, parse_target

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}")  # RFC 9110, 5.6.2
_PRINTABLE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?")
_NOT_FOR_CREDENTIALS = frozenset(
    ("host", "connection", "content-length", "transfer-encoding", "te", "trailer", "upgrade", "expect", "keep-alive")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressGrant:
    """What one job may reach.

    Args:
        hosts: `name:port`, `*.suffix:port` (any name below the suffix, not the suffix itself), `192.0.2.1:port` or
            `[2001:db8::1]:port`. The port is never left out. An address in a grant is dialled whatever it is.
        networks: ranges that are not public and that a granted name may lead to all the same.
        credentials: each for one exact `host:port`.

    Raises:
        ValueError: one of them cannot be understood, or is wider than anybody means.
    """

    hosts: tuple[str, ...]
    networks: tuple[str, ...] = ()
    credentials: tuple[Credential, ...] = ()
    _rules: tuple[_Rule, ...] = field(init=False, repr=False, compare=False)
    _networks: tuple[Network, ...] = field(init=False, repr=False, compare=False)
    _secrets: tuple[tuple[Target, Credential], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_rules", tuple(_rule(text) for text in self.hosts))
        object.__setattr__(self, "_networks", tuple(_network(text) for text in self.networks))
        object.__setattr__(self, "_secrets", tuple((_owner(each), each) for each in self.credentials))

    def covers(self, target: Target) -> bool:
        """Whether the job may reach *target* at all."""
        return any(rule.covers(target) for rule in self._rules)

    def may_lead_to(self, address: Address) -> bool:
        """Whether *address* may be dialled for a name that is covered."""
        return may_be_dialled(address, self._networks)

    def credentials_for(self, target: Target) -> tuple[Credential, ...]:
        """Return the headers that go along with a request to *target*."""
        return tuple(credential for owner, credential in self._secrets if owner == target)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    target: Target
    below: bool

    def covers(self, target: Target) -> bool:
        if not self.below:
            return target == self.target
        return (
            target.address is None and target.port == self.target.port and target.host.endswith(f".{self.target.host}")
        )


def _rule(text: str) -> _Rule:
    below = text.startswith("*.")
    try:
        target = parse_target(text.removeprefix("*."))
    except ValueError as error:
        raise ValueError(f"{text!r} is no host with a port: {error}") from error
    if target.address is not None and below:
        raise ValueError(f"{text!r}: there is nothing below an address")
    if target.address is not None and (target.address.is_unspecified or target.address.is_multicast):
        raise ValueError(f"{text!r} is the address of no single host")
    return _Rule(target=target, below=below)


def _network(text: str) -> Network:
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is no address range such as 10.1.0.0/16: {error}") from error
    if network.prefixlen == 0:
        raise ValueError(f"{text!r} is every address there is")
    if isinstance(network, ipaddress.IPv6Network) and network.network_address.ipv4_mapped is not None:
        raise ValueError(f"{text!r}: write IPv4 addresses as IPv4")
    return network


def _owner(credential: Credential) -> Target:
    try:
        owner = parse_target(credential.host)
    except ValueError as error:
        raise ValueError(f"credential for {credential.host!r}: no exact host with a port: {error}") from error
    if not _TOKEN.fullmatch(credential.header) or credential.header.lower() in _NOT_FOR_CREDENTIALS:
        raise ValueError(f"credential for {credential.host!r}: {credential.header!r} is no header for a credential")
    if not _PRINTABLE.fullmatch(credential.value):
        raise ValueError(f"credential for {credential.host!r}: the value is empty or not printable ASCII")
    return owner
