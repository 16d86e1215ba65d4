"""Roots: a server that asks for its client's directories when it starts runs once for each set of directories.

Such a server keeps the answer for all that follows, so one process cannot serve two sets. The caller is asked with each
call, which is how a changed set comes into force.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from omni_mcp.contracts.call import AskRefused, Call, InputRequired
from omni_mcp.contracts.json import JsonObject, JsonValue
from omni_mcp.engines.upstream.faults import Garbled, RemoteError
from omni_mcp.engines.upstream.talk import Talk
from omni_mcp.protocol.eras import may_ask

METHOD = "roots/list"
STATE = "roots"
SETTLE_S = 0.05  # servers look their directories up beside what comes next, and say nothing when they have done so
PONG_S = 5.0

Roots = tuple[JsonObject, ...]


async def roots_of(call: Call) -> Roots | InputRequired:
    """Return the caller's directories, none where it has none to give; or the round that asks a modern caller."""
    if not may_ask(METHOD, call.client.capabilities):
        return ()
    if call.client.era == "handshake":
        try:
            return _roots_in(await call.link.ask(METHOD, {}))
        except AskRefused:
            return ()
    state = call.round.state if call.round is not None else None
    if call.round is None or not isinstance(state, dict) or STATE not in state:
        return InputRequired(requests={STATE: {"method": METHOD, "params": {}}}, state={STATE: True}, where="remote")
    return _roots_in(call.round.responses.get(STATE))


async def given(talk: Talk, *, wait_s: float) -> None:
    """Wait until a server that has just been greeted asked for its directories and had a moment to look at them.

    Raises:
        WireFault: it has gone.
    """
    if talk.peer.era == "modern":
        return
    with suppress(TimeoutError, RemoteError, Garbled):
        async with asyncio.timeout(wait_s):
            await talk.roots_asked.wait()
        await talk.request("ping", timeout_s=PONG_S)
        await asyncio.sleep(SETTLE_S)


def _roots_in(answer: JsonValue) -> Roots:
    found = answer.get("roots") if isinstance(answer, dict) else None
    return tuple(found) if isinstance(found, list) and all(isinstance(root, dict) for root in found) else ()
