"""LiveServers: an edit of the files that define servers is in force within two seconds, or is reported and changes
nothing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence

from omni_mcp.config import Settings, load_settings, read_secrets
from omni_mcp.contracts.errors import ConfigError, Problem
from omni_mcp.filewatch import FileWatch
from omni_mcp.paths import Home
from omni_mcp.servers_file import servers_file_of
from omni_mcp.upstreams.behind import Behind
from omni_mcp.upstreams.definitions import Defined, read_definitions


class LiveServers:
    """Looks at omni.toml, servers.toml and the files with secrets of servers, and has the servers follow.

    Args:
        given: the settings that the gateway started with; they hold while there is no omni.toml.
        report: told of what is wrong now; of nothing once it is mended.
        renew: has the catalog ask the servers' source again.
    """

    def __init__(
        self, behind: Behind, home: Home, *, given: Settings, report: Callable[[Sequence[Problem]], None],
        renew: Callable[[], Awaitable[object]],
    ) -> None:  # fmt: skip
        self._behind = behind
        self._home = home
        self._settings = given
        self._report = report
        self._renew = renew
        self._watches = tuple(
            FileWatch(place) for place in (home.settings_file, servers_file_of(home), home.secrets / "servers")
        )

    async def look(self) -> bool:
        """Whether files changed and servers with them."""
        if not await asyncio.to_thread(self._settled_change):
            return False
        return await self.follow()

    async def follow(self) -> bool:
        """Read the files now; whether servers are others now."""
        try:
            if self._home.settings_file.exists():
                self._settings = await asyncio.to_thread(load_settings, self._home.settings_file)
        except ConfigError:
            pass  # the last good one holds; whoever watches omni.toml as a whole says what is wrong with it
        try:
            defined = await asyncio.to_thread(self._read)
            if defined.refused:
                raise ConfigError(list(defined.problems))
            changed = await self._behind.apply(defined, self._renew)
            if changed:
                await self._renew()
            self._behind.in_force.defined = defined
        except ConfigError as error:
            self._report(error.problems)
            return False
        except ValueError as error:
            self._report([Problem(file=str(servers_file_of(self._home)), line=0, path="$.secrets", message=str(error))])
            return False
        self._report(defined.problems)
        return changed

    def _settled_change(self) -> bool:
        looks = [watch.settled_change() for watch in self._watches]  # at each of them, also after a change was found
        return any(looks)

    def _read(self) -> Defined:
        secrets = read_secrets(self._settings, dict(os.environ))
        return read_definitions(self._settings.servers, self._home, secrets=secrets, environment=os.environ)
