"""What waits in the sockets of a cell and is nobody's memory: the kernel lists it for each network namespace."""

from __future__ import annotations

from pathlib import Path

_FEW = 64  # sockets, which cannot hold much
_DATAGRAMS, _STREAMS = ("udp", "udp6"), ("tcp", "tcp6")
_RECEIVED, _QUEUES, _INODE = 4, 4, 9  # columns: bytes in decimal; "to send:received", bytes in hexadecimal; the file
_NOBODYS = "0"


def waiting_bytes(pid: int, *, in_cgroup: bool, proc: Path = Path("/proc")) -> int:
    """Return how many bytes wait in the sockets of the network namespace of process *pid*; 0 where those are few.

    No cgroup has the answers of netlink that nobody reads, the copies of what was sent that UDP keeps for whoever asked
    for its time, and what came for connections that nobody has accepted. With *in_cgroup* the rest of TCP is in one.
    """
    place = proc / str(pid) / "net"
    if _sockets_in(place) <= _FEW:
        return 0
    datagrams = [row for kind in _DATAGRAMS for row in _rows(place / kind)]
    streams = [row for kind in _STREAMS for row in _rows(place / kind) if row[_INODE] == _NOBODYS or not in_cgroup]
    received = sum(int(row[_RECEIVED]) for row in _rows(place / "netlink"))
    return received + sum(_size(row[_QUEUES]) for row in (*datagrams, *streams))


def _sockets_in(place: Path) -> int:
    words = _text(place / "sockstat").split(maxsplit=3)  # "sockets: used 5"
    return int(words[2]) if len(words) > 2 else 0


def _size(queues: str) -> int:
    return sum(int(size, 16) for size in queues.split(":"))


def _rows(path: Path) -> list[list[str]]:
    return [line.split() for line in _text(path).splitlines()[1:]]


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # the cell has ended meanwhile, or the kernel has no such sockets
        return ""
