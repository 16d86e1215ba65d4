"""The ground of a job: what is put into its workspace before it starts, and what is told and taken after its end.

Standard library only.
"""

from __future__ import annotations

import _socket
import os

import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Frame = dict[str, Any]

PROXY_PORT = 3128
PROXY_BACKLOG = 64


def prepare(control: _socket.socket, order: Frame, workspace: str) -> None:
    """Put the job's input files into *workspace*, and hand the gateway the socket for its way out, if it has one.

    Raises:
        Gone, OSError: this cannot be done.
    """
    for file in order["files"]:
        _place_file(control, os.path.join(workspace, file["path"]), file["size"])
    if order["listen"]:
        _hand_out_listener(control)


def report(control: _socket.socket, end: Frame, places: list[str], exporting: str | None) -> None:
    """Tell the gateway how the job ended, and hand it the directory `out` of the workspace *exporting*."""
    exported = _open_out(exporting) if exporting is not None else None
    end |= {"full": _full_places(places), "exported": exported is not None}
    wire.send(control, end, (exported,) if exported is not None else ())


def _hand_out_listener(control: _socket.socket) -> None:
    """Make the socket on which the gateway serves its proxy: only this cell can reach it, so it needs no password."""
    listener = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
    try:
        listener.bind(("127.0.0.1", PROXY_PORT))
        listener.listen(PROXY_BACKLOG)
        wire.send(control, {"kind": "listening"}, (listener.fileno(),))
    finally:
        listener.close()


def _place_file(control: _socket.socket, target: str, size: int) -> None:
    """Write one input file beneath the workspace; nothing has run here yet, so no link can be in the way."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    try:
        wire.copy_to_file(control, descriptor, size)
    finally:
        os.close(descriptor)


def _full_places(places: list[str]) -> list[str]:
    """Return those of *places* that have no block or no inode left."""
    full = []
    for place in places:
        facts = os.statvfs(place)
        if facts.f_bavail == 0 or facts.f_ffree == 0:
            full.append(place)
    return full


def _open_out(workspace: str) -> int | None:
    try:
        return os.open(f"{workspace}/out", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None  # the job left no such directory
