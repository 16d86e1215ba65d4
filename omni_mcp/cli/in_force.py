"""Waiting until the running gateway goes by what a command wrote: the very next call shows it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from omni_mcp.cli.launch import control
from omni_mcp.contracts.errors import Conflict
from omni_mcp.contracts.lock import LockedServer
from omni_mcp.datalock import read_note
from omni_mcp.engines.catalog.lockfile import LockFile
from omni_mcp.paths import Home
from omni_mcp.servers_file import load_servers, servers_file_of
from omni_mcp.upstreams.in_force import acceptance_mark, definition_mark

WAIT_LIMIT_S = 30.0  # the gateway looks twice a second; the rest is for a loaded machine
LOOK_S = 0.1
FROM_THE_NEXT_START = ", from the next start of the gateway: none runs here"
SOON = ", within seconds: the gateway that runs here serves one client and cannot be asked"
WHERE_TO_LOOK = "see: omni-mcp status, omni-mcp doctor"


def wait_for_servers(home: Home, names: Iterable[str]) -> str:
    """Wait until the gateway uses the definitions that servers.toml has of *names* now; says if it cannot be known.

    Raises:
        Conflict: it does not, or cannot be asked.
    """

    def holds(said: dict[str, Any]) -> bool:
        now = load_servers(servers_file_of(home)).servers
        marks = {name: definition_mark(now[name]) if name in now else None for name in names}
        return all(said["servers"].get(name) == mark for name, mark in marks.items())

    return _wait(home, holds)


def wait_for_acceptance(home: Home, server: str) -> str:
    """Wait until the gateway goes by what omni.lock accepts of *server* now; says if it cannot be known.

    Raises:
        Conflict: it does not, or cannot be asked.
    """

    def holds(said: dict[str, Any]) -> bool:
        locked = LockFile(home.lock_file).read().servers.get(server, LockedServer())
        return bool(said["accepted"].get(server, acceptance_mark(LockedServer())) == acceptance_mark(locked))

    return _wait(home, holds)


def _wait(home: Home, holds: Callable[[dict[str, Any]], bool]) -> str:
    ends_s = time.monotonic() + WAIT_LIMIT_S
    while (said := control(home, "in_force")) is not None and said.get("ok") is True:
        if holds(said):
            return ""
        if time.monotonic() >= ends_s:
            raise Conflict(f"it is written down, and the gateway does not say that it holds; {WHERE_TO_LOOK}")
        time.sleep(LOOK_S)
    note = read_note(home.daemon_lock)
    if note is None:
        return FROM_THE_NEXT_START
    if not note.get("embedded"):
        raise Conflict(f"it is written down, and the gateway cannot be asked over its local socket; {WHERE_TO_LOOK}")
    return SOON
