"""Approval: a question to a person, and the answer, good for one call."""

from __future__ import annotations

from typing import Literal

from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.manifest import Closed

ApprovalState = Literal["pending", "approved", "denied", "expired", "used", "withdrawn"]


class Approval(Closed):
    """One question. Bound to the principal, the tool's definition and the raw arguments; used once.

    `arguments` is the masked copy that the person is shown; `arguments_digest` covers the raw ones. Times are UTC
    nanoseconds since the epoch.
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
    rules: tuple[str, ...]
    approvers: tuple[str, ...] = ()
    policy_version: str
    asked_at_ns: int
    expires_at_ns: int
    decided_at_ns: int | None = None
    decided_by: str | None = None
    note: str | None = None
