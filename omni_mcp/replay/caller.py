"""Whoever made a recorded call, as they are now: with the roles that their keys have today."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from omni_mcp.contracts.call import ClientFacts, Principal
from omni_mcp.engines.identity.keys import Key

NO_KEY = "whoever made it has no key any more: it was revoked, or has expired"
WHICH_KEY = "whoever made it has several keys now, with different roles; none has those of then"
BY_KEY = frozenset({"http", "sse"})  # over these a client is known by its key alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who a call is made for now. `why_not` says why it cannot be, `note` what is not as it was."""

    principal: Principal
    why_not: str = ""
    note: str = ""


def caller_now(principal: Principal, client: ClientFacts, keys: Sequence[Key], *, at_ns: int) -> Caller:
    """Return *principal* with the roles of the key that it holds at *at_ns*; only keys give roles.

    Who came over a local socket needs no key; roles on record that no key confirms are dropped.
    """
    own = [key for key in keys if key.principal.key == principal.key]
    needs_key = client.transport in BY_KEY or bool(own and principal.roles)
    if not needs_key:
        return _with_roles(principal, ())
    held = {key.roles for key in own if key.holds_at(at_ns)}
    if not held:
        return Caller(principal=principal, why_not=NO_KEY)
    if len(held) > 1 and principal.roles not in held:
        return Caller(principal=principal, why_not=WHICH_KEY)
    return _with_roles(principal, principal.roles if principal.roles in held else next(iter(held)))


def _with_roles(principal: Principal, roles: tuple[str, ...]) -> Caller:
    if set(roles) == set(principal.roles):
        return Caller(principal=principal)
    note = f"its caller's roles now: {', '.join(roles) or 'none'} (then: {', '.join(principal.roles) or 'none'})"
    return Caller(principal=replace(principal, roles=roles), note=note)
