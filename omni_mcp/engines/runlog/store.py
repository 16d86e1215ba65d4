"""The run log on SQLite: one writer thread that commits in groups, readers apart, everything sealed into chains."""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from weakref import WeakSet

from omni_mcp.contracts.call import Durable, Principal
from omni_mcp.contracts.errors import Internal, LogCorrupt, LogUnavailable
from omni_mcp.contracts.events import Draft, RunCreated, RunEvent, RunKind, draft, told_by
from omni_mcp.contracts.ids import new_id
from omni_mcp.contracts.json import JsonObject, JsonValue, canonical
from omni_mcp.contracts.ports import Masker
from omni_mcp.contracts.premises import own_part
from omni_mcp.engines.runlog.anchor import ANCHOR_FILE, AnchorKeeper, check_anchor, find_anchor
from omni_mcp.engines.runlog.asking import calls_of, newest_refusal
from omni_mcp.engines.runlog.bodies import BODY_LIMIT_BYTES, DIRECTORY, BodyFiles
from omni_mcp.engines.runlog.connection import REPAIR_HINT, open_writer, translated
from omni_mcp.engines.runlog.following import Followed
from omni_mcp.engines.runlog.guards import SCHEMA, mend_triggers
from omni_mcp.engines.runlog.housekeeper import Housekeeper
from omni_mcp.engines.runlog.keys import LogKeys, find_keys, make_keys
from omni_mcp.engines.runlog.ledger import Entry, Ledger, Notice
from omni_mcp.engines.runlog.paging import EventsPage
from omni_mcp.engines.runlog.projections import rebuild, values_of
from omni_mcp.engines.runlog.provenance import Place
from omni_mcp.engines.runlog.provenance_influence import influence
from omni_mcp.engines.runlog.provenance_why import why
from omni_mcp.engines.runlog.reader import LogReader
from omni_mcp.engines.runlog.recovery import orphan_drafts
from omni_mcp.engines.runlog.reserve import Reserve
from omni_mcp.engines.runlog.search_index import drop_index, find_indexed_gid
from omni_mcp.engines.runlog.sheets import SheetFiles
from omni_mcp.engines.runlog.storable import storable
from omni_mcp.engines.runlog.subscriptions import Subscription
from omni_mcp.engines.runlog.tickets import Ticket
from omni_mcp.engines.runlog.writer import Writer
from omni_mcp.migrations import migrate, read_migrations

READERS = 2
READ_PAGE = 500
RECOVERED_AT_ONCE = 1000  # well below what the writer's queue holds
QUICK_CHECK_BYTES = 64 * 1024 * 1024  # larger files are not read through at each start: `audit verify` does that

T = TypeVar("T")


