"""Tunnels: CONNECT, with the name in the client's first TLS message compared to the name that was granted.

A tunnel to a name must be TLS to that name, on every port: otherwise the name would limit nothing, since many names
share an address and the bytes inside choose between them. A tunnel to a granted address is limited by the address, and
may carry anything. No tunnel gets a credential.
"""

from __future__ import annotations

from omni_mcp.engines.sandbox.egress.attempt import Attempt
from omni_mcp.engines.sandbox.egress.dial import Outside, dial
from omni_mcp.engines.sandbox.egress.ending import Ended
from omni_mcp.engines.sandbox.egress.hello import MOST_HELLO_BYTES, Hello, NotTls, find_hello
from omni_mcp.engines.sandbox.egress.relay import splice
from omni_mcp.engines.sandbox.egress.stream import CHUNK_BYTES, Stream, deadline
from omni_mcp.engines.sandbox.egress.target import Target

_ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
_ACCESS_DENIED = b"\x15\x03\x03\x00\x02\x02\x31"  # a fatal TLS alert, RFC 8446, 6.2


async def serve_tunnel(job: Stream, target: Target, *, outside: Outside, attempt: Attempt) -> None:
    """Connect the job to *target* and relay until both have ended.

    Raises:
        Ended: it could not be connected, may not go on, or broke off.
    """
    host = await dial(target, outside=outside, attempt=attempt, secure=False, clear_secret=False)
    try:
        attempt.answered = True
        async with deadline(outside.limits.head_s):
            await job.send(_ESTABLISHED)
            first = b"" if target.address is not None else await _checked_hello(job, target)
        attempt.sends(len(first))
        attempt.opened()
        async with deadline(outside.limits.idle_s):
            await host.send(first)
        await splice(job, host, attempt=attempt, idle_s=outside.limits.idle_s)
    finally:
        await host.close()


async def _checked_hello(job: Stream, target: Target) -> bytes:
    data = b""
    hello: Hello | None = None
    while hello is None:
        more = await job.reader.read(CHUNK_BYTES)
        if not more:
            raise Ended("closed" if not data else "not_tls")
        data += more
        try:
            hello = find_hello(data)
        except NotTls as error:
            raise Ended("not_tls") from error
        if hello is None and len(data) > 2 * MOST_HELLO_BYTES:
            raise Ended("not_tls")
    if hello.hidden or hello.server_name != target.host:
        await job.send(_ACCESS_DENIED)
        raise Ended("sni_hidden" if hello.hidden else "sni_mismatch")
    return data
