"""The life of a gateway process: lock, open, listen, wait, drain, close. For `serve` and `stdio --embedded`."""

from __future__ import annotations

import asyncio
import errno
import gc
import ipaddress
import os
import resource
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
import structlog
import uvloop

from omni_mcp import __version__
from omni_mcp.assembly import open_gateway
from omni_mcp.config import ServerSettings, Settings
from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.errors import BadRequest, ConfigError, Conflict, OmniError, Problem
from omni_mcp.contracts.ids import iso_time
from omni_mcp.contracts.json import JsonObject
from omni_mcp.datalock import DataLock
from omni_mcp.engines.identity.keys import local_user, mint_first_token
from omni_mcp.engines.identity.peer import Peer, principal_of_peer
from omni_mcp.gateway import Gateway
from omni_mcp.logs import LineSink, configure_logs
from omni_mcp.paths import Home, make_private_dir
from omni_mcp.replay.recorded import read_run
from omni_mcp.replay.rerun import asked_options, rerun
from omni_mcp.serving.http import serve_http
from omni_mcp.serving.lines import serve_lines
from omni_mcp.serving.socket import DEFAULT_PROFILE, SocketFace, serve_socket
from omni_mcp.serving.stdio import stdio_streams

WAITS_FOR_INPUT = "a call that waits for its caller's input"
DRAIN_LIMIT_S = 24 * 3600.0  # what an operator may give calls to end
DRAIN_TIMEOUT_S = 6.0  # of the 10 s in which a gateway ends; the rest is for saying goodbye and closing the log
OLD_GATEWAY_TIMEOUT_S = 15.0  # how long one started by a client waits for its predecessor to end
DESCRIPTORS = 65536
OBJECTS_BEFORE_COLLECTION = 20_000  # Python's own 700 collects while a call is under way, and finds it all alive

Opener = Callable[[Settings, Home], AbstractAsyncContextManager[Gateway]]
Announce = Callable[[JsonObject], None]


