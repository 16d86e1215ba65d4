"""Daemon: a gateway with its faces open, from the first one that listens to the last call that has ended."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

import orjson
import structlog

from omni_mcp import __version__
from omni_mcp.config import ServerSettings, Settings
from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.errors import ConfigError
from omni_mcp.contracts.ids import iso_time
from omni_mcp.contracts.json import JsonObject
from omni_mcp.daemon.activity import HttpActivity
from omni_mcp.daemon.address import cannot_listen, url_host
from omni_mcp.daemon.control import Control
from omni_mcp.daemon.stop_signal import StopSignal
from omni_mcp.datalock import DataLock
from omni_mcp.gateway import Gateway
from omni_mcp.paths import Home, make_private_dir
from omni_mcp.serving.http import serve_http
from omni_mcp.serving.lines import serve_lines
from omni_mcp.serving.socket import SocketFace, serve_socket

Announce = Callable[[JsonObject], None]


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
        self._control = Control(gateway, home, stop, self.status)
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
            faces.callback(self._control.end_no_more)
            if self._from_shim:
                idle = asyncio.create_task(self._watch_idle(settings.server.idle_stop_s))
                faces.callback(idle.cancel)
            reason = await self._stop.asked()
            log.info("ending", reason=reason, timeout_s=self._stop.patience_s, waits_for=self._control.names_inside())
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
            "url": f"http://{url_host(host)}:{port}/mcp",
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
        about = {"version": __version__, "from_shim": self._from_shim}
        try:
            self._face = await faces.enter_async_context(
                serve_socket(
                    self._home.socket,
                    self._serve_client,
                    self._control.words,
                    about=about,
                    has_profile=self._has_profile,
                    work=self._control.work,
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
                raise cannot_listen(server, error) from error
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