class SqliteRunLog:
    """The port `RunLog`. Made by `open_run_log`; all methods belong to the event loop it was opened in."""

    def __init__(
        self, file: Path, opened: OpenedLedger, anchor: AnchorKeeper, notices: Sequence[str], masker: Masker,
        now_ns: Callable[[], int], gateway_version: str,
    ) -> None:  # fmt: skip
        self.notices = tuple(notices)  # what was found wrong at the start and did not keep the log from opening
        self._keys = opened.keys
        self._masker = masker
        self._now_ns = now_ns
        self._gateway_version = gateway_version
        self._subscriptions: WeakSet[Subscription] = WeakSet()
        opened.ledger.masker = masker
        self._writer = Writer(opened.ledger, Housekeeper(file, anchor), self._announce)
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="run-log-reader")
        self._readers: queue.SimpleQueue[LogReader] = queue.SimpleQueue()
        for _ in range(READERS):
            self._readers.put(LogReader(file))

    @property
    def healthy(self) -> bool:
        """Whether the last write succeeded, no outcome waits for a better time, and there is room in the queue."""
        return self._writer.healthy

    @property
    def problems(self) -> tuple[str, ...]:
        """What an operator should look at, in sentences; events are recorded nevertheless."""
        now = self._writer.anchor_problem
        return (*self.notices, now) if now else self.notices

    async def create_run(
        self, *, kind: RunKind, principal: Principal, actor: str, client: JsonObject, trace_id: str | None = None,
        parent_run: str | None = None, title: str | None = None, thread: str | None = None,
    ) -> str:  # fmt: skip
        """Append `run_created` and return the new run's id once it is durable.

        A run without a *trace_id* is a trace of its own: its id without the dashes.

        Raises:
            LogUnavailable: it could not be written.
        """
        run = new_id()
        payload = RunCreated(
            run_kind=kind, project=principal.project, principal=principal.key,
            trace_id=trace_id or run.replace("-", ""), parent_run=parent_run, title=title, thread=thread,
            client=client, gateway_version=self._gateway_version,
        )  # fmt: skip
        await self._put(run, draft(payload, actor=actor), None, creates=True).durable()
        return run

    def append(self, run: str, draft: Draft, *, parent: Durable | int | None = None, quiet: bool = False) -> Durable:
        """Queue one event, masked, and return at once; it gets its seq when it is written.

        If *parent* could not be written, neither is this. Raises nothing: what fails shows in `durable()`.
        """
        return self._put(run, draft, parent, quiet=quiet)

    def append_outcome(
        self, run: str, draft: Draft, *, parent: Durable | int | None = None, quiet: bool = False
    ) -> Durable:
        """Like `append`; what cannot be written now is kept in bounded memory and written first on recovery."""
        return self._put(run, draft, parent, outcome=True, quiet=quiet)

    def _put(
        self, run: str, draft: Draft, parent: Durable | int | None, *, outcome: bool = False, quiet: bool = False,
        creates: bool = False,
    ) -> Ticket:  # fmt: skip
        ticket = Ticket()
        try:
            entry = self._entry(run, draft, parent, ticket)
        except Exception as error:
            ticket.error = Internal("the event could not be recorded", detail=f"{type(error).__name__} in {draft.kind}")
            ticket.settle()
            return ticket
        entry.outcome, entry.quiet, entry.creates = outcome, quiet, creates
        self._writer.put(entry)
        return ticket

    def _entry(self, run: str, draft: Draft, parent: Durable | int | None, ticket: Ticket) -> Entry:
        masked: JsonValue = told_by(draft.payload)
        if draft.premises is not None:
            masked = own_part(masked)
        privacy: tuple[str, ...] = ()
        if not draft.names_are_ours or self._masker.mask_known(masked) is not masked:
            masked, privacy = self._masker.mask(masked)
        try:
            encoded = canonical(masked)
        except TypeError:
            masked = storable(masked)
            encoded = canonical(masked)
        return Entry(
            run=run, kind=draft.kind, code=draft.code, actor=self._masker.mask_text(draft.actor), call=draft.call,
            parent=parent, privacy=privacy, payload=encoded, values=values_of(draft.kind, masked), at_ns=self._now_ns(),
            ticket=ticket, premises=draft.premises,
            body=draft.body if draft.body is not None and len(draft.body) <= BODY_LIMIT_BYTES else None,
        )  # fmt: skip

    async def recover_orphans(self) -> list[str]:
        """Give each call that a crash left open its `outcome_unknown`, then close the runs of earlier lives.

        To be awaited once, before anything is served or any run is created. Returns the ids of those calls.

        Raises:
            LogUnavailable: it could not be written; nothing may be served.
        """
        found = await self._read(orphan_drafts)
        for at in range(0, len(found), RECOVERED_AT_ONCE):
            part = found[at : at + RECOVERED_AT_ONCE]
            for ticket in [self.append_outcome(run, event, parent=parent) for run, event, parent in part]:
                await ticket.durable()
        return [event.call for _, event, _ in found if event.call is not None]

    async def rebuild_projections(self) -> None:
        """Drop everything derived and derive it anew; takes about 20 s per million events, and blocks appends.

        Raises:
            LogUnavailable: it could not be written; everything is as it was.
        """
        await self._writer.call(rebuild_projections)

    async def flush_index(self) -> None:
        """Bring the search index, its filters and the sheets up to date now."""
        await self._writer.call(lambda ledger: ledger.index())
        await self._writer.call(lambda ledger: ledger.make_copies())

    async def read(self, run: str, *, after: int = 0, limit: int = 1000) -> AsyncIterator[RunEvent]:
        """Yield events of a run in order of seq, from the one after *after*, at most *limit*."""
        while limit > 0:
            size = min(limit, READ_PAGE)
            page = await self._read(lambda reader, at=after, size=size: reader.events(run, after=at, limit=size))  # type: ignore[misc]
            for event in page:
                yield event
            if len(page) < size:
                return
            after, limit = page[-1].seq, limit - size

    async def runs(
        self, *, principal: str | None = None, limit: int = 50, before: str | None = None
    ) -> list[JsonObject]:
        """Return newest runs first, as projected."""
        return await self._read(lambda reader: reader.runs(principal=principal, limit=limit, before=before))

    async def thread_runs(
        self, thread: str, *, principal: str, since_ns: int, after: str | None = None, limit: int = 50
    ) -> list[JsonObject]:
        """Return runs of a thread in their order, as projected; none is older than *since_ns*."""
        return await self._read(
            lambda reader: reader.thread_runs(thread, principal=principal, since_ns=since_ns, after=after, limit=limit)
        )

    async def page_of_run(self, run: str, *, after: int, limit: int) -> EventsPage:
        """Return a page of events of a run as their own caller sees them; see `LogReader.page_of_run`."""
        return await self._read(lambda reader: reader.page_of_run(run, after=after, limit=limit))

    async def follow_run(self, run: str, *, after: int) -> Followed:
        """Return a page of events of a run behind the seq *after*, bounded in bytes."""
        return await self._read(lambda reader: reader.follow_run(run, after=after))

    async def follow_principal(self, principal: str, *, after: int) -> Followed:
        """Return a page of events of a principal's runs behind the global number *after*, bounded in bytes."""
        return await self._read(lambda reader: reader.follow_principal(principal, after=after))

    async def last_gid(self) -> int:
        """Return the global number of the newest event."""
        return await self._read(lambda reader: reader.last_gid())

    async def get_run(self, run: str) -> JsonObject:
        """Return one run as `runs` does.

        Raises:
            NotFound: there is no such run.
        """
        return await self._read(lambda reader: reader.get_run(run))

    async def find_call(self, call: str) -> list[RunEvent]:
        """Return the events of one call in order, or nothing."""
        return await self._read(lambda reader: reader.find_call(call))

    async def search(
        self, query: str, *, principal: str | None = None, run: str | None = None, limit: int = 20
    ) -> list[RunEvent]:
        """Return events that contain every word of *query*, newest first. Any text is a valid query."""
        return await self._read(lambda reader: reader.search(query, principal=principal, run=run, limit=limit))

    async def calls_of(self, run: str, *, limit: int) -> list[JsonObject]:
        """Return the newest calls of a run, newest first; see `asking.calls_of`."""
        return await self._read(lambda reader: calls_of(reader, run, limit=limit))

    async def newest_refusal(self, *, principal: str) -> str | None:
        """Return the newest refused call in the newest runs of a principal; None if there is none."""
        return await self._read(lambda reader: newest_refusal(reader, principal))

    async def why(self, sha256: str, *, principal: str | None = None) -> JsonObject:
        """Return the paths that led to an artifact; see `provenance_why.why`.

        Raises:
            NotFound: nothing on record has left it, or another's run has: the same answer.
        """
        return await self._read(lambda reader: why(reader, sha256, principal=principal).as_json())

    async def influence(self, run: str, seq: int, *, principal: str | None = None) -> JsonObject:
        """Return what one event went into; see `provenance_influence.influence`.

        Raises:
            NotFound: there is no such event, or it is another's: the same answer.
        """
        return await self._read(lambda reader: influence(reader, Place(run, seq), principal=principal).as_json())

    def subscribe(self, wants: Callable[[str, bool], bool] | None = None) -> AsyncIterator[tuple[str, int, bool]]:
        """Yield `(run, last seq, quiet)` after each commit from now on; several commits of one run may come as one.

        *wants* is asked with run and quiet in the event loop, whether to yield a commit; it may not wait or raise.
        """
        subscription = Subscription(wants)
        self._subscriptions.add(subscription)
        return subscription

    def arguments_hmac(self, arguments: JsonValue) -> str:
        """Return the keyed hash under which raw arguments are recorded."""
        return self._keys.arguments_hmac(arguments)

    def key_for(self, purpose: str) -> bytes:
        """Return a key of this home that is the same after a restart and in an offline replay."""
        return self._keys.key_for(purpose)

    async def _read(self, work: Callable[[LogReader], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._with_reader, work)

    def _with_reader(self, work: Callable[[LogReader], T]) -> T:
        reader = self._readers.get()
        try:
            return work(reader)
        finally:
            self._readers.put(reader)

    def _announce(self, notices: list[Notice]) -> None:
        for subscription in list(self._subscriptions):
            subscription.tell(notices)

    def start(self) -> None:
        """Start the writer's thread."""
        self._writer.start()

    async def close(self) -> None:
        """Write what is queued and free everything."""
        await self._writer.close()
        for subscription in list(self._subscriptions):
            subscription.end()
        self._pool.shutdown(wait=True)
        while not self._readers.empty():
            self._readers.get().close()


@asynccontextmanager
async def open_run_log(
    file: Path, *, keys: Path, masker: Masker, now_ns: Callable[[], int] = time.time_ns, events_per_run: int = 100_000,
    gateway_version: str,
) -> AsyncIterator[SqliteRunLog]:  # fmt: skip
    """Open the run log in *file*, made if there is none; the caller holds the lock on the data directory.

    Args:
        keys: the directory of the key files, made if there is no log yet.

    Raises:
        LogCorrupt: the file is damaged, was changed, is older than it was, is newer than this program, or its key is
            missing.
        LogUnavailable: it is locked or cannot be written.
    """
    opened = await asyncio.to_thread(open_ledger, file, keys, events_per_run=events_per_run)
    try:
        anchor = AnchorKeeper(keys, opened.keys, kept=opened.anchored)
        await asyncio.to_thread(_sweep_files, file, opened.ledger.connection)
        unreserved = await asyncio.to_thread(Reserve(file.parent).hold)
        notices = (*opened.notices, unreserved) if unreserved else opened.notices
        log = SqliteRunLog(file, opened, anchor, notices, masker, now_ns, gateway_version)
        log.start()
        try:
            yield log
        finally:
            await log.close()
    finally:
        await asyncio.to_thread(opened.ledger.connection.close)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedLedger:
    """What writes to a log, its keys, how many events its anchor knows, and what was found wrong on the way."""

    ledger: Ledger
    keys: LogKeys
    anchored: int
    notices: tuple[str, ...]


def open_ledger(file: Path, keys: Path, *, events_per_run: int) -> OpenedLedger:
    """Open, check and migrate *file*, bring missing guards back, and return what writes to it.

    Raises:
        LogCorrupt, LogUnavailable: as `open_run_log` says.
    """
    found = find_keys(keys)
    is_new = not file.exists() or file.stat().st_size == 0
    if is_new and found is not None:
        detail = (
            f"{file} is gone although its key is in {keys}. Restore it; for a new log, move the files log-* there away"
        )
        raise LogCorrupt("the run log is missing", detail=detail)
    try:
        connection = open_writer(file)
    except sqlite3.Error as error:
        raise translated(error, file) from error
    try:
        _check(connection, file)
        migrate(connection, read_migrations(SCHEMA))
        notices = [*mend_triggers(connection), *_mend_index(connection)]
        if found is None and connection.execute("SELECT EXISTS (SELECT 1 FROM events)").fetchone()[0]:
            detail = f"{keys} holds no key for {file}: restore it, or nothing can be authenticated"
            raise LogCorrupt("the key of the run log is missing", detail=detail)
        log_keys = found or make_keys(keys)
        anchor = find_anchor(keys, log_keys)  # before the head: a gateway that writes meanwhile moves both on
        ledger = Ledger(connection, file, log_keys, events_per_run=events_per_run)
        if anchor is not None:
            check_anchor(connection, anchor, ledger.head)
        elif ledger.head.count:
            notices.append(f"{keys / ANCHOR_FILE} is gone: nobody can say whether the run log is older than it was")
        return OpenedLedger(
            ledger=ledger, keys=log_keys, anchored=anchor.count if anchor else 0, notices=tuple(notices)
        )
    except BaseException as error:
        connection.close()
        if isinstance(error, sqlite3.Error):
            raise translated(error, file) from error
        raise


def _sweep_files(file: Path, connection: sqlite3.Connection) -> None:
    """Remove files beside the log that nothing in it names.

    Raises:
        LogUnavailable: one cannot be removed, or the log cannot be read.
    """
    try:
        BodyFiles(file.parent / DIRECTORY).sweep(connection)
        SheetFiles(file).sweep(connection)
    except sqlite3.Error as error:
        raise translated(error, file) from error
    except OSError as error:
        detail = f"what a crash left beside {file} cannot be removed: {error}"
        raise LogUnavailable("the run log cannot be written", detail=detail) from error


def rebuild_projections(ledger: Ledger) -> None:
    """Drop everything derived and derive it anew, in one transaction; then make sheets and filters, one by one."""
    with ledger.transaction():
        rebuild(ledger.connection)
        ledger.sheets.forget_all()
        ledger.reload_index_state()
    ledger.make_copies()


def _mend_index(connection: sqlite3.Connection) -> list[str]:
    """Drop a search index that lost its place; it fills again beside the next events."""
    if find_indexed_gid(connection) is not None:
        return []
    connection.execute("BEGIN IMMEDIATE")
    try:
        drop_index(connection)
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    return ["the search index did not know how far it went; it is made anew"]


def _check(connection: sqlite3.Connection, file: Path) -> None:
    """Look for damage: through the whole file where that is quick, else at its schema only."""
    if file.stat().st_size <= QUICK_CHECK_BYTES:
        found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise LogCorrupt("the run log is damaged", detail=f"{file}: {found}. {REPAIR_HINT}")
    else:
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
