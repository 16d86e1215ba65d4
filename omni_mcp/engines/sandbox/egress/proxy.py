"""The way out of a cell: an HTTP proxy on a socket of the cell, which reaches what the job's grant covers, no more.

The socket is the identity: who can connect to it is the job. Every wait has an end, and every connection one report.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from omni_mcp.contracts.sandbox import Connection
from omni_mcp.engines.sandbox.egress.attempt import Allowance, Attempt
from omni_mcp.engines.sandbox.egress.dial import Outside, Resolve
from omni_mcp.engines.sandbox.egress.ending import Ended, answer_to
from omni_mcp.engines.sandbox.egress.grant import EgressGrant
from omni_mcp.engines.sandbox.egress.head import Malformed
from omni_mcp.engines.sandbox.egress.limits import DEFAULT_LIMITS, EgressLimits
from omni_mcp.engines.sandbox.egress.names import SystemResolver
from omni_mcp.engines.sandbox.egress.plain import serve_request
from omni_mcp.engines.sandbox.egress.request import read_request
from omni_mcp.engines.sandbox.egress.stream import Stream, deadline
from omni_mcp.engines.sandbox.egress.trust import Trust
from omni_mcp.engines.sandbox.egress.tunnel import serve_tunnel

_NOTHING_THERE = frozenset((errno.EAGAIN, errno.EINTR, errno.ECONNABORTED))
_PAUSE_S = 0.1


@asynccontextmanager
async def serve_egress(
    listener: socket.socket,
    grant: EgressGrant,
    *,
    on_connection: Callable[[Connection], None],
    resolve: Resolve | None = None,
    tls: ssl.SSLContext | Trust | None = None,
    limits: EgressLimits = DEFAULT_LIMITS,
) -> AsyncIterator[None]:
    """Serve the proxy on a listening socket until the context is left.

    Leaving closes the listener and every connection; all that were accepted have been reported by then.

    Args:
        listener: a listening socket. Owned from here on.
        grant: what the job may reach.
        on_connection: told of each connection once, when it is over. Must not block or raise.
        resolve: asks for the addresses of a name, once per connection. Default: the machine's resolver.
        tls: how `https://` requests check the host. Default: the machine's certificate authorities,
            read anew for each job that needs them, so a gateway with many jobs passes one.
        limits: how much, how many, how long.
    """
    with SystemResolver() as system:
        trust = tls if isinstance(tls, Trust) else Trust(tls)
        outside = Outside(grant=grant, limits=limits, resolve=resolve or system, trust=trust)
        door = _Door(listener, outside, on_connection)
        try:
            yield
        finally:
            await door.close()


class _Door:
    """Accepts connections while there is room: as many as may be served, and as many again to be turned away."""

    def __init__(self, listener: socket.socket, outside: Outside, on_connection: Callable[[Connection], None]) -> None:
        self._listener = listener
        self._outside = outside
        self._on_connection = on_connection
        self._allowance = Allowance(outside.limits.bytes_total)
        self._serving: set[asyncio.Task[None]] = set()
        self._turned_away: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        self._listening = False
        self._closed = False
        listener.setblocking(False)
        self._listen()

    async def close(self) -> None:
        self._closed = True
        self._stop_listening()
        if self._pause is not None:
            self._pause.cancel()
        self._listener.close()
        tasks = self._serving | self._turned_away
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _listen(self) -> None:
        if not self._closed and not self._listening:
            self._listening = True
            self._loop.add_reader(self._listener, self._accept)

    def _stop_listening(self) -> None:
        if self._listening:
            self._listening = False
            self._loop.remove_reader(self._listener)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            if error.errno not in _NOTHING_THERE:  # out of descriptors, for instance; asking again at once would spin
                self._stop_listening()
                self._pause = self._loop.call_later(_PAUSE_S, self._listen)
            return
        sock.setblocking(False)
        most = self._outside.limits.connections
        attempt = Attempt(self._allowance)
        group = self._serving if len(self._serving) < most else self._turned_away
        task = self._loop.create_task(_serve(sock, attempt, self._outside, full=group is self._turned_away))
        group.add(task)
        task.add_done_callback(lambda task: self._over(task, group, sock, attempt))
        if len(self._turned_away) >= most:
            self._stop_listening()

    def _over(
        self, task: asyncio.Task[None], group: set[asyncio.Task[None]], sock: socket.socket, attempt: Attempt
    ) -> None:
        group.discard(task)
        sock.close()
        if task.cancelled():  # perhaps before its first step
            attempt.ends("ended")
        elif (error := task.exception()) is not None:
            attempt.ends("internal")
            self._loop.call_exception_handler({"message": "a fault in the egress proxy", "exception": error})
        self._listen()
        self._on_connection(attempt.report())


async def _serve(sock: socket.socket, attempt: Attempt, outside: Outside, *, full: bool) -> None:
    job = await Stream.over(sock)
    try:
        try:
            if full:
                raise Ended("too_many")
            await _answer(job, attempt, outside)
        except OSError:
            attempt.ends("closed")
        except Ended as ended:
            attempt.ends(ended.reason)
            await _explain(job, attempt, ended, outside.limits)
        attempt.stops()
        await job.linger(outside.limits.linger_s)
    finally:
        await job.close()


async def _answer(job: Stream, attempt: Attempt, outside: Outside) -> None:
    def seen(method: str, host: str, port: int) -> None:
        attempt.method = method
        attempt.names(host, port)

    try:
        async with deadline(outside.limits.head_s):
            request = await read_request(job.reader, seen=seen)
    except Malformed as error:
        raise Ended("bad_request") from error
    except EOFError as error:
        raise Ended("closed") from error
    if not outside.grant.covers(request.target):
        raise Ended("not_granted")
    if request.method == "CONNECT":
        await serve_tunnel(job, request.target, outside=outside, attempt=attempt)
    else:
        await serve_request(job, request, outside=outside, attempt=attempt)


async def _explain(job: Stream, attempt: Attempt, ended: Ended, limits: EgressLimits) -> None:
    if attempt.is_open:
        job.reset_on_close()
    if attempt.answered:
        return
    try:
        async with deadline(limits.linger_s):
            await job.send(answer_to(ended.reason, method=attempt.method, host=attempt.host, port=attempt.port))
    except (Ended, OSError):
        return
