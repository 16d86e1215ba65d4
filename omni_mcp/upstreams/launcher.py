"""Launcher: starts the commands of servers in cells, and keeps the last that each wrote to its stderr."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from omni_mcp.contracts.sandbox import Connection, Mount
from omni_mcp.engines.sandbox.server_child import ServerChild, start_child
from omni_mcp.engines.sandbox.servers import ServerCells, ServerLaunch, Tail
from omni_mcp.server_definition import ServerDefinition

Mask = Callable[[str], str]


class Launcher:
    """Starts the commands of servers in cells, and keeps what each wrote to its stderr."""

    def __init__(
        self, cells: ServerCells, *, networks: tuple[str, ...], mask: Mask,
        on_connection: Callable[[str, Connection], None],
    ) -> None:  # fmt: skip
        self._cells = cells
        self._networks = networks
        self._mask = mask
        self._on_connection = on_connection
        self._tails: dict[str, Tail] = {}

    async def __call__(self, name: str, definition: ServerDefinition, environment: Mapping[str, str]) -> ServerChild:
        """Start server *name*.

        Raises:
            SandboxUnavailable, RateLimited: it cannot be started as it is to be.
        """
        launch = ServerLaunch(
            name=name, argv=_command(definition), profile=definition.profile,
            environment=environment, directories=mounts_of(definition), hosts=definition.hosts, networks=self._networks,
        )  # fmt: skip
        tail = self._tails[name] = Tail()
        return await start_child(
            self._cells, launch, mask=self._mask, tail=tail,
            on_connection=lambda connection: self._on_connection(name, connection),
        )  # fmt: skip

    def stderr_of(self, name: str) -> str:
        """Return the last that a server wrote there, masked."""
        tail = self._tails.get(name)
        return self._mask(tail.text()) if tail is not None else ""


def _command(definition: ServerDefinition) -> tuple[str, ...]:
    where = ("env", f"--chdir={definition.cwd}") if definition.cwd else ()
    return (*where, definition.command, *definition.args)


def mounts_of(definition: ServerDefinition) -> tuple[Mount, ...]:
    """Return what of this machine a server sees."""
    return tuple(
        Mount(source=Path(mount.source), inside=mount.source, writable=mount.writable, as_owner=True)
        for mount in definition.mounts
    )
