"""Calls by the API are calls like all others: one `Call` through the chain, in a run of the caller's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from omni_mcp.contracts import api
from omni_mcp.contracts.call import Answer, Call, Result
from omni_mcp.contracts.call import Handler as Chain
from omni_mcp.contracts.errors import BadRequest, Conflict, NotFound, OmniError, OutcomeUnknown
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.tool import CallKind
from omni_mcp.engines.runlog.store import SqliteRunLog
from omni_mcp.engines.state.threads import StoredThreads
from omni_mcp.serving.api.asking import CLIENT, Asking, Handler
from omni_mcp.serving.api.runs import own_run
from omni_mcp.serving.asgi import ClientGone
from omni_mcp.serving.calls import IdOf, fresh_id
from omni_mcp.serving.edge import Edge
from omni_mcp.serving.metrics import Metrics
from omni_mcp.serving.runbook import Runbook, trace_id_of

DEFAULT_PROFILE = "default"
EndRound = Callable[[str, OmniError], None]


class CallRoutes:
    """Answers the routes that make calls, those of the memory among them."""

    def __init__(
        self, chain: Chain, edge: Edge, log: SqliteRunLog, runbook: Runbook, threads: StoredThreads, metrics: Metrics,
        *, end_round: EndRound, id_of: IdOf = fresh_id,
    ) -> None:  # fmt: skip
        self._chain = chain
        self._edge = edge
        self._log = log
        self._runbook = runbook
        self._threads = threads
        self._metrics = metrics
        self._end_round = end_round
        self._id_of = id_of

    def handlers(self) -> Mapping[str, Handler]:
        """What serves each operation."""
        return {
            "make_call": self._make_call,
            "search_events": self._search_events,
            "explain_call": self._explain_call,
        }

    async def _make_call(self, asking: Asking) -> api.CallAnswered:
        wanted: api.NewCall = asking.body
        if wanted.run is not None and wanted.thread is not None:
            raise BadRequest("name a run or a thread, not both: a run has its thread", data={"path": "$.thread"})
        if not self._edge.has_profile(wanted.profile):
            raise NotFound("there is no such profile")
        return await self.make(asking, wanted)

    async def _search_events(self, asking: Asking) -> api.EventsFound:
        query: api.SearchQuery = asking.query
        arguments = query.model_dump(exclude_none=True)
        found = await self.structured(asking, "runs__search", arguments)
        return api.EventsFound(
            items=tuple(api.EventShown.model_validate(event) for event in found["events"]), more=bool(found["more"])
        )

    async def _explain_call(self, asking: Asking) -> api.CallStory:
        found = await self.structured(asking, "runs__explain", {"call": asking.place["call"]})
        return api.CallStory.model_validate(found)

    async def structured(
        self, asking: Asking, name: str, arguments: JsonObject, *, missing: str = "there is no such thing of yours"
    ) -> JsonObject:
        """Call one of the gateway's own tools and return what it found.

        Raises:
            NotFound: the tool says that it failed: what was named is not there, or is another's.
            OmniError: as the chain.
        """
        done = await self.make(asking, api.NewCall(name=name, arguments=arguments))
        if done.is_error:
            raise NotFound(missing, data={"call": done.call})
        found: JsonObject = done.result.get("structuredContent") or {}
        return found

    async def make(self, asking: Asking, wanted: api.NewCall) -> api.CallAnswered:
        """Make one call; it ends with its client's connection.

        Raises:
            OmniError: how it ended without an answer; `data` holds the id of the call once there is one.
            ClientGone: nobody waits for the answer any more.
        """
        inner = self._edge.meant(asking.principal, wanted.name, wanted.arguments) if wanted.kind == "tool" else None
        wanted = wanted if inner is None else wanted.model_copy(update=inner)
        work = self._edge.attend(self._call(asking, wanted))
        leaving = asyncio.ensure_future(asking.exchange.gone())
        try:
            await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise ClientGone
            if work.cancelled():
                raise Conflict("the gateway stopped before the call had ended")
            return work.result()
        finally:
            work.cancel()
            leaving.cancel()
            await asyncio.gather(work, leaving, return_exceptions=True)

    async def _call(self, asking: Asking, wanted: api.NewCall) -> api.CallAnswered:
        began, outcome, call_id = time.perf_counter(), "internal", None
        try:
            async with self._run_of(asking, wanted) as run:
                call = self._made(asking, wanted, run)
                call_id = call.id
                result = self._answered(call, await self._chain(call))
            outcome = "tool_error" if result.is_error else "ok"
            return api.CallAnswered(call=call.id, run=run, is_error=result.is_error, result=result.body)
        except OmniError as error:
            outcome = error.code
            if call_id is not None:
                error.data = {**error.data, "call": call_id}
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            self._metrics.call_ended(wanted.kind, outcome, time.perf_counter() - began)

    def _answered(self, call: Call, result: Result) -> Answer:
        """What a tool would ask of its caller cannot be asked here: the call is over, and the record says how."""
        if isinstance(result, Answer):
            return result
        gone = OutcomeUnknown(f"{call.name!r} needs input of its caller, which this API cannot pass on")
        self._end_round(call.id, gone)
        raise gone

    def _made(self, asking: Asking, wanted: api.NewCall, run: str) -> Call:
        arguments = checked_arguments(wanted.kind, wanted.arguments)
        return Call(
            id=self._id_of(asking.principal, wanted.kind, wanted.name, arguments),
            run=run, principal=asking.principal, client=CLIENT, kind=wanted.kind, name=wanted.name,
            arguments=arguments, profile=wanted.profile, meta=wanted.meta,
            trace=trace_id_of(wanted.meta),
        )  # fmt: skip

    @asynccontextmanager
    async def _run_of(self, asking: Asking, wanted: api.NewCall) -> AsyncIterator[str]:
        principal = asking.principal
        if wanted.run is not None:
            await own_run(self._log, wanted.run, principal)
            with self._runbook.held(principal, wanted.run):
                yield wanted.run
            return
        if wanted.thread is not None:
            await self._threads.get(wanted.thread, principal=principal.key)
        trace = trace_id_of(wanted.meta)
        async with self._runbook.joined(principal, CLIENT, trace, wanted.thread) as run:
            yield run


def checked_arguments(kind: CallKind, arguments: JsonObject) -> JsonObject:
    """Return the arguments of a call of *kind*, as its kind has them.

    Raises:
        BadRequest: a resource has none, and those of a prompt are strings.
    """
    if kind == "resource" and arguments:
        raise BadRequest("a resource is read without arguments", data={"path": "$.arguments"})
    for key, value in arguments.items() if kind == "prompt" else ():
        if not isinstance(value, str):
            raise BadRequest(f"the prompt argument {key!r} must be a string", data={"path": f"$.arguments.{key}"})
    return arguments
