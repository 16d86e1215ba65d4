"""SpawnerLink: the gateway's end of the helper process that starts templates."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from omni_mcp.engines.sandbox.failures import StartFailed

_MESSAGE_LIMIT_BYTES = 64 * 1024
_END_LIMIT_S = 5.0
_NO_ROOM = (errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS)  # of the kernel, for a while
_OF_ONE_MESSAGE = (*_NO_ROOM, errno.EMSGSIZE, errno.EMFILE, errno.ENFILE, errno.EBADF)
_TRIES = 20
_TRY_AGAIN_S = 0.05


class SpawnerGone(Exception):
    """The helper process has ended, and every cell with it."""


class SpawnerLink:
    """One helper process. Made by `start`, ended by `close`."""

    def __init__(self, process: subprocess.Popen[bytes], channel: socket.socket) -> None:
        self._process = process
        self._channel = channel
        self._loop = asyncio.get_running_loop()
        self._exits: dict[int, asyncio.Future[int]] = {}
        self._alive = True
        self._room: asyncio.Future[None] | None = None
        self._loop.add_reader(channel.fileno(), self._on_readable)

    @classmethod
    def start(cls, sandbox_dir: Path) -> SpawnerLink:
        """Start the helper: with an empty environment, in its own session, and with no descriptor but its socket."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        script = os.path.realpath(sandbox_dir / "spawner.py")
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", script, str(theirs.fileno())],
                pass_fds=[theirs.fileno()], env={}, cwd="/", start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            )  # fmt: skip
        return cls(process, ours)

    @property
    def alive(self) -> bool:
        return self._alive

    @property
    def pid(self) -> int:
        return self._process.pid

    async def sweep_at_the_end(self, prefixes: Sequence[str], directories: Sequence[str] = ()) -> None:
        """Have the helper remove these when it ends: the gateway may be dead by then.

        Args:
            prefixes: what the paths of cgroups begin with.
            directories: they go with all that is in them.

        Raises:
            SpawnerGone: the helper has ended.
            StartFailed: the request could not be sent.
        """
        await self._send({"op": "sweep", "prefixes": list(prefixes), "directories": list(directories)}, ())

    async def spawn(self, request: dict[str, Any], descriptors: Sequence[int]) -> asyncio.Future[int]:
        """Start one template; the future becomes bubblewrap's exit code, negative for a signal.

        Raises:
            SpawnerGone: the helper has ended.
            StartFailed: this one request could not be sent.
        """
        exited: asyncio.Future[int] = self._loop.create_future()
        self._exits[request["id"]] = exited
        try:
            await self._send(request, descriptors)
        except BaseException:
            self._exits.pop(request["id"], None)
            exited.cancel()
            raise
        return exited

    async def kill(self, number: int, by: signal.Signals = signal.SIGKILL) -> None:
        """Send *by* to the template of request *number*, if it still runs.

        Where that fails, whoever waits for its end sees that there is none.
        """
        if number in self._exits:
            with contextlib.suppress(SpawnerGone, StartFailed):
                await self._send({"op": "kill", "id": number, "signal": int(by)}, ())

    async def close(self) -> None:
        """End the helper and whatever it started, and wait for it."""
        self._gone()
        try:
            await asyncio.to_thread(self._process.wait, _END_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()  # its cells die with it
            await asyncio.to_thread(self._process.wait)

    async def _send(self, message: dict[str, Any], descriptors: Sequence[int]) -> None:
        data, tries = orjson.dumps(message), 0
        while True:
            if not self._alive:
                raise SpawnerGone
            try:
                socket.send_fds(self._channel, [data], list(descriptors))
                return
            except BlockingIOError:
                await self._writable()
            except OSError as error:
                if error.errno not in _OF_ONE_MESSAGE:
                    self._gone()
                    raise SpawnerGone from error
                tries += 1
                if error.errno not in _NO_ROOM or tries == _TRIES:
                    raise _unsent(error) from error
                await asyncio.sleep(_TRY_AGAIN_S)

    async def _writable(self) -> None:
        """Wait until there is room for one more message, or the helper has gone; any number may wait."""
        if self._room is None:
            self._room = self._loop.create_future()
            self._loop.add_writer(self._channel.fileno(), self._on_writable)
        await asyncio.shield(self._room)

    def _on_writable(self) -> None:
        self._loop.remove_writer(self._channel.fileno())
        if self._room is not None:
            self._room.set_result(None)
            self._room = None

    def _on_readable(self) -> None:
        while self._alive:
            try:
                data = self._channel.recv(_MESSAGE_LIMIT_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._gone()
                return
            message = orjson.loads(data)
            if "exit" in message:
                exited = self._exits.pop(message["id"], None)
                if exited is not None and not exited.done():
                    exited.set_result(message["exit"])

    def _gone(self) -> None:
        """The helper has ended or is told to: whoever waits for a cell learns it as death by SIGKILL."""
        if not self._alive:
            return
        self._alive = False
        self._loop.remove_reader(self._channel.fileno())
        self._on_writable()
        self._channel.close()
        for exited in self._exits.values():
            if not exited.done():
                exited.set_result(-9)
        self._exits.clear()


def _unsent(error: OSError) -> StartFailed:
    if error.errno == errno.EMSGSIZE:
        return StartFailed("the request for a cell is too long: fewer directories, or shorter paths")
    return StartFailed(f"the request for a cell could not be sent: {error.strerror}")
