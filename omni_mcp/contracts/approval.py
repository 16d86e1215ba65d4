"""A person's yes: an Approval is good for one call, a StandingGrant for calls of its scope until it expires."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.hosts import is_covered
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.manifest import Closed, HostName
from omni_mcp.contracts.tool import Entry

ApprovalState = Literal["pending", "approved", "denied", "expired", "used", "withdrawn"]


class Approval(Closed):
    """One question. Bound to the principal, the tool's definition and the raw arguments; used once.

    `arguments` is the masked copy that the person is shown; `arguments_digest` is the keyed hash of the raw ones.
    `hosts` is where the call would be given a way out to. Times are UTC nanoseconds since the epoch.
    """

    id: str
    state: ApprovalState
    principal: str
    project: str
    run: str
    call: str
    server: str
    tool: str
    name: str
    definition_digest: str
    arguments_digest: str
    arguments: JsonObject
    labels: JsonObject
    hosts: tuple[str, ...] = ()
    rules: tuple[str, ...]
    approvers: tuple[str, ...] = ()
    policy_version: str
    asked_at_ns: int
    expires_at_ns: int
    decided_at_ns: int | None = None
    decided_by: str | None = None
    note: str | None = None


class StandingGrant(Closed):
    """A yes in advance: calls of tools in its scope are not asked about. It allows nothing that no rule allows.

    `principal` is a principal's key, or None for everyone of `project`; `tool` None is every tool of `server`.
    `definitions` are the digests of the definitions that it is good for, None whatever the tools become. `hosts` are
    those that a call may reach beside the ones that its tool's manifest names; grants older than the field have None,
    which is no other host. Times are UTC nanoseconds since the epoch.
    """

    id: str
    principal: str | None
    project: str
    server: str
    tool: str | None
    definitions: tuple[str, ...] | None
    hosts: tuple[HostName, ...] | None = None
    given_by: str
    given_at_ns: int
    expires_at_ns: int
    note: str | None = None
    revoked_at_ns: int | None = None
    revoked_by: str | None = None

    def stands_at(self, at_ns: int) -> bool:
        """Whether it is neither revoked nor expired at *at_ns*."""
        return self.revoked_at_ns is None and at_ns < self.expires_at_ns

    def covers(self, principal: Principal, entry: Entry, hosts: Sequence[str] = ()) -> bool:
        """Whether a call of *entry* by *principal* that may reach *hosts* is in its scope, every host of it."""
        named = entry.manifest.hosts if entry.manifest is not None else ()
        open_to = (*named, *(self.hosts or ()))
        return (
            entry.kind == "tool"
            and self.server == entry.server
            and self.tool in (None, entry.name)
            and self.project == principal.project
            and self.principal in (None, principal.key)
            and (self.definitions is None or entry.digest in self.definitions)
            and all(is_covered(host, open_to) for host in hosts)
        )