class StopSignal:
    """The one place where a reason to end arrives, whoever gives it first."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self._at_once = asyncio.Event()
        self.reason = ""
        self.patience_s = DRAIN_TIMEOUT_S

    def ask(self, reason: str, *, patience_s: float = DRAIN_TIMEOUT_S) -> None:
        """Ask the process to end and to give running calls *patience_s*; asking a second time ends that wait."""
        if self._asked.is_set():
            self._at_once.set()
            return
        self.reason = reason
        self.patience_s = patience_s
        self._asked.set()

    async def asked(self) -> str:
        """Wait until somebody asks; returns the reason."""
        await self._asked.wait()
        return self.reason

    async def asked_twice(self) -> None:
        """Wait until somebody who has asked loses patience."""
        await self._at_once.wait()


@dataclass(slots=True)
class HttpActivity:
    """Counts what is open over HTTP: a gateway that a client started does not end under one that uses HTTP."""

    app: Any
    open: int = 0
    last_s: float = field(default_factory=time.monotonic)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass an ASGI request on and count it while it is open."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        self.open += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.open -= 1
            self.last_s = time.monotonic()

    @property
    def idle_s(self) -> float:
        """Seconds since the last request ended; 0 while one is open."""
        return 0.0 if self.open else time.monotonic() - self.last_s


class Daemon:
    """A gateway with its faces open, and the facts that `omni-mcp status` prints about it."""

    def __init__(self, gateway: Gateway, home: Home, *, stop: StopSignal, from_shim: bool) -> None:
        self._gateway = gateway
        self._home = home
        self._stop = stop
        self._from_shim = from_shim
        self._started_at_ns = time.time_ns()
        self._face: SocketFace | None = None
        self._socket_problem: str | None = None
        self._activity = HttpActivity(gateway.http_app)
        self._address: tuple[str, int] = ("", 0)
        self._ending: asyncio.Task[None] | None = None
        self._left: list[str] = []  # what was still inside when the time to drain was over
        gateway.process_facts = self.facts

    async def run(self, settings: Settings, lock: DataLock, announce: Announce) -> str:
        """Open the faces, wait for a reason to end, drain, and close them; returns the reason."""
        log = structlog.get_logger()
        async with AsyncExitStack() as faces:
            await self._open_socket(faces)
            await self._open_http(faces, settings.server)
            self._publish(lock)
            faces.callback(self._home.runtime_file.unlink, missing_ok=True)
            announce(self.facts())
            faces.callback(self._end_no_more)
            if self._from_shim:
                idle = asyncio.create_task(self._watch_idle(settings.server.idle_stop_s))
                faces.callback(idle.cancel)
            reason = await self._stop.asked()
            log.info("ending", reason=reason, timeout_s=self._stop.patience_s, waits_for=self._names_inside())
            if self._face is not None:
                self._face.stop_accepting()
            await self._drain()
        return reason

    def facts(self) -> JsonObject:
        """What is known of the process itself."""
        host, port = self._address
        return {
            "running": True,
            "pid": os.getpid(),
            "version": __version__,
            "started_at": iso_time(self._started_at_ns),
            "uptime_s": round((time.time_ns() - self._started_at_ns) / 1e9, 3),
            "url": f"http://{_url_host(host)}:{port}/mcp",
            "host": host,
            "port": port,
            "socket": str(self._home.socket) if self._face is not None else None,
            "socket_problem": self._socket_problem,
            "token_file": str(self._home.token_file),
            "clients": self._face.clients if self._face is not None else 0,
            "http_open": self._activity.open,
            "tasks": len(asyncio.all_tasks()),
            "from_shim": self._from_shim,
            "draining": bool(self._stop.reason),
        }

    def status(self) -> JsonObject:
        """Return the facts of the process and those of the gateway in it."""
        return {**self.facts(), **self._gateway.status()}

    async def _open_socket(self, faces: AsyncExitStack) -> None:
        control = {
            "status": self._control_status,
            "ping": self._control_ping,
            "drain": self._control_drain,
            "undrain": self._control_undrain,
            "calls": self._control_calls,
        }
        about = {"version": __version__, "from_shim": self._from_shim}
        try:
            self._face = await faces.enter_async_context(
                serve_socket(
                    self._home.socket,
                    self._serve_client,
                    control,
                    about=about,
                    has_profile=self._has_profile,
                    work={"replay": self._control_replay, "drain": self._control_drain_calls},
                )
            )
        except ConfigError as error:
            if self._from_shim:
                raise
            self._socket_problem = error.message  # `serve` is complete without it; who wants stdio is told by status
            structlog.get_logger().warning("no_socket", problem=error.message)

    async def _open_http(self, faces: AsyncExitStack, server: ServerSettings) -> None:
        try:
            port = await faces.enter_async_context(serve_http(self._activity, server.host, server.port))
        except OSError as error:
            if not self._from_shim or error.errno != errno.EADDRINUSE:
                raise _cannot_listen(server, error) from error
            # the client that started us came over the socket; another user's gateway must not keep it out
            structlog.get_logger().warning(
                "port_taken", port=server.port, next="see omni-mcp status for the one in use"
            )
            port = await faces.enter_async_context(serve_http(self._activity, server.host, 0))
        self._address = (server.host, port)

    def _publish(self, lock: DataLock) -> None:
        """Say where we are, in the data directory and in the runtime directory: a client may know only one of them."""
        facts = self.facts()
        lock.note({key: facts[key] for key in ("version", "socket", "url", "host", "port", "started_at", "from_shim")})
        make_private_dir(self._home.runtime)
        draft = self._home.runtime_file.with_suffix(".new")
        draft.write_bytes(orjson.dumps({key: value for key, value in facts.items() if key != "uptime_s"}) + b"\n")
        draft.chmod(0o600)
        os.replace(draft, self._home.runtime_file)

    async def _serve_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, principal: Principal, profile: str
    ) -> None:
        await serve_lines(self._gateway.edge, reader, writer, principal=principal, profile=profile, transport="socket")

    def _has_profile(self, name: str) -> bool:
        return self._gateway.has_profile(name)

    async def _control_status(self) -> JsonObject:
        return self.status()

    async def _control_ping(self) -> JsonObject:
        return {}

    async def _control_drain(self) -> JsonObject:
        self._stop.ask("asked to drain")
        return {"draining": True}

    async def _control_drain_calls(self, arguments: JsonObject) -> JsonObject:
        """Let no new call in; once all are out, or the deadline has passed, end, and answer what is cut off.

        A gateway that is to stay answers at once.
        """
        deadline_s, stays = arguments.get("deadline_s"), arguments.get("stay") is True
        if not isinstance(deadline_s, int | float) or not 0 <= deadline_s <= DRAIN_LIMIT_S:
            raise BadRequest(f"deadline_s must be from 0 to {DRAIN_LIMIT_S:g}")
        self._gateway.doors.close(by=local_user(os.getuid()).key, deadline_s=None if stays else float(deadline_s))
        self._end_no_more()
        if stays:
            return self._gateway.doors.facts()
        ending = self._ending = asyncio.create_task(self._end_when_empty(), name="end when empty")
        await asyncio.wait({ending})
        if ending.cancelled():
            raise Conflict("calls are taken again, or another command drains now; see: omni-mcp status")
        return {"left": self._left}

    async def _end_when_empty(self) -> None:
        is_empty = await self._gateway.doors.empty()
        self._left = self._names_inside()
        if self._stop.reason:
            return  # somebody else asked, and asking twice would end their patience
        if is_empty:
            self._stop.ask("drained")
        else:
            self._stop.ask("the time to drain is over", patience_s=0.0)

    def _end_no_more(self) -> None:
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None

    async def _control_undrain(self) -> JsonObject:
        if self._stop.reason:
            raise Conflict("this gateway is ending; start another: omni-mcp serve")
        self._end_no_more()
        self._gateway.doors.open(by=local_user(os.getuid()).key)
        return self._gateway.doors.facts()

    async def _control_calls(self) -> JsonObject:
        return self._gateway.doors.facts()

    def _names_inside(self) -> list[str]:
        facts = self._gateway.doors.facts()
        return [str(one["name"]) for one in facts["calls"]] + [WAITS_FOR_INPUT] * facts["waiting_for_input"]

    async def _control_replay(self, arguments: JsonObject) -> JsonObject:
        run = await asyncio.to_thread(read_run, self._home, str(arguments.get("run")))
        return {"report": (await rerun(self._gateway, run, asked_options(arguments))).as_json()}

    async def _drain(self) -> None:
        """Let running calls end for a bounded time; then each is cancelled and has its outcome on record."""
        draining = asyncio.create_task(self._gateway.drain(self._stop.patience_s, reason=self._stop.reason))
        impatient = asyncio.create_task(self._stop.asked_twice())
        try:
            await asyncio.wait({draining, impatient}, return_when=asyncio.FIRST_COMPLETED)
            if not draining.done():
                await self._gateway.drain(0.0, reason=self._stop.reason)
            await draining
        finally:
            impatient.cancel()

    async def _watch_idle(self, limit_s: float) -> None:
        while True:
            idle_s = min(self._face.idle_s if self._face is not None else 0.0, self._activity.idle_s)
            if idle_s >= limit_s and not self._gateway.open_calls:
                self._stop.ask(f"no client for {limit_s:g} s")
                return
            await asyncio.sleep(max(limit_s - idle_s, 0.05))


def run_daemon(
    settings: Settings,
    home: Home,
    *,
    sink: LineSink,
    announce: Announce,
    from_shim: bool = False,
    opener: Opener = open_gateway,
) -> int:
    """Run a gateway with all its faces until it is asked to end; returns the exit code.

    Raises:
        AlreadyRunning: another gateway uses the data directory.
        ConfigError: settings, files or their permissions do not allow a start.
    """
    check_address(settings.server)
    raise_descriptor_limit()
    _log_to(sink, settings)
    make_private_dir(home.data)
    with DataLock(home.daemon_lock, wait_s=OLD_GATEWAY_TIMEOUT_S if from_shim else 0.0) as lock:
        mint_first_token(home.keys_file, home.token_file, uid=os.getuid())
        return _run_loop(_serve(settings, home, lock, sink, announce, from_shim, opener))


def run_embedded(
    settings: Settings,
    home: Home,
    *,
    sink: LineSink,
    agent: str | None,
    profile: str | None,
    principal: Principal | None = None,
    opener: Opener = open_gateway,
) -> int:
    """Run a whole gateway for the one client on this process's stdin and stdout; returns the exit code.

    Args:
        principal: whose calls they are in a replay, in place of who started this process.

    Raises:
        AlreadyRunning, ConfigError: as `run_daemon`.
    """
    own = Peer(pid=os.getppid(), uid=os.getuid(), gid=os.getgid())
    principal = principal or principal_of_peer(own, own_uid=own.uid, agent=agent)
    _log_to(sink, settings)
    make_private_dir(home.data)
    with DataLock(home.daemon_lock) as lock:
        lock.note({"version": __version__, "embedded": True})
        return _run_loop(_serve_embedded(settings, home, sink, principal, profile or DEFAULT_PROFILE, opener))


async def _serve(
    settings: Settings, home: Home, lock: DataLock, sink: LineSink, announce: Announce, from_shim: bool, opener: Opener
) -> int:
    async with _stop_signal() as stop, opener(settings, home) as gateway:
        _log_to(sink, settings, gateway)
        _reload_on_hangup(gateway)
        _collect_seldom()
        daemon = Daemon(gateway, home, stop=stop, from_shim=from_shim)
        reason = await daemon.run(settings, lock, announce)
        structlog.get_logger().info("stopped", reason=reason)
    return 0


def _collect_seldom() -> None:
    """What is there at the start stays, so no collection looks at it again; a call leaves few cycles behind."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(OBJECTS_BEFORE_COLLECTION, *gc.get_threshold()[1:])


