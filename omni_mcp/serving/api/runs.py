"""Runs, their events and the threads that group them: each caller sees its own, and another's is a missing one."""

from __future__ import annotations

from collections.abc import Mapping

from omni_mcp.contracts import api
from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.errors import BadRequest, NotFound
from omni_mcp.contracts.ids import iso_time
from omni_mcp.contracts.json import JsonObject
from omni_mcp.engines.runlog.store import SqliteRunLog
from omni_mcp.engines.state.threads import StoredThreads, Thread
from omni_mcp.serving.api.asking import CLIENT, NO_STORE, Asking, Handler
from omni_mcp.serving.asgi import JSON_TYPE
from omni_mcp.serving.messages import NO_RUN, Messages
from omni_mcp.serving.runbook import Runbook

SEQ_DIGITS = 12


class RunRoutes:
    """Answers the routes of runs, events and threads."""

    def __init__(self, log: SqliteRunLog, runbook: Runbook, threads: StoredThreads, messages: Messages) -> None:
        self._log = log
        self._runbook = runbook
        self._threads = threads
        self._messages = messages

    def handlers(self) -> Mapping[str, Handler]:
        """What serves each operation."""
        return {
            "list_runs": self._list_runs,
            "begin_run": self._begin_run,
            "get_run": self._get_run,
            "end_run": self._end_run,
            "list_events": self._list_events,
            "report_events": self._report_events,
            "list_threads": self._list_threads,
            "create_thread": self._create_thread,
            "get_thread": self._get_thread,
            "forget_thread": self._forget_thread,
            "list_thread_runs": self._list_thread_runs,
        }

    async def _list_runs(self, asking: Asking) -> api.RunPage:
        query: api.PageQuery = asking.query
        await self._check_cursor(query.cursor, asking.principal)
        runs = await self._log.runs(principal=asking.principal.key, limit=query.limit + 1, before=query.cursor)
        return run_page(runs, query.limit)

    async def _begin_run(self, asking: Asking) -> api.RunShown:
        wanted: api.NewRun = asking.body
        if wanted.thread is not None:
            await self._threads.get(wanted.thread, principal=asking.principal.key)
        run = await self._runbook.begin(asking.principal, CLIENT, thread=wanted.thread, title=wanted.title)
        return run_shown(await self._log.get_run(run))

    async def _get_run(self, asking: Asking) -> api.RunShown:
        return run_shown(await own_run(self._log, asking.place["run"], asking.principal))

    async def _end_run(self, asking: Asking) -> None:
        run = asking.place["run"]
        await own_run(self._log, run, asking.principal)
        await self._runbook.end(asking.principal, run).durable()

    async def _list_events(self, asking: Asking) -> None:
        """Answer an `EventPage` from bytes: its events are stored as they are shown. It may be a megabyte, and counts
        until the client has taken it."""
        query: api.EventQuery = asking.query
        run = asking.place["run"]
        await own_run(self._log, run, asking.principal)
        page = await self._log.page_of_run(run, after=seq_in(query.cursor), limit=query.limit)
        following = b'"%d"' % page.last if page.more else b"null"
        body = b'{"items":[%b],"next":%b}' % (page.text, following)
        asking.claim.grow(len(body))
        await asking.exchange.answer_until_taken(200, body, [JSON_TYPE, NO_STORE])

    async def _report_events(self, asking: Asking) -> api.EventsStored:
        run, wanted = asking.place["run"], asking.body
        seqs = await self._messages.store(asking.principal, run, wanted.events)
        stored = [api.EventStored(seq=seq, kind=one.kind) for seq, one in zip(seqs, wanted.events, strict=True)]
        return api.EventsStored(run=run, events=tuple(stored))

    async def _list_threads(self, asking: Asking) -> api.ThreadPage:
        query: api.PageQuery = asking.query
        owner = asking.principal.key
        found = await self._threads.list(principal=owner, limit=query.limit + 1, before=query.cursor)
        shown = tuple(thread_shown(one) for one in found[: query.limit])
        return api.ThreadPage(items=shown, next=shown[-1].id if len(found) > query.limit else None)

    async def _create_thread(self, asking: Asking) -> api.ThreadShown:
        owner = asking.principal
        return thread_shown(await self._threads.create(owner.key, owner.project, asking.body.title))

    async def _get_thread(self, asking: Asking) -> api.ThreadShown:
        return thread_shown(await self._threads.get(asking.place["thread"], principal=asking.principal.key))

    async def _forget_thread(self, asking: Asking) -> None:
        await self._threads.forget(asking.place["thread"], principal=asking.principal.key)

    async def _list_thread_runs(self, asking: Asking) -> api.RunPage:
        query: api.PageQuery = asking.query
        owner = asking.principal.key
        thread = await self._threads.get(asking.place["thread"], principal=owner)
        await self._check_cursor(query.cursor, asking.principal)
        runs = await self._log.thread_runs(
            thread.id, principal=owner, since_ns=thread.created_at_ns, after=query.cursor, limit=query.limit + 1
        )
        return run_page(runs, query.limit)

    async def _check_cursor(self, run: str | None, principal: Principal) -> None:
        """A cursor names a run: another's would say by its page that it exists."""
        if run is None:
            return
        try:
            await own_run(self._log, run, principal)
        except NotFound as error:
            raise BadRequest("the cursor is not valid", data={"path": "$.cursor"}) from error


async def own_run(log: SqliteRunLog, run: str, principal: Principal) -> JsonObject:
    """Return the facts of a run of the principal's.

    Raises:
        NotFound: there is none, or it is another's: the same answer.
    """
    try:
        facts = await log.get_run(run)
    except NotFound as error:
        raise NotFound(NO_RUN) from error
    if facts.get("principal") != principal.key:
        raise NotFound(NO_RUN)
    return facts


def seq_in(cursor: str | None) -> int:
    """Return the seq behind which a page begins.

    Raises:
        BadRequest: the cursor is none of ours.
    """
    if cursor is None:
        return 0
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) <= SEQ_DIGITS):
        raise BadRequest("the cursor is not valid", data={"path": "$.cursor"})
    return int(cursor)


def run_page(runs: list[JsonObject], limit: int) -> api.RunPage:
    """Return one page of runs, of which one more was asked for."""
    shown = tuple(run_shown(facts) for facts in runs[:limit])
    return api.RunPage(items=shown, next=shown[-1].id if len(runs) > limit else None)


def run_shown(facts: JsonObject) -> api.RunShown:
    """Return a run as the log projects it."""
    return api.RunShown.model_validate(facts)


def thread_shown(thread: Thread) -> api.ThreadShown:
    """Return a thread."""
    return api.ThreadShown(
        id=thread.id, title=thread.title, project=thread.project, created_at=iso_time(thread.created_at_ns)
    )
