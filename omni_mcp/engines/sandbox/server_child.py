"""ServerChild: a server in a cell as the upstream pool speaks with it: bytes in, bytes out, and how it ended."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable
from typing import Any

from omni_mcp.contracts.sandbox import Connection, Served
from omni_mcp.engines.sandbox.failures import StartFailed
from omni_mcp.engines.sandbox.server_words import Setting, words_of
from omni_mcp.engines.sandbox.servers import ServerCells, ServerLaunch, Tail

CHUNK_BYTES = 128 * 1024
_GRACE_S = 1.0  # from the end of its input until it is killed
_END_LIMIT_S = 2.0  # from the end of its output until its own end
_REFUSED = 64  # connections that are remembered


class ServerEnded(Exception):
    """The server ended otherwise than with exit status 0. The text is for the operator, masked."""


class ServerChild:
    """Has the methods of `Child` in `omni_mcp/engines/upstream/wire/lines.py`. Made by `start_child`."""

    def __init__(
        self, cells: ServerCells, launch: ServerLaunch, *, mask: Callable[[str], str], tail: Tail,
        on_connection: Callable[[Connection], None] | None,
    ) -> None:  # fmt: skip
        self._cells = cells
        self._launch = launch
        self._mask = mask
        self._tail = tail
        self._on_connection = on_connection
        self._refused: deque[Connection] = deque(maxlen=_REFUSED)
        self._loop = asyncio.get_running_loop()
        self._served: Served | None = None
        self._unsent = bytearray()
        self._reading: asyncio.Future[None] | None = None
        self._deaf = False  # it has closed its input
        self._stop = asyncio.Event()
        self._over = False  # nothing of it runs any more
        self._keeper: asyncio.Task[str] | None = None

    async def open(self) -> None:
        """Start the server.

        Raises:
            SandboxUnavailable, RateLimited: as `ServerCells.start`.
        """
        started: asyncio.Future[None] = self._loop.create_future()
        self._keeper = asyncio.create_task(self._keep(started), name=f"server {self._launch.name}")
        either: set[asyncio.Future[Any]] = {started, self._keeper}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            raise
        if not started.done():
            await self._keeper

    async def read(self) -> bytes:
        """Return the next bytes of its output; nothing when it is closed and all is well.

        Raises:
            ServerEnded: it ended otherwise, or takes no input any more.
        """
        while self._served is not None:
            if self._deaf:
                raise ServerEnded(await self._story(self._served, "it closed its input"))
            over = self._over  # before the last look: what it wrote is in the pipe by then
            try:
                data = os.read(self._served.stdout, CHUNK_BYTES)
            except BlockingIOError:
                if not over:
                    await self._readable(self._served.stdout)
                    continue
                data = b""
            if not data:
                story = await self._story(self._served, "")
                if story:
                    raise ServerEnded(story)
            return data
        return b""

    def write(self, data: bytes) -> None:
        """Queue bytes for its input; what comes after its end is lost, which `read` reports."""
        if self._served is None or self._deaf or self._stop.is_set():
            return
        if not self._unsent:
            self._loop.add_writer(self._served.stdin, self._send)
        self._unsent += data

    @property
    def unread_bytes(self) -> int:
        """How many bytes are queued that its pipe has not taken."""
        return len(self._unsent)

    async def stop(self) -> str:
        """End its input, kill it a second later, and return how it ended once nothing of it is left."""
        self._stop.set()
        if self._keeper is None:
            return "it was not started"
        return await asyncio.shield(self._keeper)

    async def _keep(self, started: asyncio.Future[None]) -> str:
        """Hold the cell from its start to its end, in one task; returns how it ended."""
        async with self._cells.start(self._launch, tail=self._tail, on_connection=self._noted) as served:
            self._served = served
            watch = asyncio.create_task(self._watch(served))
            started.set_result(None)
            try:
                await self._stop.wait()
                self._end_input(served)
                await asyncio.wait({watch}, timeout=_GRACE_S)
                killed = not self._over
            finally:
                watch.cancel()
                self._let_go(served)
        return "it did not end by itself and was killed" if killed else (await self._end_of(served))[1]

    async def _watch(self, served: Served) -> None:
        """A pipe alone does not tell the end: process 1 of the cell may still hold the other side."""
        await self._end_of(served)
        self._over = True
        self._wake()

    def _noted(self, connection: Connection) -> None:
        if connection.verdict == "refused":
            self._refused.append(connection)
        if self._on_connection is not None:
            self._on_connection(connection)

    def _send(self) -> None:
        assert self._served is not None
        try:
            del self._unsent[: os.write(self._served.stdin, self._unsent)]
        except BlockingIOError:
            return
        except OSError:
            self._deaf = True
            self._unsent.clear()
            self._wake()
        if not self._unsent:
            self._loop.remove_writer(self._served.stdin)

    def _end_input(self, served: Served) -> None:
        """Close the pipe; its number belongs to the sandbox and stays taken."""
        self._loop.remove_writer(served.stdin)
        self._unsent.clear()
        nothing = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(nothing, served.stdin, inheritable=False)
        os.close(nothing)

    def _let_go(self, served: Served) -> None:
        self._served = None
        self._loop.remove_writer(served.stdin)
        self._loop.remove_reader(served.stdout)
        self._wake()

    async def _readable(self, stdout: int) -> None:
        self._reading = self._loop.create_future()
        self._loop.add_reader(stdout, self._wake)
        try:
            await self._reading
        finally:
            self._reading = None
            if self._served is not None:
                self._loop.remove_reader(stdout)

    def _wake(self) -> None:
        if self._reading is not None and not self._reading.done():
            self._reading.set_result(None)

    async def _story(self, served: Served, otherwise: str) -> str:
        """Return how it ended; *otherwise* if it has not; nothing if it ended well."""
        try:
            async with asyncio.timeout(_END_LIMIT_S):
                well, story = await self._end_of(served)
        except TimeoutError:
            return otherwise
        return "" if well else story

    async def _end_of(self, served: Served) -> tuple[bool, str]:
        """Wait for its end; returns whether it ended well, and how."""
        try:
            end = await asyncio.shield(served.ended)
        except StartFailed as error:
            return False, f"its cell failed: {error}"
        setting = Setting(self._cells.may_reach(self._launch), self._cells.fetches(self._launch))
        story = words_of(end, setting, tuple(self._refused), self._mask(self._tail.text()))
        return end.exit_code == 0, story


async def start_child(
    cells: ServerCells,
    launch: ServerLaunch,
    *,
    mask: Callable[[str], str],
    tail: Tail | None = None,
    on_connection: Callable[[Connection], None] | None = None,
) -> ServerChild:
    """Start a server for the upstream pool.

    Args:
        cells: where.
        launch: what.
        mask: replaces secrets in what it wrote to its stderr.
        tail: keeps that, for whoever wants more of it than its last lines.
        on_connection: told of every attempt to reach a host.

    Raises:
        SandboxUnavailable, RateLimited: as `ServerCells.start`.
    """
    child = ServerChild(cells, launch, mask=mask, tail=tail or Tail(), on_connection=on_connection)
    await child.open()
    return child
