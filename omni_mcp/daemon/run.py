"""The life of a gateway process: lock, open, listen, wait, drain, close. For `serve` and `stdio --embedded`."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from typing import Any

import structlog
import uvloop

from omni_mcp import __version__
from omni_mcp.assembly import open_gateway
from omni_mcp.config import Settings
from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.errors import Conflict, OmniError
from omni_mcp.daemon.address import check_address
from omni_mcp.daemon.daemon import Announce, Daemon
from omni_mcp.daemon.stop_signal import DRAIN_TIMEOUT_S, stop_signal
from omni_mcp.datalock import DataLock
from omni_mcp.engines.identity.keys import mint_first_token
from omni_mcp.engines.identity.peer import Peer, principal_of_peer
from omni_mcp.gateway import Gateway
from omni_mcp.logs import LineSink, configure_logs
from omni_mcp.paths import Home, make_private_dir
from omni_mcp.serving.lines import serve_lines
from omni_mcp.serving.socket import DEFAULT_PROFILE
from omni_mcp.serving.stdio import stdio_streams
from omni_mcp.short_turns import take_short_turns

OLD_GATEWAY_TIMEOUT_S = 15.0  # how long one started by a client waits for its predecessor to end
DESCRIPTORS = 65536
OBJECTS_BEFORE_COLLECTION = 20_000  # Python's own 700 collects while a call is under way, and finds it all alive

Opener = Callable[[Settings, Home], AbstractAsyncContextManager[Gateway]]


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
    async with stop_signal() as stop, AsyncExitStack() as stack:
        with _collecting_later():
            gateway = await stack.enter_async_context(opener(settings, home))
        _log_to(sink, settings, gateway)
        _reload_on_hangup(gateway)
        collect_seldom()
        take_short_turns()
        daemon = Daemon(gateway, home, stop=stop, from_shim=from_shim)
        reason = await daemon.run(settings, lock, announce)
        structlog.get_logger().info("stopped", reason=reason)
    return 0


@contextmanager
def _collecting_later() -> Iterator[None]:
    """Look for no garbage meanwhile, which takes a tenth of the time; `collect_seldom` does it once, at the end."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def collect_seldom() -> None:
    """What is there at the start stays, so no collection looks at it again; a call leaves few cycles behind."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(OBJECTS_BEFORE_COLLECTION, *gc.get_threshold()[1:])


async def _serve_embedded(
    settings: Settings, home: Home, sink: LineSink, principal: Principal, profile: str, opener: Opener
) -> int:
    async with stop_signal() as stop, opener(settings, home) as gateway:
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


def raise_descriptor_limit() -> None:
    """Allow this process as many descriptors as it may have, up to what the caps on connections can use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
