"""The local socket: mode 0600 in a directory of ours, the kernel says who calls, one hello line, then MCP lines.

A connection begins with one line of JSON, either a hello (`{"omni": 1, "agent", "profile", "server", "version"}`) or,
for the command line, a control request (`{"omni": 1, "control": "status"}`; `"replay"` and `"drain"` take
`"arguments"`). Both are answered with one line; after the answer to a hello the connection carries MCP.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import orjson

from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.errors import (
    AlreadyRunning,
    BadRequest,
    ConfigError,
    Internal,
    OmniError,
    Overloaded,
    Problem,
    TooLarge,
)
from omni_mcp.contracts.json import JsonObject
from omni_mcp.engines.identity.peer import peer_of, principal_of_peer
from omni_mcp.paths import make_private_dir

PROTOCOL = 1
PATH_LIMIT_BYTES = 107  # sun_path holds 108 with its closing zero (man 7 unix)
READ_AHEAD_BYTES = 256 * 1024
BACKLOG = 128
DEFAULT_PROFILE = "default"

_HELLO_FIELDS = {"omni", "agent", "profile", "server", "version"}

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter, Principal, str], Awaitable[None]]
Control = Callable[[], Awaitable[JsonObject]]
Work = Callable[[JsonObject], Awaitable[JsonObject]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketLimits:
    """What one peer may take before it is known, and how many may be connected."""

    connections: int = 512
    hello_bytes: int = 4096
    hello_timeout_s: float = 5.0
    goodbye_timeout_s: float = 1.0
    linger_s: float = 0.5


class SocketFace:
    """The listening socket while it is open: who is connected, and how to stop."""

    def __init__(
        self, serve: Serve, control: Mapping[str, Control], *, about: JsonObject, own_uid: int, limits: SocketLimits,
        has_profile: Callable[[str], bool], work: Mapping[str, Work],
    ) -> None:  # fmt: skip
        self._work = work
        self._serve = serve
        self._control = control
        self._about = {"omni": PROTOCOL, "pid": os.getpid(), **about}
        self._own_uid = own_uid
        self._limits = limits
        self._has_profile = has_profile
        self._tasks: set[asyncio.Task[None]] = set()
        self._clients = 0
        self._idle_since_s = time.monotonic()
        self._accepting = True
        self._refused = 0

    @property
    def clients(self) -> int:
        """How many connections are past their hello."""
        return self._clients

    @property
    def refused(self) -> int:
        """How many connections were turned away before they were clients."""
        return self._refused

    @property
    def idle_s(self) -> float:
        """Seconds since the last client left, or since the start; 0 while one is connected."""
        return 0.0 if self._clients else time.monotonic() - self._idle_since_s

    def stop_accepting(self) -> None:
        """Turn new clients away; those connected stay."""
        self._accepting = False

    async def close_clients(self) -> None:
        """End every connection that is left; answers already written are sent first."""
        self._accepting = False
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=2 * self._limits.goodbye_timeout_s)

    async def on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take one connection through hello to its end; never raises."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._converse(reader, writer)
        except OmniError as error:
            self._refused += 1
            refusal = {"ok": False, "code": error.code, "error": error.message, "draining": not self._accepting}
            await self._say(writer, refusal)
            await self._hear_out(reader, writer)
        except (OSError, EOFError, asyncio.CancelledError):
            pass  # the peer left, or we are closing: either way nobody is there to be told
        finally:
            await self._part(writer)
            self._tasks.discard(task)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._tasks) > self._limits.connections:
            raise Overloaded("too many connections; close some clients")
        peer = peer_of(writer.get_extra_info("socket").fileno())
        principal_of_peer(peer, own_uid=self._own_uid)  # before a byte of theirs is read
        request = await self._first_line(reader)
        if "control" in request:
            await self._answer_control(writer, request)
            return
        agent, profile = self._read_hello(request)
        principal = principal_of_peer(peer, own_uid=self._own_uid, agent=agent)
        if not self._accepting:
            raise Overloaded("the gateway is about to end")
        await self._say(writer, {"ok": True})
        self._clients += 1
        try:
            await self._serve(reader, writer, principal, profile)
        finally:
            self._clients -= 1
            self._idle_since_s = time.monotonic()

    async def _first_line(self, reader: asyncio.StreamReader) -> JsonObject:
        try:
            async with asyncio.timeout(self._limits.hello_timeout_s):
                line = await reader.readuntil(b"\n")
        except asyncio.LimitOverrunError as error:
            raise TooLarge("the first line is too long") from error
        except TimeoutError as error:
            raise BadRequest("no hello came in time") from error
        if len(line) > self._limits.hello_bytes:
            raise TooLarge("the first line is too long")
        try:
            request = orjson.loads(line)
        except ValueError as error:
            raise BadRequest("the first line is not JSON; this socket is for omni-mcp's own commands") from error
        if not isinstance(request, dict) or request.get("omni") != PROTOCOL:
            raise BadRequest(f'the first line must be an object with "omni": {PROTOCOL}')
        return request

    def _read_hello(self, request: JsonObject) -> tuple[str | None, str]:
        unknown = sorted(set(request) - _HELLO_FIELDS)
        if unknown:
            raise BadRequest(f"unknown field {unknown[0]!r} in the hello")
        for field in ("agent", "profile", "server", "version"):
            if not isinstance(request.get(field), str | None):
                raise BadRequest(f"field {field!r} of the hello must be text")
        if request.get("profile") and request.get("server"):
            raise BadRequest("a client asks for a profile or for a server, not for both")
        profile = request.get("profile") or request.get("server") or DEFAULT_PROFILE
        if not self._has_profile(profile):
            raise BadRequest(f"there is no profile or server {profile!r} here")
        return request.get("agent") or None, profile

    async def _answer_control(self, writer: asyncio.StreamWriter, request: JsonObject) -> None:
        name = request["control"]
        handler = self._control.get(name) if isinstance(name, str) else None
        fields = {"omni", "control"}
        if isinstance(name, str) and name in self._work and isinstance(request.get("arguments"), dict):
            handler, fields = partial(self._work[name], request["arguments"]), {*fields, "arguments"}
        if handler is None or set(request) != fields:
            raise BadRequest(f"no such control request; there are: {', '.join(sorted({*self._control, *self._work}))}")
        try:
            answer = await handler()
        except OmniError:
            raise
        except Exception as error:
            raise Internal("the gateway could not answer", detail=repr(error)) from error
        await self._say(writer, {"ok": True, **answer})

    async def _say(self, writer: asyncio.StreamWriter, answer: JsonObject) -> None:
        try:
            writer.write(orjson.dumps({**self._about, **answer}) + b"\n")
            async with asyncio.timeout(self._limits.goodbye_timeout_s):
                await writer.drain()
        except (OSError, TimeoutError):
            return  # the peer left without its answer

    async def _hear_out(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Throw away what a refused peer still sends: closing on unread bytes can cost it our answer (man 7 unix)."""
        try:
            writer.write_eof()
            async with asyncio.timeout(self._limits.linger_s):
                while await reader.read(READ_AHEAD_BYTES):
                    pass
        except (OSError, TimeoutError):
            return

    async def _part(self, writer: asyncio.StreamWriter) -> None:
        """Send what is still in the buffer, for a bounded time, then close for good."""
        writer.close()
        try:
            async with asyncio.timeout(self._limits.goodbye_timeout_s):
                await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.CancelledError):
            writer.transport.abort()


