"""Finds the gateway of this user, or starts one: under a lock, detached, and only one however many ask at once.

Part of the shim, so nothing heavy is imported here.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import stat
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from omni_mcp.datalock import read_note
from omni_mcp.paths import Home, make_private_dir

START_TIMEOUT_S = 30.0
DRAIN_TIMEOUT_S = 15.0
ANSWER_TIMEOUT_S = 10.0
RETRY_S = 0.02
ANSWER_LIMIT_BYTES = 64 * 1024
LOG_TAIL_BYTES = 2000
OVERLOADED = "overloaded"


class StartFailed(Exception):
    """No gateway can be reached, with the next step; `not_possible_here` when this system is the reason."""

    def __init__(self, message: str, *, not_possible_here: bool = False) -> None:
        super().__init__(message)
        self.not_possible_here = not_possible_here


class Refusal(Exception):
    """The gateway answered the hello with an error."""

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__(str(answer.get("error")))
        self.code = answer.get("code")


def connect_or_start(home: Home, hello: dict[str, object]) -> socket.socket:
    """Return a connection that is past its hello, to the running gateway or to one that was started for it.

    A gateway of an older version that another client started is asked to drain and is replaced. One that a person
    started is theirs: it is used as it is. So is a newer one, or two installed versions would replace each other
    for ever.

    Raises:
        StartFailed: no gateway can be reached or started, or it refuses the hello.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise StartFailed(
            "this system has no unix sockets; use `omni-mcp stdio --embedded`, or HTTP with `omni-mcp serve`",
            not_possible_here=True,
        )
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        found = _try_hello(home, hello)
        if found is None:
            start(home, deadline_s=deadline_s)
            continue
        connection, answer = found
        if not _is_outdated(answer, str(hello["version"])):
            return connection
        connection.close()
        _replace(home, answer, deadline_s=deadline_s)
    raise StartFailed("no gateway could be reached in time; see: omni-mcp status, omni-mcp doctor")


def start(home: Home, *, deadline_s: float) -> None:
    """Start a gateway unless one can be connected to, and wait until it can be; *deadline_s* is monotonic time.

    Raises:
        StartFailed: it did not come up; the message ends with the last lines of its log.
    """
    with _start_lock(home, deadline_s=deadline_s):
        if (early := connect(home)) is not None:
            early.close()
            return  # somebody else was first
        _check_holder(home)
        begin = _log_size(home)
        alive = _spawn(home)
        try:
            died_at_s: float | None = None
            while time.monotonic() < deadline_s:
                if (up := connect(home)) is not None:
                    up.close()
                    return
                if died_at_s is None and _has_ended(alive):
                    died_at_s = time.monotonic()
                if died_at_s is not None and time.monotonic() > died_at_s + 1.0:
                    break  # one second more: another gateway may be the reason, and about to listen
                time.sleep(RETRY_S)
        finally:
            os.close(alive)
    raise StartFailed(f"the gateway did not start; its log is {log_file(home)}\n{_log_since(home, begin)}".rstrip())


def connect(home: Home) -> socket.socket | None:
    """Return a connection to the gateway's socket, or None if nobody listens.

    The place is that of this environment, else the one that the lock of the data directory names: a client started
    outside the login session may have no XDG_RUNTIME_DIR and must still find the same gateway.

    Raises:
        StartFailed: the socket is not ours to trust, or cannot be reached.
    """
    for path in _places(home):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _check_directory(os.path.dirname(path))
            connection.connect(path)
        except OSError as error:
            connection.close()
            if error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR):
                continue
            raise StartFailed(f"cannot connect to {path}: {error}", not_possible_here=True) from error
        except BaseException:
            connection.close()
            raise
        if _owner_of(connection) not in (os.getuid(), 0):
            connection.close()
            raise StartFailed(f"{path} belongs to another user's process; not connecting")
        return connection
    return None


def request(
    connection: socket.socket, message: dict[str, object], *, timeout_s: float, limit_bytes: int = ANSWER_LIMIT_BYTES
) -> dict[str, Any]:
    """Send one line and return the line that answers it; what follows that line stays unread.

    Raises:
        OSError, ValueError: nothing came in time, or something that is no answer.
    """
    connection.settimeout(timeout_s)
    connection.sendall(json.dumps(message).encode() + b"\n")
    line = bytearray()
    while not line.endswith(b"\n"):
        seen = connection.recv(4096, socket.MSG_PEEK)
        if not seen or len(line) > limit_bytes:
            raise ConnectionResetError(errno.ECONNRESET, "the gateway closed the connection")
        end = seen.find(b"\n")
        line += connection.recv(end + 1 if end >= 0 else len(seen))
    answer = json.loads(bytes(line))
    if not isinstance(answer, dict) or answer.get("omni") != 1:
        raise ValueError("that is no omni-mcp gateway")
    return answer


def control(
    home: Home, name: str, *, timeout_s: float = ANSWER_TIMEOUT_S, arguments: dict[str, Any] | None = None
) -> dict[str, Any] | None:
    """Ask the running gateway for *name* (`status`, `ping`, `drain`; `replay` with *arguments*); None if none runs or
    it does not answer."""
    try:
        connection = connect(home)
        if connection is None:
            return None
        with connection:
            asked = {"omni": 1, "control": name, **({"arguments": arguments} if arguments is not None else {})}
            return request(connection, asked, timeout_s=timeout_s)
    except (OSError, ValueError, StartFailed):
        return None


def log_file(home: Home) -> str:
    """Where a gateway that a client started says what happens."""
    return os.path.join(home.data, "gateway.log")


