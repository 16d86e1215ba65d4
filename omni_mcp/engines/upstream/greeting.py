"""Greeting: which era a server speaks, and the handshake with one that has it.

`server/discover` goes first. Whatever is no modern answer, or no answer in time, means the handshake era; then
`initialize` follows on the same wire, and a discovery that still comes counts (a server that is slow to start).
"""

from __future__ import annotations

import asyncio

from omni_mcp.contracts.call import Era
from omni_mcp.contracts.json import JsonObject
from omni_mcp.engines.upstream.envelope import DECLARED, LOWEST_LEVEL, ClientInfo
from omni_mcp.engines.upstream.faults import DiedOnProbe, Garbled, GreetingFailed, RemoteError
from omni_mcp.engines.upstream.peer import Peer
from omni_mcp.engines.upstream.talk import Talk
from omni_mcp.engines.upstream.wire.seam import WireFault
from omni_mcp.protocol.eras import HANDSHAKE_VERSIONS, LATEST_HANDSHAKE, META_SERVER, MODERN_VERSIONS
from omni_mcp.protocol.rpc import UNSUPPORTED_VERSION

PROBE_S = 2.0
GREETING_S = 30.0  # a package runner may have to download the server first
INSTRUCTIONS_LIMIT = 16 * 1024
NO_ENTRY = (401, 403, 407)


async def greet(
    talk: Talk, *, info: ClientInfo, remembered: Era | None, probe_s: float = PROBE_S, timeout_s: float = GREETING_S
) -> Peer:
    """Agree with the server on a version; *talk* is ready for requests afterwards.

    Raises:
        DiedOnProbe: it ended when it was probed.
        GreetingFailed: it speaks none of our versions, or refuses.
        WireFault: it cannot be reached, or has gone.
        TimeoutError: it does not answer.
    """
    async with asyncio.timeout(timeout_s):
        probe = None if remembered == "handshake" else asyncio.create_task(_discover(talk, timeout_s))
        try:
            if probe is not None:
                await asyncio.wait({probe}, timeout=probe_s)
                if probe.done() and (peer := probe.result()) is not None:
                    return _settled(talk, peer)
            peer = await _either(probe, asyncio.create_task(_initialize(talk, info, timeout_s)))
        finally:
            if probe is not None:
                probe.cancel()
                await asyncio.gather(probe, return_exceptions=True)
        _settled(talk, peer)
        if peer.era == "handshake":
            await _finish(talk)
        return peer


async def _either(probe: asyncio.Task[Peer | None] | None, hello: asyncio.Task[Peer]) -> Peer:
    """Return what comes first: the handshake, or the late answer of a modern server that then refuses it."""
    try:
        if probe is not None and not probe.done():
            await asyncio.wait({probe, hello}, return_when=asyncio.FIRST_COMPLETED)
            refused = hello.done() and hello.exception() is not None
            if refused and isinstance(hello.exception(), GreetingFailed):
                await asyncio.wait({probe})
            if probe.done() and not (hello.done() and hello.exception() is None):
                late = probe.result()
                if late is not None:
                    return late
        return await hello
    finally:
        hello.cancel()
        await asyncio.gather(hello, return_exceptions=True)


async def _discover(talk: Talk, timeout_s: float) -> Peer | None:
    """Return the modern peer; None for whatever is none.

    A server that refuses the version and names it among those that it serves is asked once more (MCP 2026-07-28,
    basic/versioning).
    """
    try:
        try:
            result = await talk.request("server/discover", timeout_s=timeout_s, era="modern")
        except RemoteError as error:
            if not _serves_ours(error):
                return None
            result = await talk.request("server/discover", timeout_s=timeout_s, era="modern")
    except (RemoteError, Garbled, TimeoutError):
        return None
    except WireFault as fault:
        if talk.ended.is_set():
            raise DiedOnProbe from fault
        if fault.status is None or fault.status in NO_ENTRY:
            raise
        return None
    if not _holds_ours(result.get("supportedVersions")):
        return None
    meta = result.get("_meta")
    found = meta.get(META_SERVER) if isinstance(meta, dict) else None
    return _peer("modern", MODERN_VERSIONS[-1], result, found)


def _serves_ours(error: RemoteError) -> bool:
    data = error.data
    return error.code == UNSUPPORTED_VERSION and isinstance(data, dict) and _holds_ours(data.get("supported"))


def _holds_ours(versions: object) -> bool:
    return isinstance(versions, list) and any(version in versions for version in MODERN_VERSIONS)


async def _initialize(talk: Talk, info: ClientInfo, timeout_s: float) -> Peer:
    asked = {"protocolVersion": LATEST_HANDSHAKE, "capabilities": DECLARED, "clientInfo": info.wire()}
    try:
        result = await talk.request("initialize", asked, timeout_s=timeout_s, era="handshake")
    except RemoteError as error:
        raise GreetingFailed(f"initialize was refused: {error}") from error
    except Garbled as error:
        raise GreetingFailed(f"initialize was answered with junk: {error.reason}") from error
    except WireFault as fault:
        if fault.status is not None:
            raise GreetingFailed(fault.reason, status=fault.status) from fault
        raise
    version = result.get("protocolVersion")
    if version not in HANDSHAKE_VERSIONS:
        raise GreetingFailed(f"the server speaks {str(version)[:64]!r}, which is no version of ours")
    return _peer("handshake", str(version), result, result.get("serverInfo"))


def _peer(era: Era, version: str, result: JsonObject, info: object) -> Peer:
    capabilities, instructions = result.get("capabilities"), result.get("instructions")
    return Peer(
        era=era,
        version=version,
        capabilities=capabilities if isinstance(capabilities, dict) else {},
        info=info if isinstance(info, dict) else {},
        instructions=instructions[:INSTRUCTIONS_LIMIT] if isinstance(instructions, str) else "",
    )


def _settled(talk: Talk, peer: Peer) -> Peer:
    talk.peer = peer
    talk.wire.settle(peer.era, peer.version)
    return peer


async def _finish(talk: Talk) -> None:
    await talk.notify("notifications/initialized")
    talk.wire.stand()
    if talk.peer.has("logging"):
        try:
            await talk.request("logging/setLevel", {"level": LOWEST_LEVEL}, timeout_s=5.0)
        except (RemoteError, Garbled, TimeoutError):
            return  # then it sends what it likes
        except WireFault as fault:
            if talk.ended.is_set():
                raise
            talk.oddities[f"set_level_{fault.status or 'failed'}"] += 1