async def _serve_embedded(
    settings: Settings, home: Home, sink: LineSink, principal: Principal, profile: str, opener: Opener
) -> int:
    async with _stop_signal() as stop, opener(settings, home) as gateway:
        _log_to(sink, settings, gateway)
        _reload_on_hangup(gateway)
        if not gateway.has_profile(profile):
            raise Conflict(f"there is no profile or server {profile!r} here")
        async with stdio_streams() as (reader, writer):
            client = asyncio.create_task(
                serve_lines(gateway.edge, reader, writer, principal=principal, profile=profile, transport="stdio")
            )
            asked = asyncio.create_task(stop.asked())
            await asyncio.wait({client, asked}, return_when=asyncio.FIRST_COMPLETED)
            if asked.done():
                await gateway.drain(DRAIN_TIMEOUT_S, reason=stop.reason)
                client.cancel()
            else:
                await gateway.drain(DRAIN_TIMEOUT_S, reason="client_left")
            asked.cancel()
            await asyncio.wait({client})
            if not client.cancelled() and (error := client.exception()) is not None:
                raise error
    return 0


@asynccontextmanager
async def _stop_signal() -> AsyncIterator[StopSignal]:
    """Yield a `StopSignal` that SIGTERM and SIGINT ask, from before anything is opened until all is closed."""
    stop = StopSignal()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.ask, number.name)
    try:
        yield stop
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _reload_on_hangup(gateway: Gateway) -> None:
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    def start() -> None:
        task = loop.create_task(_reload(gateway))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    loop.add_signal_handler(signal.SIGHUP, start)


