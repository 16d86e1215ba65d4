"""The watcher looks at the policy files twice a second and has them read again when they changed and have settled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from omni_mcp.contracts.errors import ConfigError
from omni_mcp.engines.policy.files import Signature, UnsafePolicies, read_policy_files, signature_of
from omni_mcp.engines.policy.policy import CedarPolicy, Reload

POLL_S = 0.5


class PolicyWatcher:
    """Reloads a policy when its files change, and reports each attempt.

    A file that is being written is cut off for a moment, and the first half of a file can be valid and mean something
    else. So a change counts once two looks in a row see the same; only what makes the rules unsafe counts at once.

    Args:
        on_reload: called after each attempt; appends `policy_changed` or `config_rejected`.
        sleep: waits between looks.
        poll_s: seconds between looks.
    """

    def __init__(
        self,
        policy: CedarPolicy,
        on_reload: Callable[[Reload], Awaitable[None]],
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        poll_s: float = POLL_S,
    ) -> None:
        self._policy = policy
        self._on_reload = on_reload
        self._sleep = sleep
        self._poll_s = poll_s
        self._loaded: Signature | None = None  # the policy was read before we looked: the first look reads it again
        self._seen: Signature | None = None

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await self.look()
            await self._sleep(self._poll_s)

    async def look(self) -> Reload | None:
        """Look once; returns what a reload brought, None where there was none."""
        seen, safe = await asyncio.to_thread(self._facts)
        settled = seen == self._seen or not safe
        self._seen = seen
        if seen == self._loaded or not settled:
            return None
        reload = await asyncio.to_thread(self._policy.reload)
        self._loaded = None if reload.busy else seen
        if reload.changed or reload.problems:
            await self._on_reload(reload)
        return reload

    def _facts(self) -> tuple[Signature, bool]:
        seen = signature_of(self._policy.directory)
        if seen in (self._seen, self._loaded):
            return seen, True
        try:
            read_policy_files(self._policy.directory)
        except UnsafePolicies:
            return seen, False
        except ConfigError:
            pass  # broken, but ours: wait until it has settled
        return seen, True
