"""The memory as an MCP server: what a caller may find and change, as tools and as `memory://` resources.

It runs in process because it is ours and touches nothing but the memory and the log. Its calls are ordinary calls of
the chain, recorded in the caller's run. Whose items a call sees follows from its principal and run, never from what it
says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from omni_mcp.contracts.call import Answer, Call, Principal
from omni_mcp.contracts.errors import Conflict, InvalidArguments, NotFound, OmniError, QuotaExceeded
from omni_mcp.contracts.events import MemoryWritten, draft
from omni_mcp.contracts.json import JsonObject, canonical
from omni_mcp.contracts.memory import SERVER, Change, MemoryItem, MemorySource, Readers
from omni_mcp.contracts.ports import MemoryStore, RunLog
from omni_mcp.contracts.tool import Entry
from omni_mcp.protocol.eras import META_ERROR
from omni_mcp.protocol.outcome import error_facts
from omni_mcp.serving.memory.entries import LATEST
from omni_mcp.serving.memory.erasing import Forgetting
from omni_mcp.serving.memory.finding import Finding
from omni_mcp.serving.memory.items import URI, ItemMaker, facts_of
from omni_mcp.serving.memory.news import MemoryNews
from omni_mcp.serving.memory.places import places_of, readers_of
from omni_mcp.serving.memory.promoting import Quotes
from omni_mcp.serving.memory.sweeping import Sweeping
from omni_mcp.serving.memory.taint import Readings
from omni_mcp.serving.memory.tries import TRIES_LIMIT, calls_among, has_failed_with, words_for

TRIES = 5
ASKED_LIMIT = 200  # events that name one question


class MemoryExecutor:
    """Answers the server's calls from the store."""

    def __init__(
        self, store: MemoryStore, log: RunLog, finding: Finding, maker: ItemMaker, quotes: Quotes, readings: Readings,
        forgetting: Forgetting, sweeping: Sweeping, news: MemoryNews,
    ) -> None:  # fmt: skip
        self._store = store
        self._log = log
        self._finding = finding
        self._maker = maker
        self._quotes = quotes
        self._readings = readings
        self._forgetting = forgetting
        self._sweeping = sweeping
        self._news = news
        self._changing: set[asyncio.Future[JsonObject]] = set()
        self._tools: dict[str, Callable[[Call], Coroutine[Any, Any, JsonObject]]] = {
            "remember": self._remember, "share": self._share, "recall": finding.recall, "list": finding.page,
            "revise": self._revise, "forget": self._forget, "promote": self._promote, "duplicates": finding.pairs,
        }  # fmt: skip

    async def execute(self, call: Call) -> Answer:
        """As the port `Executor`.

        Raises:
            InvalidArguments: what the schema cannot say is wrong: a time, two scopes at once.
            QuotaExceeded: the owner has as many items as may be.
            NotFound: there is no such resource for the caller.
        """
        if call.kind == "resource":
            return await self._finding.resource(call)
        assert call.tool is not None
        try:
            found = await self._whole(call)
        except (NotFound, Conflict) as error:
            return _said(error, call.id)
        text = {"type": "text", "text": canonical(found).decode()}
        return Answer(body={"content": [text], "structuredContent": found, "isError": False})

    async def _whole(self, call: Call) -> JsonObject:
        """Answer *call*. What changes something is done whole, with its event, even if its caller leaves meanwhile."""
        assert call.tool is not None
        work = asyncio.ensure_future(self._tools[call.tool.name](call))
        if call.tool.labels.read_only:
            return await work
        self._changing.add(work)
        work.add_done_callback(self._changed)
        return await asyncio.shield(work)

    def _changed(self, work: asyncio.Future[JsonObject]) -> None:
        self._changing.discard(work)
        if not work.cancelled():
            work.exception()  # nobody may be there any more to hear of it

    async def may_see(self, principal: Principal, entry: Entry, uri: str) -> bool:
        """Whether the principal may be told of changes of a resource of the memory."""
        if entry.server != SERVER or uri == LATEST:
            return True
        try:
            await self._store.get(uri.removeprefix(URI), readers=readers_of(principal, ""))
        except NotFound:
            return False
        return True

    async def _remember(self, call: Call) -> JsonObject:
        scope = call.arguments.get("scope", "agent")
        places = places_of(call.principal, call.run)
        if scope not in places:
            raise InvalidArguments(f"there is no scope {scope!r} for you: no user stands behind this agent")
        item = self._maker.new(
            call.arguments, call.arguments["text"], scope=scope, owner=places[scope], project=call.principal.project,
            taint=self._readings.of(call.run), source=await _source(call),
        )  # fmt: skip
        return await self._written(call, await self._put(call, item), "remembered")

    async def _put(self, call: Call, item: MemoryItem, *, expected_version: int | None = None) -> MemoryItem:
        """Store what *call* wrote. Where there is no room, what has expired makes some."""
        item = item.model_copy(update={"writer": call.principal.key})
        try:
            return await self._store.put(item, expected_version=expected_version)
        except QuotaExceeded:
            if not await self._sweeping.sweep():
                raise
            return await self._store.put(item, expected_version=expected_version)

    async def _share(self, call: Call) -> JsonObject:
        if revised := call.arguments.get("revises"):
            return await self._next_version(call, revised, shared=True)
        if "expected_version" in call.arguments:
            raise InvalidArguments("expected_version goes with revises")
        project = call.principal.project
        item = self._maker.new(
            call.arguments, call.arguments["text"], scope="project", owner=project, project=project,
            taint=self._readings.of(call.run), source=await _source(call),
        )  # fmt: skip
        return await self._written(call, await self._put(call, item), "remembered")

    async def _promote(self, call: Call) -> JsonObject:
        quoted = await self._quotes.find(call)
        scope = call.arguments.get("scope", "agent")
        places = places_of(call.principal, call.run)
        if scope not in places:
            raise InvalidArguments(f"there is no scope {scope!r} for you: no user stands behind this agent")
        source = (await _source(call)).model_copy(update=quoted.source)
        taint = tuple(sorted({*self._readings.of(call.run), *quoted.taint}))
        item = self._maker.new(
            call.arguments, quoted.text, scope=scope, owner=places[scope], project=call.principal.project, taint=taint,
            source=source,
        )  # fmt: skip
        return await self._written(call, await self._put(call, item), "promoted")

    async def _revise(self, call: Call) -> JsonObject:
        return await self._next_version(call, call.arguments["id"], shared=False)

    async def _next_version(self, call: Call, item_id: str, *, shared: bool) -> JsonObject:
        """Store the next version of an item. Without `expected_version` the newest one is taken, whoever wrote it."""
        source = await _source(call)
        wanted = call.arguments.get("expected_version")
        for tries_left in reversed(range(TRIES)):
            item = await self._own(call, item_id, shared=shared)
            if wanted not in (None, item.version):
                await self._store.touched([item.id], run=call.run, call=call.id)  # its text is on record
                raise _newer(item)
            new = self._maker.revised(item, call.arguments, taint=self._readings.of(call.run), source=source)
            try:
                stored = await self._put(call, new, expected_version=item.version)
            except Conflict:
                if wanted is None and tries_left:
                    continue
                await self._store.touched([item.id], run=call.run, call=call.id)
                raise
            return await self._written(call, stored, "revised")
        raise AssertionError("the last try returns or raises")

    async def _forget(self, call: Call) -> JsonObject:
        item = await self._own(call, call.arguments["id"], even_expired=True)
        if call.arguments.get("expected_version") not in (None, item.version):
            raise _newer(item)
        await self._touch_tries(call, item)
        await self._store.forget(item.id, readers=_only(item))
        self._note(call, item, "forgotten")
        erased = await self._forgetting.finish(by=call.principal.key)
        found: JsonObject = {
            "id": item.id, "forgotten": True, "calls_erased": len(erased.done), "calls_pending": len(erased.still_open),
        }  # fmt: skip
        made_of = item.source.model_dump(include={"from_run", "from_seq", "artifact"}, exclude_none=True)
        return {**found, "stays_on_record": made_of} if made_of else found

    async def _own(
        self, call: Call, item_id: str, *, shared: bool | None = None, even_expired: bool = False
    ) -> MemoryItem:
        """Return an item that the caller may change. Of shared items that is what it wrote itself.

        Raises:
            NotFound: there is none, it is not theirs, or somebody else shared it: one answer.
        """
        missing = NotFound(f"there is no item {item_id!r} that you may change")
        try:
            item = await self._store.get(
                item_id, readers=readers_of(call.principal, call.run), even_expired=even_expired
            )
        except NotFound as error:
            raise missing from error
        is_shared = item.scope == "project"
        if is_shared and not await self._wrote(call.principal, item):
            raise missing
        if shared is not None and shared != is_shared:
            raise InvalidArguments(
                "this item is not shared: change it with revise"
                if shared
                else "this item is shared with the project: write its next version with share and revises"
            )
        return item

    async def _wrote(self, principal: Principal, item: MemoryItem) -> bool:
        return await self._writer_of(item) == principal.key

    async def _writer_of(self, item: MemoryItem) -> str | None:
        """Return whose call wrote *item* last; None if it was no call. Who asked stays when its texts are erased."""
        if item.source.call is None:
            return None
        events = await self._log.find_call(item.source.call)
        asked = (event for event in events if event.kind == "tool_call" and event.run == item.source.run)
        return next((event.actor for event in asked), None)

    async def _written(self, call: Call, item: MemoryItem, change: Change) -> JsonObject:
        if call.grant is not None and call.grant.approved_by is not None and call.grant.approval is not None:
            await self._touch_asked(call, item, call.grant.approval)
        self._note(call, item, change)
        return {name: value for name, value in facts_of(item).items() if value is not None}

    async def _touch_asked(self, call: Call, item: MemoryItem, approval: str) -> None:
        """The calls that were sent before a person said yes carry the text, too; each names the question."""
        events = await self._log.search(approval, principal=call.principal.key, limit=ASKED_LIMIT)
        for run, asked in {(event.run, event.call) for event in events if event.call not in (None, call.id)}:
            if asked is not None and await self._is_same(call, asked):
                await self._store.touched([item.id], run=run, call=asked)

    async def _touch_tries(self, call: Call, item: MemoryItem) -> None:
        """What the writer, or who forgets now, sent before in vain goes with the item."""
        if not (words := words_for(item.text)):
            return
        writer = await self._writer_of(item)
        for principal in {call.principal.key, *([writer] if writer is not None else [])}:
            events = await self._log.search(words, principal=principal, limit=TRIES_LIMIT)
            for run, tried in calls_among(events):
                if has_failed_with(await self._log.find_call(tried), item.text):
                    await self._store.touched([item.id], run=run, call=tried)

    async def _is_same(self, call: Call, other: str) -> bool:
        """Whether *other* asked for just the same. A call that only quotes the question must stay on record."""
        digest = self._log.arguments_hmac(call.arguments)
        payloads = [event.payload or {} for event in await self._log.find_call(other) if event.kind == "tool_call"]
        return any((asked.get("name"), asked.get("arguments_hmac")) == (call.name, digest) for asked in payloads)

    def _note(self, call: Call, item: MemoryItem, change: Change) -> None:
        event = MemoryWritten(
            change=change, item=item.id, kind=item.kind, scope=item.scope, owner=item.owner, version=item.version,
            taint=item.taint, source=item.source,
        )  # fmt: skip
        self._log.append(call.run, draft(event, actor=call.principal.key, call=call.id), parent=call.parent)
        self._news.changed(item)


async def _source(call: Call) -> MemorySource:
    """Name the event that asked for this: it is on disk already, or nothing would run."""
    seq = call.parent if isinstance(call.parent, int) else None
    if seq is None and call.parent is not None and not isinstance(call.parent, int):
        seq = await call.parent.durable()
    return MemorySource(run=call.run, seq=seq, call=call.id)


def _only(item: MemoryItem) -> Readers:
    return Readers(places=((item.scope, item.owner),), project=item.project)


def _newer(item: MemoryItem) -> Conflict:
    return Conflict(f"item {item.id!r} has version {item.version} by now; look at it again")


def _said(error: OmniError, call: str) -> Answer:
    body = {
        "content": [{"type": "text", "text": error.message}],
        "isError": True,
        "_meta": {META_ERROR: error_facts(error, call)},
    }
    return Answer(body=body, is_error=True)
