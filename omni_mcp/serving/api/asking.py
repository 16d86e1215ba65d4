"""Asking: one request of the JSON API once it is understood, and the two forms of an answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from pydantic import BaseModel

from omni_mcp.contracts.call import ClientFacts, Principal
from omni_mcp.contracts.errors import CATALOGUE, OmniError
from omni_mcp.contracts.json import JsonObject
from omni_mcp.serving.asgi import Exchange, HeaderList, json_bytes
from omni_mcp.serving.room import Claim

NO_STORE = (b"cache-control", b"no-store")
CLIENT = ClientFacts(name="api", era="modern", transport="http")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """Who asks for what. `query` and `body` are instances of what the route takes; `claim` is on the room for it."""

    exchange: Exchange
    principal: Principal
    claim: Claim
    place: JsonObject = field(default_factory=dict)  # the names in the path
    query: Any = None
    body: Any = None


Handler: TypeAlias = Callable[[Asking], Awaitable["BaseModel | JsonObject | None"]]
"""Returns what is answered; None if it has answered by itself."""


async def answer(exchange: Exchange, status: int, found: BaseModel | JsonObject) -> None:
    """Send one answer."""
    value = found.model_dump(mode="json") if isinstance(found, BaseModel) else found
    await exchange.answer_json(status, json_bytes(value), [NO_STORE])


async def answer_problem(exchange: Exchange, error: OmniError, *, call: str | None = None) -> None:
    """Send an error, in the one form that errors have."""
    entry = CATALOGUE.get(error.code, CATALOGUE["internal"])
    data = {key: value for key, value in error.data.items() if key != "call"}
    shown = problem(error.code, error.message, data=data, call=call)
    headers: HeaderList = [NO_STORE]
    wait_s = error.data.get("retry_after_s")
    if isinstance(wait_s, int | float):
        headers = [NO_STORE, (b"retry-after", str(max(1, round(wait_s))).encode())]
    await exchange.answer_json(entry.http_status, json_bytes(shown), headers)


def problem(code: str, detail: str, *, data: dict[str, object] | None = None, call: str | None = None) -> JsonObject:
    """Return the body of an error."""
    entry = CATALOGUE.get(code, CATALOGUE["internal"])
    next_step = entry.recovery if call is None else entry.recovery.replace(" CALL`", f" {call}`")
    approval = (data or {}).get("approval")
    if isinstance(approval, str):
        next_step = next_step.replace(" ID`", f" {approval}`")
    shown: JsonObject = {"detail": detail, "code": code, "next_step": next_step}
    if call is not None:
        shown["call"] = call
    if data:
        shown["data"] = data
    return shown
