"""What waits in the sockets of a cell and is nobody's memory: the kernel lists it for each network namespace."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

_FEW = 64  # sockets, which cannot hold much
_DATAGRAMS, _STREAMS = ("udp", "udp6"), ("tcp", "tcp6")
_RECEIVED, _QUEUES, _INODE = 4, 4, 9  # columns: bytes in decimal; "to send:received", bytes in hexadecimal; the file
_NOBODYS = "0"
_TYPE, _PATH = 4, 7  # columns of the list of unix sockets
_UNIX_DATAGRAMS = "0002"
_FROM_MANY = 11  # datagrams that wait at a name, each from a sender that may be gone: net.unix.max_dgram_qlen, and one
_BUFFER_BYTES = 212_992  # that one unix socket may have sent: net.core.wmem_default, where it cannot be read
_PROC = Path("/proc")
_REST = 50  # times as long as the last look took: the lists are long, and also to read them takes a processor
_LONGEST_REST_S = 1.0


class SocketWatch:
    """Looks at the sockets of the network namespace of process *pid*, in a thread and not too often.

    Where they are few nothing but their number is looked at.
    """

    def __init__(self, pid: int, *, in_cgroup: bool, proc: Path = _PROC) -> None:
        self._pid, self._in_cgroup, self._proc = pid, in_cgroup, proc
        self._looking: asyncio.Future[tuple[int, float]] | None = None
        self._not_before_s = 0.0

    def look(self) -> int:
        """Return how many bytes waited when it was looked last; 0 if that was told before, or goes on.

        One look is under way at most. It is told once, because it soon is not true any more.
        """
        waiting = 0
        if self._looking is not None:
            if not self._looking.done():
                return 0
            waiting, took_s = self._looking.result()
            self._looking = None
            self._not_before_s = time.monotonic() + min(_REST * took_s, _LONGEST_REST_S)
        if time.monotonic() >= self._not_before_s and not are_few(self._pid, self._proc):
            self._looking = asyncio.get_running_loop().run_in_executor(None, self._timed)
        return waiting

    def _timed(self) -> tuple[int, float]:
        started = time.thread_time()
        waiting = waiting_bytes(self._pid, in_cgroup=self._in_cgroup, proc=self._proc)
        return waiting, time.thread_time() - started


def are_few(pid: int, proc: Path = _PROC) -> bool:
    """Whether the network namespace of process *pid* has so few sockets that not much can wait in them."""
    words = _text(proc / str(pid) / "net/sockstat").split(maxsplit=3)  # "sockets: used 5"
    return len(words) < 3 or int(words[2]) <= _FEW


def waiting_bytes(pid: int, *, in_cgroup: bool, proc: Path = _PROC) -> int:
    """Return how many bytes wait in the sockets of the network namespace of process *pid*.

    No cgroup has the answers of netlink that nobody reads, the copies of what was sent that UDP keeps for whoever asked
    for its time, and what came for connections that nobody has accepted. With *in_cgroup* the rest of TCP is in one,
    and all of unix sockets. What those hold is told by nobody: without one, each beyond the first few counts as full.
    """
    place = proc / str(pid) / "net"
    there = _in_use(place)
    datagrams = [row for kind in _DATAGRAMS if kind in there for row in _rows(place / kind)]
    streams = [row for kind in _STREAMS if kind in there for row in _rows(place / kind)]
    counted = [row for row in streams if row[_INODE] == _NOBODYS or not in_cgroup]
    received = sum(int(row[_RECEIVED]) for row in _rows(place / "netlink"))
    unix = 0 if in_cgroup else max(0, _unix_buffers(place / "unix") - _FEW) * _buffer_bytes(proc)
    return received + unix + sum(_size(row[_QUEUES]) for row in (*datagrams, *counted))


def _in_use(place: Path) -> set[str]:
    """Return those lists of sockets that are not empty: an empty one takes as long to read as the others."""
    lines = f"{_text(place / 'sockstat')}{_text(place / 'sockstat6')}".splitlines()  # "UDP6: inuse 0"
    return {words[0].rstrip(":").lower() for words in map(str.split, lines) if len(words) > 2 and words[2] != "0"}


def _unix_buffers(path: Path) -> int:
    """Return how many buffers of senders may be full: each end has one, and many may have sent to a name."""
    rows = _rows(path)
    from_many = [row for row in rows if len(row) > _PATH and row[_TYPE] == _UNIX_DATAGRAMS]
    return len(rows) + (_FROM_MANY - 1) * len(from_many)


def _buffer_bytes(proc: Path) -> int:
    usual = _text(proc / "sys/net/core/wmem_default").strip()
    return int(usual) if usual.isdigit() else _BUFFER_BYTES


def _size(queues: str) -> int:
    return sum(int(size, 16) for size in queues.split(":"))


def _rows(path: Path) -> list[list[str]]:
    return [line.split() for line in _text(path).splitlines()[1:]]


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # the cell has ended meanwhile, or the kernel has no such sockets
        return ""
