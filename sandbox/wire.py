"""Frames between the gateway and process 1 of a cell: four bytes of length, then a JSON object."""

from __future__ import annotations

import _socket
import errno
import json
import json.scanner
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FRAME_LIMIT_BYTES = 16 * 1024 * 1024  # a job's arguments travel in one frame; files follow it as raw bytes
_DESCRIPTOR_BYTES = 4

_scanner_of: Any = json.scanner.make_scanner
_scan = _scanner_of(json.JSONDecoder())


class Gone(Exception):
    """The other end has closed."""


def packed(frame: dict[str, Any]) -> bytes:
    """Return *frame* as it travels."""
    body = json.dumps(frame).encode()
    return len(body).to_bytes(4, "big") + body


def unpacked(body: bytes) -> dict[str, Any]:
    """Return the frame of *body*, an object without white space around it: both ends are ours, and write it so."""
    frame: dict[str, Any] = _scan(body.decode(), 0)[0]  # `json.loads` around it costs a waiting cell 100 KiB
    return frame


def send(channel: _socket.socket, frame: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
    """Send one frame, with open files beside it."""
    data = memoryview(packed(frame))
    if descriptors:
        numbers = b"".join(descriptor.to_bytes(_DESCRIPTOR_BYTES, sys.byteorder) for descriptor in descriptors)
        beside = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, numbers)]
        data = data[channel.sendmsg([data], beside) :]
    if data:
        channel.sendall(data)


def read_exactly(channel: _socket.socket, count: int) -> bytes:
    """Read *count* bytes.

    Raises:
        Gone: the other end closed before that.
    """
    part = channel.recv(min(count, 1 << 16))
    if len(part) == count:
        return part
    parts = []
    while part:
        parts.append(part)
        count -= len(part)
        if not count:
            return b"".join(parts)
        part = channel.recv(min(count, 1 << 16))
    raise Gone


def receive(channel: _socket.socket) -> dict[str, Any]:
    """Read one frame.

    Raises:
        Gone: the other end closed, or sent more than a frame may hold.
    """
    return unpacked(_body(channel, read_exactly(channel, 4)))


def receive_with(channel: _socket.socket, most: int) -> tuple[dict[str, Any], list[int]]:
    """Read one frame and the open files that came with its first byte, at most *most*; they are not inherited.

    Raises:
        Gone, OSError: as `receive_packed_with`.
    """
    body, found = receive_packed_with(channel, most)
    return unpacked(body), found


def receive_packed_with(channel: _socket.socket, most: int) -> tuple[bytes, list[int]]:
    """As `receive_with`, with the frame left packed: a cell that waits pays for each page that it touched, and leaves
    the parser alone.

    Raises:
        Gone: as `receive`.
        OSError: not all of the files can be had here. The frame has been taken, and those that came are closed.
    """
    found: list[int] = []  # socket.recv_fds of Python 3.11 forgets its flags
    room = _socket.CMSG_SPACE(most * _DESCRIPTOR_BYTES)
    head, ancillary, flags, _ = channel.recvmsg(4, room, _socket.MSG_CMSG_CLOEXEC)
    for level, kind, content in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            for place in range(0, len(content) - _DESCRIPTOR_BYTES + 1, _DESCRIPTOR_BYTES):
                found.append(int.from_bytes(content[place : place + _DESCRIPTOR_BYTES], sys.byteorder))
    if not head:
        raise Gone
    body = _body(channel, head if len(head) == 4 else head + read_exactly(channel, 4 - len(head)))
    if flags & _socket.MSG_CTRUNC:
        for descriptor in found:
            os.close(descriptor)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return body, found


def copy_to_file(channel: _socket.socket, descriptor: int, count: int) -> None:
    """Write the next *count* raw bytes into an open file."""
    while count:
        part = channel.recv(min(count, 1 << 16))
        if not part:
            raise Gone
        count -= len(part)
        view = memoryview(part)
        while view:
            view = view[os.write(descriptor, view) :]


def _body(channel: _socket.socket, head: bytes) -> bytes:
    length = int.from_bytes(head, "big")
    if length > FRAME_LIMIT_BYTES:
        raise Gone
    return read_exactly(channel, length)
