"""Channel: the gateway's end of a control socket. Frames in and out, descriptors beside them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
from collections import deque

import orjson

from omni_mcp.contracts.json import JsonObject

_FRAME_LIMIT_BYTES = 64 * 1024  # what a cell has to say is short
_CREDENTIALS = struct.Struct("3i")
_ANCILLARY_BYTES = socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(struct.calcsize("i"))


def as_json(frame: JsonObject) -> bytes:
    """Return *frame* as it is sent. Words of a command need not be UTF-8: those bytes travel as lone surrogates.

    Raises:
        TypeError, ValueError: it is no JSON, or too deep.
    """
    try:
        return orjson.dumps(frame)
    except TypeError:
        try:
            return json.dumps(frame, allow_nan=False).encode()
        except RecursionError as error:
            raise ValueError("nested too deeply") from error


class ChannelClosed(Exception):
    """Process 1 of the cell has gone, or said something that makes no sense."""


class Channel:
    """Frames from and to process 1 of one cell.

    `sender_pid` is the host's number of that process, as the kernel vouches for it, once a frame has come.
    """

    def __init__(self, ours: socket.socket) -> None:
        ours.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket = ours
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._frames: deque[JsonObject] = deque()
        self._news = asyncio.Event()
        self._closed = False
        self._reading = True
        self.sender_pid: int | None = None
        self.descriptor: int | None = None
        self._loop.add_reader(ours.fileno(), self._on_readable)

    def begin(self, frame: JsonObject, descriptors: tuple[int, ...] = ()) -> memoryview:
        """Send at once what fits of one frame, with copies of open files; returns the rest, for `send`.

        Raises:
            ChannelClosed: nobody is there to read it.
        """
        body = as_json(frame)
        message = len(body).to_bytes(4, "big") + body
        try:
            sent = socket.send_fds(self._socket, [message], list(descriptors)) if descriptors else 0
        except (OSError, ValueError) as error:  # ValueError: our end is closed already
            raise ChannelClosed from error
        return memoryview(message)[sent:]

    async def send(self, *parts: bytes | memoryview) -> None:
        """Send raw bytes: the rest of a frame, and what comes after it.

        Raises:
            ChannelClosed: nobody is there to read it.
        """
        try:
            for data in parts:
                if data:
                    await self._loop.sock_sendall(self._socket, data)
        except (OSError, ValueError) as error:
            raise ChannelClosed from error

    async def receive(self) -> JsonObject:
        """Return the next frame.

        Raises:
            ChannelClosed: there will be none.
        """
        while not self._frames:
            if not self._reading:
                raise ChannelClosed
            self._news.clear()
            await self._news.wait()
        return self._frames.popleft()

    def take_descriptor(self) -> int | None:
        """Return the descriptor that came last; it is the caller's now."""
        taken, self.descriptor = self.descriptor, None
        return taken

    def close(self) -> None:
        """Close our end: the cell dies of it."""
        if self._closed:
            return
        self._stop_reading()
        self._closed = True
        self._socket.close()
        descriptor = self.take_descriptor()
        if descriptor is not None:
            os.close(descriptor)

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._socket.fileno())
        self._news.set()

    def _on_readable(self) -> None:
        try:
            data, ancillary, _, _ = self._socket.recvmsg(1 << 16, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            self._stop_reading()
            return
        self._note(ancillary)
        self._buffer += data
        if not data or not self._cut_frames():
            self._stop_reading()

    def _note(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        for level, kind, content in ancillary:
            if level != socket.SOL_SOCKET:
                continue
            if kind == socket.SCM_CREDENTIALS and self.sender_pid is None:
                self.sender_pid = _CREDENTIALS.unpack(content[: _CREDENTIALS.size])[0] or None
            elif kind == socket.SCM_RIGHTS:
                for (descriptor,) in struct.iter_unpack("i", content[: len(content) // 4 * 4]):
                    previous = self.take_descriptor()
                    if previous is not None:
                        os.close(previous)
                    self.descriptor = descriptor

    def _cut_frames(self) -> bool:
        """Cut whole frames off the buffer; False if what came is not one."""
        while len(self._buffer) >= 4:
            length = int.from_bytes(self._buffer[:4], "big")
            if length > _FRAME_LIMIT_BYTES:
                return False
            if len(self._buffer) < 4 + length:
                return True
            frame = None
            with contextlib.suppress(orjson.JSONDecodeError):
                frame = orjson.loads(bytes(self._buffer[4 : 4 + length]))
            if not isinstance(frame, dict):
                return False
            del self._buffer[: 4 + length]
            self._frames.append(frame)
            self._news.set()
        return True
