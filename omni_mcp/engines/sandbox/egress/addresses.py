"""Addresses: which ones a name may lead to. What is not plainly public is refused, also inside another address."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Iterator

from omni_mcp.engines.sandbox.egress.target import Address

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# IANA special-purpose address registries; written out, since `is_global` differs between versions of Python.
_SPECIAL_V4 = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
_UNICAST_V6 = ipaddress.IPv6Network("2000::/3")
_6TO4 = ipaddress.IPv6Network("2002::/16")
_TEREDO = ipaddress.IPv6Network("2001::/32")
_SPECIAL_V6 = (
    ipaddress.IPv6Network("2001::/23"),
    ipaddress.IPv6Network("2001:db8::/32"),
    _6TO4,
    ipaddress.IPv6Network("3fff::/20"),
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_COMPATIBLE = ipaddress.IPv6Network("::/96")

# Where clouds hand out the machine's own credentials (AWS, ECS, EKS, Alibaba, Oracle, Azure, Google).
_METADATA: frozenset[Address] = frozenset(
    ipaddress.ip_address(text)
    for text in (
        "169.254.169.254",
        "169.254.170.2",
        "169.254.170.23",
        "100.100.100.200",
        "192.0.0.192",
        "168.63.129.16",
        "fd00:ec2::254",
        "fd00:ec2::23",
        "fd20:ce::254",
    )
)
_BROADCAST = ipaddress.IPv4Address("255.255.255.255")


def parse_address(text: str) -> Address | None:
    """Return the address, an IPv4-mapped one as IPv4; None when it is none, or holds for one interface only."""
    if "%" in text:
        return None
    try:
        return fold(ipaddress.ip_address(text))
    except ValueError:
        return None


def fold(address: Address) -> Address:
    """Return the IPv4 address that an IPv4-mapped one stands for, and any other as it is."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def is_public(address: Address) -> bool:
    """Whether packets to *address* leave for the public internet and nowhere else.

    NAT64 addresses (RFC 6052) count by the IPv4 address inside. 6to4, Teredo, IPv4-compatible and local-use NAT64
    addresses are never public: no server lives there, and what is inside can be private.
    """
    address = fold(address)
    if address in _METADATA:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _SPECIAL_V4)
    if address in _NAT64:
        return is_public(_last_32_bits(address))
    return address in _UNICAST_V6 and not any(address in network for network in _SPECIAL_V6)


def may_be_dialled(address: Address, networks: Iterable[Network]) -> bool:
    """Whether a name may lead to *address*: public and not this machine's, or in one of the operator's *networks*.

    A wide network does not include the metadata services in it: those want a network of one address, or a literal.
    """
    address = fold(address)
    networks = tuple(networks)
    if any(_is_never_a_host(each) or _is_metadata(each, networks) for each in (address, *_inside(address))):
        return False
    return any(address in network for network in networks) or (is_public(address) and not is_own(address))


def is_own(address: Address) -> bool:
    """Whether *address* is one of this machine's. Asks the routing table; sends nothing."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(address), 9))
            return ipaddress.ip_address(probe.getsockname()[0]) == address
    except OSError:  # no way to it
        return False


def _is_never_a_host(address: Address) -> bool:
    return address.is_unspecified or address.is_multicast or address == _BROADCAST


def _is_metadata(address: Address, networks: tuple[Network, ...]) -> bool:
    granted = any(network.num_addresses == 1 and address in network for network in networks)
    return address in _METADATA and not granted


def _inside(address: Address) -> Iterator[Address]:
    if isinstance(address, ipaddress.IPv4Address):
        return
    if address in _NAT64 or (address in _COMPATIBLE and int(address) > 1):
        yield _last_32_bits(address)
    if address in _6TO4:
        yield ipaddress.IPv4Address(int(address) >> 80 & 0xFFFFFFFF)
    if address in _TEREDO:
        yield ipaddress.IPv4Address(~int(address) & 0xFFFFFFFF)


def _last_32_bits(address: Address) -> ipaddress.IPv4Address:
    return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