@asynccontextmanager
async def serve_socket(
    path: Path,
    serve: Serve,
    control: Mapping[str, Control],
    *,
    about: JsonObject,
    has_profile: Callable[[str], bool] = lambda name: True,
    work: Mapping[str, Work] | None = None,
    own_uid: int | None = None,
    limits: SocketLimits | None = None,
) -> AsyncIterator[SocketFace]:
    """Listen at *path* until the context is left; *serve* gets each client's streams, principal and profile.

    *about* is part of every answer: the gateway's version, and whether a client started it. *work* are the control
    requests that take arguments.

    Raises:
        ConfigError: the directory is open to others, or no socket can be made there.
        AlreadyRunning: another process listens there.
    """
    face = SocketFace(
        serve, control, about=about, own_uid=os.getuid() if own_uid is None else own_uid,
        limits=limits or SocketLimits(), has_profile=has_profile, work=work or {},
    )  # fmt: skip
    lock = _take_place(path)
    try:
        listener = _bind(path)
        server = await asyncio.start_unix_server(
            face.on_connection, sock=listener, limit=READ_AHEAD_BYTES, backlog=BACKLOG
        )
        try:
            yield face
        finally:
            face.stop_accepting()
            with suppress(FileNotFoundError):
                os.unlink(path)
            server.close()
            await face.close_clients()
    finally:
        os.close(lock)


def _take_place(path: Path) -> int:
    """Lock the place beside the socket and remove a socket that a dead gateway left; returns the lock's descriptor."""
    if len(os.fsencode(path)) > PATH_LIMIT_BYTES:
        raise _refused(path, f"the path is longer than {PATH_LIMIT_BYTES} bytes; set XDG_RUNTIME_DIR to a shorter one")
    try:
        make_private_dir(path.parent)
        lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise _refused(path, str(error)) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.is_symlink() or path.exists():
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise _refused(path, "something that is not a socket is in its place; move it away")
            path.unlink()
    except BlockingIOError as error:
        os.close(lock)
        raise AlreadyRunning(f"another gateway listens at {path}; see: omni-mcp status") from error
    except BaseException:
        os.close(lock)
        raise
    return lock


def _bind(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(os.fspath(path))
        path.chmod(0o600)  # before listen(): until then nobody can connect
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise _refused(path, f"no socket can be made here: {error}") from error
    return listener


def _refused(path: Path, message: str) -> ConfigError:
    return ConfigError([Problem(file=str(path), line=0, path="", message=message)])
