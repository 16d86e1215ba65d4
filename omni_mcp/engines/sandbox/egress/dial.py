"""Dialling: from a granted target to a connected host; the address that was checked is the one that is dialled."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from omni_mcp.engines.sandbox.egress.addresses import is_public, parse_address
from omni_mcp.engines.sandbox.egress.attempt import Attempt
from omni_mcp.engines.sandbox.egress.ending import Ended
from omni_mcp.engines.sandbox.egress.grant import EgressGrant
from omni_mcp.engines.sandbox.egress.limits import EgressLimits
from omni_mcp.engines.sandbox.egress.stream import Stream, deadline
from omni_mcp.engines.sandbox.egress.target import Address, Target
from omni_mcp.engines.sandbox.egress.trust import Trust

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]  # a name and a port to addresses as text

_MOST_ADDRESSES = 8
_ONE_ADDRESS_S = 3.0  # for all but the last one


@dataclass(frozen=True, slots=True, kw_only=True)
class Outside:
    """The world as one job may see it."""

    grant: EgressGrant
    limits: EgressLimits
    resolve: Resolve
    trust: Trust


async def dial(target: Target, *, outside: Outside, attempt: Attempt, secure: bool, clear_secret: bool) -> Stream:
    """Connect to *target*, which the grant covers; with *secure*, as a TLS client that checks its certificate.

    Args:
        target: whom to reach.
        outside: the rules and the means.
        attempt: told the address.
        secure: whether we speak TLS ourselves.
        clear_secret: whether a credential will go over the connection without TLS of ours, which no public address
            may see.

    Raises:
        Ended: it cannot be resolved, may not be dialled, cannot be reached, shows no valid certificate, or took longer
            than `connect_s`.
    """
    async with deadline(outside.limits.connect_s):
        addresses = await _addresses(target, outside)
        if clear_secret and any(is_public(address) for address in addresses):
            raise Ended("credential_needs_tls")
        tls = await outside.trust.get_context() if secure else None
        sock = await _connect(addresses, target.port, attempt)
        try:
            return await Stream.over(sock, tls=tls, host=target.host)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError; a name that TLS cannot carry a ValueError
            sock.close()
            raise Ended("tls_failed") from error
        except BaseException:
            sock.close()
            raise


async def _addresses(target: Target, outside: Outside) -> list[Address]:
    if target.address is not None:
        return [target.address]
    try:
        answer = await outside.resolve(target.host, target.port)
    except (OSError, UnicodeError) as error:
        raise Ended("not_resolved") from error
    if not answer:
        raise Ended("not_resolved")
    found = [address for text in answer if (address := parse_address(text)) is not None]
    allowed = [address for address in dict.fromkeys(found) if outside.grant.may_lead_to(address)]
    if not allowed:
        raise Ended("private_address")
    return allowed[:_MOST_ADDRESSES]


async def _connect(addresses: list[Address], port: int, attempt: Attempt) -> socket.socket:
    for address in addresses:
        attempt.address = str(address)
        with contextlib.suppress(OSError):  # a time-out, too
            async with asyncio.timeout(None if address == addresses[-1] else _ONE_ADDRESS_S):
                return await _connect_to(address, port)
    raise Ended("unreachable")


async def _connect_to(address: Address, port: int) -> socket.socket:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # asyncio: no delay for TCP only
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (str(address), port))
    except BaseException:
        sock.close()
        raise
    return sock
