"""What stands on the other side of a wall to be reached: files, listeners, a neighbour; and who has been there.

Used by the tests for the host, and by `bare_init.py` for the bare place: standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import pty
import secrets
import selectors
import shutil
import signal
import socket
import subprocess
import termios
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

LEAKED_DIRECTORY, LEAKED_FILE = 700, 701
_HELLO = b"who is there?"
_SHMGET, _SHMCTL = {"x86_64": (29, 31)}.get(platform.machine(), (194, 195))
_ADD_KEY, _KEYCTL = {"x86_64": (248, 250)}.get(platform.machine(), (217, 219))
_SESSION_RING, _INVALIDATE = -3, 21
_IPC_CREAT, _IPC_RMID = 0o1000, 0


class World:
    """Made in a directory that everybody can enter, so that nothing but the wall keeps a probe from it."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._secret = f"canary-{secrets.token_hex(12)}"
        self._came: list[str] = []
        self._selector = selectors.DefaultSelector()
        self._doing = contextlib.ExitStack()
        place.chmod(0o755)
        for name, text in (("secret", self._secret), ("touch", "")):
            (place / name).write_text(text)
        (place / "touch").chmod(0o666)
        (place / "drop").mkdir()
        (place / "drop").chmod(0o777)
        self._environment = os.environ.get("OMNI_ESCAPE_SECRET")
        os.environ["OMNI_ESCAPE_SECRET"] = self._secret
        self._leak(place, LEAKED_DIRECTORY)
        self._leak(place / "secret", LEAKED_FILE)
        self._neighbour = subprocess.Popen(
            [f"neighbour-{self._secret}", "600"], executable=shutil.which("sleep"), env={"SECRET": self._secret}
        )
        self._shared_memory_key = 0x0E5CA9E0 + os.getpid() % 4096
        self._shared_memory = _syscall(_SHMGET, self._shared_memory_key, 4096, _IPC_CREAT | 0o666)
        self._key = _syscall(_ADD_KEY, b"user", self._secret.encode(), b"x", ctypes.c_size_t(1), _SESSION_RING)
        self._doing.callback(_syscall, _KEYCTL, _INVALIDATE, self._key)
        self._terminal = self._open_terminal()
        self._ports = {
            "tcp": self._listen(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            "udp": self._listen(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
            "tcp6": self._listen(socket.AF_INET6, socket.SOCK_STREAM, ("::1", 0)),
        }
        name = f"omni-escape-{secrets.token_hex(6)}"
        self._unix = {
            "stream": str(place / "stream"), "dgram": str(place / "dgram"),
            "abstract_stream": f"\0{name}-s", "abstract_dgram": f"\0{name}-d",
        }  # fmt: skip
        for label, address in self._unix.items():
            kind = socket.SOCK_STREAM if label.endswith("stream") else socket.SOCK_DGRAM
            self._listen(socket.AF_UNIX, kind, address)
        self._thread = threading.Thread(target=self._answer, daemon=True)
        self._stop, self._stopped = os.pipe()
        self._selector.register(self._stop, selectors.EVENT_READ, None)
        self._thread.start()

    def facts(self) -> dict[str, Any]:
        """Return what a probe is told: where everything is, but not what is in it."""
        return {
            "terces": self._secret[::-1], "secret": str(self._place / "secret"), "touch": str(self._place / "touch"),
            "drop": str(self._place / "drop"), "neighbour": self._neighbour.pid, "ports": self._ports,
            "unix": self._unix, "shared_memory_key": self._shared_memory_key, "addresses": _addresses(),
            "terminal": self._terminal,
        }  # fmt: skip

    def reveals(self, data: bytes) -> bool:
        """Whether *data* holds what only this side knows."""
        return self._secret.encode() in data

    def watch(self) -> Callable[[], list[str]]:
        """Start to look; what is returned lists everything that has been reached or changed since."""
        came = len(self._came)

        def breaches() -> list[str]:
            found = [f"a listener outside was contacted: {label}" for label in self._came[came:]]
            if (self._place / "touch").read_bytes():
                found.append("a file outside was changed")
                (self._place / "touch").write_bytes(b"")
            for name in os.listdir(self._place / "drop"):
                found.append(f"a file was made outside: {name}")
                (self._place / "drop" / name).unlink()
            if self._neighbour.poll() is not None:
                found.append("a process outside was killed")
            return found

        return breaches

    def listen_at(self, address: tuple[str, int]) -> None:
        """Answer at one more address, on TCP and UDP."""
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            self._listen(socket.AF_INET, kind, address)

    def listen_in(self, place: Path) -> None:
        """Answer at a datagram socket in a directory that is given to a job."""
        self._listen(socket.AF_UNIX, socket.SOCK_DGRAM, str(place / "dgram"))
        (place / "dgram").chmod(0o666)

    def close(self) -> None:
        os.write(self._stopped, b"x")
        self._thread.join()
        self._doing.close()
        self._selector.close()
        for descriptor in (self._stop, self._stopped):
            os.close(descriptor)
        self._neighbour.kill()
        self._neighbour.wait()
        if self._shared_memory >= 0:
            _syscall(_SHMCTL, self._shared_memory, _IPC_RMID, 0)
        os.environ.pop("OMNI_ESCAPE_SECRET")
        if self._environment is not None:
            os.environ["OMNI_ESCAPE_SECRET"] = self._environment

    def _leak(self, path: Path, number: int) -> None:
        opened = os.open(path, os.O_RDONLY)
        os.dup2(opened, number, inheritable=True)
        os.close(opened)
        self._doing.callback(os.close, number)

    def _open_terminal(self) -> tuple[int, int]:
        """Open a terminal that everybody may use, and return its rows and columns, by which it is known."""
        rows, columns = 2000 + os.getpid() % 1000, 3000 + secrets.randbelow(1000)
        with contextlib.suppress(OSError):  # no terminal is left, or there are none here
            leader, follower = pty.openpty()
            self._doing.callback(os.close, leader)
            self._doing.callback(os.close, follower)
            os.fchmod(follower, 0o666)
            termios.tcsetwinsize(leader, (rows, columns))
        return rows, columns

    def _listen(self, family: int, kind: int, address: Any) -> Any:
        try:
            listener = socket.socket(family, kind)
            listener.bind(address)
        except OSError:  # no IPv6 here, or nobody's right to this port
            return None
        self._doing.callback(listener.close)
        if isinstance(address, str) and not address.startswith("\0"):
            Path(address).chmod(0o777)
        if kind == socket.SOCK_STREAM:
            listener.listen()
        listener.setblocking(False)
        label = f"{socket.AddressFamily(family).name} {socket.SocketKind(kind).name} {address!r}"
        self._selector.register(listener, selectors.EVENT_READ, label)
        return None if family == socket.AF_UNIX else listener.getsockname()[1]

    def _answer(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    return
                with contextlib.suppress(OSError):
                    self._answer_one(key.fileobj, key.data)  # type: ignore[arg-type]  # a socket, as registered

    def _answer_one(self, listener: socket.socket, label: str) -> None:
        self._came.append(label)
        if listener.type == socket.SOCK_STREAM:
            peer, _ = listener.accept()
            peer.sendall(self._secret.encode())
            peer.close()
            return
        data, sender = listener.recvfrom(2048)
        if sender:
            listener.sendto(_dns_answer(data) if _HELLO not in data else self._secret.encode(), sender)


def wait_for(fifo: int) -> bool:
    """Wait until somebody says that they are here; whether they did, within 20 seconds."""
    with selectors.DefaultSelector() as selector:
        selector.register(fifo, selectors.EVENT_READ)
        return bool(selector.select(20)) and os.read(fifo, 5) == b"here\n"


def open_fifo(path: Path) -> int:
    """Make a fifo that everybody can write, and return its reading end."""
    os.mkfifo(path)
    path.chmod(0o666)
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK)


def survivors(fifo: int) -> str:
    """Say who holds the other end: `nobody came`, `gone` or `alive`."""
    came = False
    while True:
        try:
            data = os.read(fifo, 4096)
        except BlockingIOError:
            return "alive"
        if not data:
            return "gone" if came else "nobody came"
        came = True


def plant_programs(place: Path) -> None:
    """Leave copies of a program that would run as root, or with a capability, if that were obeyed."""
    program = shutil.which("cat")
    assert program is not None
    for name in ("setuid", "capable"):
        shutil.copy(program, place / name)
    if os.geteuid() == 0:
        os.chown(place / "setuid", 0, 0)
    (place / "setuid").chmod(0o6755)
    with contextlib.suppress(OSError):  # VFS_CAP_REVISION_2, effective; CAP_NET_RAW permitted
        os.setxattr(place / "capable", "security.capability", bytes.fromhex("0100000200200000000000000000000000000000"))
    (place / "capable").chmod(0o755)


def reap(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process and kill whatever is left of its session."""
    status = process.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return status


def _addresses() -> list[str]:
    """Return this machine's own addresses, other than loopback."""
    import fcntl
    import struct

    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(any_socket, 0x8915, struct.pack("256s", name.encode()))  # SIOCGIFADDR
                found.append(socket.inet_ntoa(answer[20:24]))
    return [address for address in found if not address.startswith("127.")]


def _dns_answer(query: bytes) -> bytes:
    """Answer any question for an A record with 192.0.2.1."""
    question = query[12 : query.index(b"\0", 12) + 5]
    head = query[:2] + b"\x81\x80\x00\x01\x00\x01\x00\x00\x00\x00"
    return head + question + b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04" + socket.inet_aton("192.0.2.1")


def _syscall(number: int, *arguments: int | bytes | ctypes.c_size_t) -> int:
    return int(ctypes.CDLL(None).syscall(number, *arguments))
