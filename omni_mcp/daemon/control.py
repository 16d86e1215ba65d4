"""Control: what the operator's own commands ask a running gateway over its socket."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping

from omni_mcp.contracts.errors import BadRequest, Conflict
from omni_mcp.contracts.json import JsonObject
from omni_mcp.daemon.stop_signal import StopSignal
from omni_mcp.engines.identity.keys import local_user
from omni_mcp.gateway import Gateway
from omni_mcp.paths import Home
from omni_mcp.replay.recorded import read_run
from omni_mcp.replay.remake import order_of, remake
from omni_mcp.replay.rerun import asked_options, rerun

WAITS_FOR_INPUT = "a call that waits for its caller's input"
DRAIN_LIMIT_S = 24 * 3600.0  # what an operator may give calls to end


class Control:
    """Answers each word.

    Args:
        facts: what `omni-mcp status` prints.
    """

    def __init__(self, gateway: Gateway, home: Home, stop: StopSignal, facts: Callable[[], JsonObject]) -> None:
        self._gateway = gateway
        self._home = home
        self._stop = stop
        self._facts = facts
        self._ending: asyncio.Task[None] | None = None
        self._being_made_again: set[str] = set()
        self._left: list[str] = []  # what was still inside when the time to drain was over

    @property
    def words(self) -> Mapping[str, Callable[[], Awaitable[JsonObject]]]:
        """What is answered at once."""
        return {
            "status": self._status, "ping": self._ping, "drain": self._drain, "undrain": self._undrain,
            "calls": self._calls, "in_force": self._in_force,
        }  # fmt: skip

    @property
    def work(self) -> Mapping[str, Callable[[JsonObject], Awaitable[JsonObject]]]:
        """What takes its time."""
        return {"replay": self._replay, "rerun": self._rerun, "drain": self._drain_calls}

    async def _status(self) -> JsonObject:
        return self._facts()

    async def _ping(self) -> JsonObject:
        return {}

    async def _drain(self) -> JsonObject:
        self._stop.ask("asked to drain")
        return {"draining": True}

    async def _drain_calls(self, arguments: JsonObject) -> JsonObject:
        """Let no new call in; once all are out, or the deadline has passed, end, and answer what is cut off.

        A gateway that is to stay answers at once.
        """
        deadline_s, stays = arguments.get("deadline_s"), arguments.get("stay") is True
        if not isinstance(deadline_s, int | float) or not 0 <= deadline_s <= DRAIN_LIMIT_S:
            raise BadRequest(f"deadline_s must be from 0 to {DRAIN_LIMIT_S:g}")
        self._gateway.doors.close(by=local_user(os.getuid()).key, deadline_s=None if stays else float(deadline_s))
        self.end_no_more()
        if stays:
            return self._gateway.doors.facts()
        ending = self._ending = asyncio.create_task(self._end_when_empty(), name="end when empty")
        await asyncio.wait({ending})
        if ending.cancelled():
            raise Conflict("calls are taken again, or another command drains now; see: omni-mcp status")
        return {"left": self._left}

    async def _end_when_empty(self) -> None:
        is_empty = await self._gateway.doors.empty()
        self._left = self.names_inside()
        if self._stop.reason:
            return  # somebody else asked, and asking twice would end their patience
        if is_empty:
            self._stop.ask("drained")
        else:
            self._stop.ask("the time to drain is over", patience_s=0.0)

    def end_no_more(self) -> None:
        """Forget that the process was to end once it is empty."""
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None

    async def _undrain(self) -> JsonObject:
        if self._stop.reason:
            raise Conflict("this gateway is ending; start another: omni-mcp serve")
        self.end_no_more()
        self._gateway.doors.open(by=local_user(os.getuid()).key)
        return self._gateway.doors.facts()

    async def _calls(self) -> JsonObject:
        return self._gateway.doors.facts()

    async def _in_force(self) -> JsonObject:
        return self._gateway.in_force()

    def names_inside(self) -> list[str]:
        """Return what is under way, by the names that were called."""
        facts = self._gateway.doors.facts()
        return [str(one["name"]) for one in facts["calls"]] + [WAITS_FOR_INPUT] * facts["waiting_for_input"]

    async def _replay(self, arguments: JsonObject) -> JsonObject:
        run = await asyncio.to_thread(read_run, self._home, str(arguments.get("run")))
        return {"report": (await rerun(self._gateway, run, asked_options(arguments))).as_json()}

    async def _rerun(self, arguments: JsonObject) -> JsonObject:
        """Make failed calls of a run again."""
        return {"report": await remake(self._gateway, self._home, order_of(arguments), self._being_made_again)}