async def _reload(gateway: Gateway) -> None:
    log = structlog.get_logger()
    try:
        await gateway.reload()
    except OmniError as error:
        log.error("reload_refused", problem=error.detail)
    else:
        log.info("reloaded")


def _log_to(sink: LineSink, settings: Settings, gateway: Gateway | None = None) -> None:
    as_json = not os.isatty(2)
    if gateway is None:
        configure_logs(sink, level=settings.log.level, as_json=as_json)
    else:
        configure_logs(sink, level=settings.log.level, as_json=as_json, mask_text=gateway.mask_text)


def _run_loop(main: Coroutine[Any, Any, int]) -> int:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def check_address(server: ServerSettings) -> None:
    """Refuse an address that others can reach, unless a proxy in front ends TLS.

    A token is always needed; without TLS it would cross the network in the clear.

    Raises:
        ConfigError: the address is not a loopback one.
    """
    if server.behind_proxy or is_loopback(server.host):
        return
    raise ConfigError(
        [
            Problem(
                file="omni.toml", line=0, path="$.server.host",
                message=f"{server.host} can be reached from outside and this gateway speaks plain HTTP; put a proxy "
                "that ends TLS in front and say so with --behind-proxy, or listen on 127.0.0.1",
            )
        ]
    )  # fmt: skip


def is_loopback(host: str) -> bool:
    """Whether *host* can only be reached from this machine. Names other than `localhost` are not asked for."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def raise_descriptor_limit() -> None:
    """Allow this process as many descriptors as it may have, up to what the caps on connections can use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _cannot_listen(server: ServerSettings, error: OSError) -> ConfigError:
    message = f"cannot listen on {server.host}:{server.port}: {error.strerror}; choose another with --port (0 for any)"
    return ConfigError([Problem(file="omni.toml", line=0, path="$.server.port", message=message)])


def _url_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host