def _check_holder(home: Home) -> None:
    """Refuse to start a second gateway beside one that has no socket and will not get one."""
    note = read_note(home.daemon_lock)
    if note is None:
        return
    if note.get("embedded"):
        raise StartFailed(
            f"process {note.get('pid')} runs an embedded gateway in {home.data}; it serves one client only"
        )
    if "url" in note and not note.get("socket"):
        raise StartFailed(
            f"the running gateway (process {note.get('pid')}) has no local socket; see: omni-mcp status. "
            f"Connect over HTTP instead: {note['url']}"
        )


def _try_hello(home: Home, hello: dict[str, object]) -> tuple[socket.socket, dict[str, Any]] | None:
    connection = connect(home)
    if connection is None:
        return None
    try:
        answer = request(connection, hello, timeout_s=ANSWER_TIMEOUT_S)
    except (OSError, ValueError) as error:
        connection.close()
        if isinstance(error, ConnectionError):
            time.sleep(RETRY_S)
            return None  # it is ending; a new one can be started
        raise StartFailed(f"the gateway does not answer ({error}); see: omni-mcp status") from error
    if answer.get("ok") is True:
        return connection, answer
    connection.close()
    if answer.get("code") == OVERLOADED and answer.get("draining"):
        time.sleep(RETRY_S)
        return None
    raise StartFailed(f"the gateway refused: {answer.get('error')}")


def _is_outdated(answer: dict[str, Any], own: str) -> bool:
    theirs = str(answer.get("version"))
    return theirs != own and answer.get("from_shim") is True and _order(theirs) <= _order(own)


def _order(version: str) -> list[int]:
    numbers = "".join(letter if letter.isdigit() else " " for letter in version).split()
    return [int(number) for number in numbers[:3]]


def _replace(home: Home, answer: dict[str, Any], *, deadline_s: float) -> None:
    control(home, "drain")
    ends_s = min(deadline_s, time.monotonic() + DRAIN_TIMEOUT_S)
    while time.monotonic() < ends_s:
        now = control(home, "ping")
        if now is None or now.get("pid") != answer.get("pid"):
            return
        time.sleep(RETRY_S)
    raise StartFailed(f"the gateway of version {answer.get('version')} does not end; stop process {answer.get('pid')}")


def _places(home: Home) -> list[str]:
    places = [os.fspath(home.socket)]
    try:
        with open(home.daemon_lock, "rb") as stream:
            named = json.loads(stream.read(16 * 1024)).get("socket")
    except (OSError, ValueError, AttributeError):
        return places
    if isinstance(named, str) and named and named not in places:
        places.append(named)
    return places


def _check_directory(path: str) -> None:
    facts = os.lstat(path)
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o022:
        raise StartFailed(f"{path} must be a directory of yours that nobody else can write to (chmod 700 {path})")


def _owner_of(connection: socket.socket) -> int:
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return os.getuid()  # then the directory's mode is all there is
    uid: int = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, option, 12))[1]
    return uid


@contextmanager
def _start_lock(home: Home, *, deadline_s: float) -> Iterator[None]:
    try:
        make_private_dir(home.data)
        descriptor = os.open(home.data / "start.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StartFailed(f"cannot use {home.data}: {error}") from error
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline_s:
                    raise StartFailed("another client is starting the gateway and does not get done") from None
                time.sleep(RETRY_S)
        yield
    finally:
        os.close(descriptor)


def _spawn(home: Home) -> int:
    """Start the gateway as nobody's child; returns a pipe whose other end only it holds, so that its end is seen.

    Two forks and a session of its own: a client that kills our process group or our children does not reach it.
    """
    alive, held = os.pipe()
    log = os.open(log_file(home), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            if os.fork() == 0:
                for source, target in ((nothing, 0), (log, 1), (log, 2)):
                    os.dup2(source, target)
                os.set_inheritable(held, True)
                os.chdir("/")
                os.umask(0o077)
                command = [sys.executable, *_isolation(), "-m", "omni_mcp.cli.main", "serve", "--from-shim"]
                os.execve(sys.executable, command, _environment(home))
        finally:
            os._exit(127)
    os.waitpid(child, 0)
    for descriptor in (held, log, nothing):
        os.close(descriptor)
    return alive


def _isolation() -> list[str]:
    """Return the interpreter's options: never modules from the current directory, and what this process has."""
    options = ["-P"]
    if sys.flags.isolated:
        options.append("-I")
    if sys.flags.no_site:
        options.append("-S")
    return options


def _environment(home: Home) -> dict[str, str]:
    """Return this process's environment, with a home that does not depend on the current directory."""
    environment = dict(os.environ)
    if environment.get("OMNI_HOME"):
        environment["OMNI_HOME"] = os.fspath(home.config)
    return environment


def _has_ended(alive: int) -> bool:
    os.set_blocking(alive, False)
    try:
        return os.read(alive, 1) == b""
    except BlockingIOError:
        return False


def _log_size(home: Home) -> int:
    try:
        return os.stat(log_file(home)).st_size
    except OSError:
        return 0


def _log_since(home: Home, begin: int) -> str:
    """Return the last lines of the log, at most, that were written after *begin* bytes."""
    try:
        with open(log_file(home), "rb") as stream:
            stream.seek(max(begin, os.fstat(stream.fileno()).st_size - LOG_TAIL_BYTES))
            text = stream.read(LOG_TAIL_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join("  " + line for line in text.splitlines()[-8:] if line.isprintable())
