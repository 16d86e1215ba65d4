"""Who is on the other end of a local socket: the kernel says so, and nothing the peer sends can change it."""

from __future__ import annotations

import os
import re
import socket
import struct
from dataclasses import dataclass

from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.errors import BadRequest, Unauthenticated

_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid (man 7 unix)
_AGENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,63}")
ROOT = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """The process that connected, as it was when it connected."""

    pid: int
    uid: int
    gid: int


def peer_of(descriptor: int) -> Peer:
    """Return who connected the unix socket *descriptor*.

    Raises:
        Unauthenticated: this system does not say.
    """
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        raise Unauthenticated("this system does not say who connects", detail="no SO_PEERCRED")
    with socket.socket(fileno=os.dup(descriptor)) as connection:
        pid, uid, gid = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size))
    return Peer(pid=pid, uid=uid, gid=gid)


def principal_of_peer(peer: Peer, *, own_uid: int, agent: str | None = None, project: str = "default") -> Principal:
    """Return whom a local peer stands for: the user, or an agent that the user owns.

    Raises:
        Unauthenticated: another user than the gateway's own, and not root.
        BadRequest: *agent* is no name.
    """
    if peer.uid not in (own_uid, ROOT):
        raise Unauthenticated(
            "this gateway belongs to another user", detail=f"peer pid {peer.pid} has uid {peer.uid}, not {own_uid}"
        )
    if agent is None:
        return Principal(kind="User", id=str(peer.uid), project=project)
    if not _AGENT.fullmatch(agent):
        raise BadRequest("an agent's name is 1 to 64 letters, digits, spaces, dots, dashes and underscores")
    return Principal(kind="Agent", id=agent, owner=str(peer.uid), project=project)
