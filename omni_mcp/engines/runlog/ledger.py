"""The ledger gives events their numbers and seals them into the chains: one transaction for each group, all or nothing.

It belongs to one thread. The writer of a running gateway has one; the command line makes its own for an erasure. Both
may be at work on the same file: each transaction takes the write lock first, then looks whether somebody else has
committed since, and if so forgets what it had cached.
"""

from __future__ import annotations

import sqlite3
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from omni_mcp.contracts.call import Durable
from omni_mcp.contracts.errors import Conflict, Internal, LogCorrupt, LogUnavailable, NotFound, OmniError, QuotaExceeded
from omni_mcp.contracts.events import NO_BODY, OUTCOME_KINDS, QuotaReached
from omni_mcp.contracts.json import canonical
from omni_mcp.contracts.ports import Masker
from omni_mcp.contracts.premises import Premises
from omni_mcp.engines.runlog.bodies import DIRECTORY, Bodies
from omni_mcp.engines.runlog.connection import translated
from omni_mcp.engines.runlog.filter_making import FilterMaker
from omni_mcp.engines.runlog.heads import GlobalHead, Head, load_global_head, load_head, roll, save_heads
from omni_mcp.engines.runlog.keys import LogKeys
from omni_mcp.engines.runlog.premises import naming_decision, whole_decision, with_one_more
from omni_mcp.engines.runlog.projections import Fact, project
from omni_mcp.engines.runlog.random_bytes import RandomBytes
from omni_mcp.engines.runlog.rows import SALT_BYTES, Row, event_statements, in_portions, sealed_row
from omni_mcp.engines.runlog.search_index import SHARD_EVENTS, index_texts, index_up_to, indexed_gid, text_of
from omni_mcp.engines.runlog.sheet_making import SheetMaker
from omni_mcp.engines.runlog.sheets import SHEET_EVENTS, sheet_of
from omni_mcp.engines.runlog.tickets import Ticket, seq_of_parent
from omni_mcp.engines.runlog.unindexed import Unindexed

HEADS_KEPT = 10_000
INDEX_EVERY_EVENTS = 128  # each portion is a segment to merge later; a larger one holds up the group that carries it
INDEX_EVERY_BYTES = 4 * 1024 * 1024
_PROJECTED = frozenset({"run_created", "tool_call", "tool_result", "tool_error"})
_ALWAYS_ACCEPTED = frozenset({"run_closed", "erased", "quota_exceeded"})


@dataclass(slots=True, kw_only=True)
class Entry:
    """One event that waits to be written: masked, encoded, and with the time at which it was handed in."""

    run: str
    kind: str
    code: str | None
    actor: str
    call: str | None
    parent: Durable | int | None
    privacy: tuple[str, ...]
    payload: bytes
    values: tuple[object, ...]
    at_ns: int
    ticket: Ticket
    outcome: bool = False
    quiet: bool = False
    creates: bool = False
    body: bytes | None = None
    premises: Premises | None = None  # what a decision rests on beside what its payload says

    @property
    def size(self) -> int:
        """Bytes that it holds while it waits."""
        return len(self.payload) + (len(self.body) if self.body is not None else 0)


@dataclass(frozen=True, slots=True)
class Notice:
    """What subscribers hear of one run after a commit."""

    run: str
    last_seq: int
    quiet: bool


class Ledger:
    """Writes groups of entries through one connection.

    Raises:
        LogCorrupt: the heads do not fit the key or the events.
    """

    def __init__(self, connection: sqlite3.Connection, file: Path, keys: LogKeys, *, events_per_run: int) -> None:
        self.connection = connection
        self.commits = 0  # groups committed through this ledger, for whoever measures
        self.masker: Masker | None = None  # for premises of decisions; None: there will be none
        self._file = file
        self._keys = keys
        self._events_per_run = events_per_run
        self._version = -1
        self._total = GlobalHead()
        self._heads: OrderedDict[str, Head] = OrderedDict()
        self._next_run = 1
        self._open_calls: set[str] = set()
        self._indexed = 0
        self._unindexed = Unindexed()
        self.random = RandomBytes()
        self._bodies = Bodies(connection, file.parent / DIRECTORY, keys.bodies, self.random)
        self.sheets = SheetMaker(connection, file)
        self.filters = FilterMaker(connection)
        with self.transaction():
            pass

    @property
    def head(self) -> GlobalHead:
        """The global head as of the last transaction of this ledger; committed, and not to be changed."""
        return self._total

    @property
    def index_is_behind(self) -> bool:
        """Whether there are events that the search index does not have yet."""
        return self._indexed < self._total.count

    def transaction(self) -> Transaction:
        """Begin a transaction; leaving the block commits it, an exception rolls it back and nothing of it stays.

        Raises:
            LogUnavailable: locked, full or not writable.
            LogCorrupt: damaged.
        """
        return Transaction(self)

    def write(self, entries: Sequence[Entry]) -> list[Notice]:
        """Write *entries* in one transaction. Each ticket then holds a seq, or the reason why it alone was refused.

        Raises:
            LogUnavailable, LogCorrupt: nothing was written; the tickets hold nothing.
        """
        try:
            with self.transaction() as group:
                for entry in entries:
                    group.add(entry)
        except OmniError:
            for entry in entries:
                entry.ticket.written = None
            raise
        return group.notices()

    def read_words(self) -> None:
        """Find the words of what was committed, ahead of their being indexed."""
        self._unindexed.read()

    def index(self) -> None:
        """Bring the search index up to date, in a transaction of its own."""
        with self.transaction() as group:
            group.index()

    def make_sheet(self) -> None:
        """Make one sheet that is due, in a transaction of its own.

        Raises:
            LogUnavailable, LogCorrupt: it could not be made.
        """
        with self.transaction():
            self.sheets.make_one()

    def make_filter(self) -> None:
        """Make one filter of the search index that is due, in a transaction of its own.

        Raises:
            LogUnavailable, LogCorrupt: it could not be made.
        """
        with self.transaction():
            self.filters.make_one()

    def make_copies(self) -> None:
        """Make every sheet and every filter that is due."""
        while self.sheets.is_due:
            self.make_sheet()
        while self.filters.is_due:
            self.make_filter()

    def probe(self) -> None:
        """Write without changing anything.

        Raises:
            LogUnavailable, LogCorrupt: the log cannot be written.
        """
        with self.transaction():
            self.connection.execute("UPDATE search_state SET gid = gid")

    def wait_for_lock(self, timeout_s: float) -> None:
        """Set how long a transaction waits for the lock of another one."""
        self.connection.execute(f"PRAGMA busy_timeout = {int(timeout_s * 1000)}")

    def checkpoint_from(self, pages: int) -> None:
        """Set how long the write-ahead log gets before a commit moves it into the file."""
        self.connection.execute(f"PRAGMA wal_autocheckpoint = {pages}")

    def seen_by_others(self) -> int:
        return int(self.connection.execute("PRAGMA data_version").fetchone()[0])

    def translated(self, error: sqlite3.Error) -> OmniError:
        return translated(error, self._file)

    def forget(self) -> None:
        """Forget everything cached; the next transaction reads it again."""
        self._version = -1

    def refresh(self) -> None:
        """Read again what is cached if another connection has committed since, or if a transaction failed."""
        version = self.seen_by_others()
        if version == self._version:
            return
        self._total = load_global_head(self.connection, self._keys)
        self._heads.clear()
        self._bodies.forget()
        self.sheets.look_again()
        self._next_run = (self.connection.execute("SELECT max(run) FROM run_keys").fetchone()[0] or 0) + 1
        rows = self.connection.execute("SELECT call FROM open_calls")
        self._open_calls = {call for (call,) in rows}
        self.reload_index_state()
        self._version = version

    def reload_index_state(self) -> None:
        """Read again how far the index is: for work that changed it or the texts inside the current transaction."""
        self._indexed = indexed_gid(self.connection)
        self._unindexed = Unindexed()
        self.filters.look_again()

    def head_of(self, run: str) -> Head | None:
        """Return a copy of a run's head: it becomes the head when the transaction is committed."""
        head = self._heads.get(run)
        if head is None:
            return load_head(self.connection, self._keys, run)
        self._heads.move_to_end(run)
        return head.copy()


class Transaction:
    """One group of events, and what the ledger becomes when it is committed."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._heads: dict[str, Head] = {}
        self._runs: list[Row] = []
        self._rows: list[Row] = []
        self._sealed: list[Row] = []
        self._facts: list[Fact] = []
        self._fresh: list[tuple[int, bytes]] = []
        self._fresh_bytes = 0
        self._loud: dict[str, bool] = {}
        self._opened: set[str] = set()
        self._closed: set[str] = set()
        self._flushed = 0
        self._index_wanted = False
        self._indexed: int | None = None  # how far, if this group indexes
        self._filled: list[tuple[int, int]] = []

    def __enter__(self) -> Transaction:
        connection = self._ledger.connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            self._ledger.refresh()
        except BaseException as error:
            self._roll_back()
            if isinstance(error, sqlite3.Error):
                raise self._ledger.translated(error) from error
            raise
        self._total = self._ledger._total.copy()
        self._next_run = self._ledger._next_run
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            try:
                self.flush()
                self._index_if_due()
                self._ledger.connection.execute("COMMIT")
                self._adopt()
                return
            except BaseException as failure:
                error = failure
        self._roll_back()
        if isinstance(error, sqlite3.Error):
            raise self._ledger.translated(error) from error
        if isinstance(error, OSError):
            raise LogUnavailable("the run log cannot be written", detail=f"a file beside it: {error}") from error
        raise error

    def add(self, entry: Entry) -> None:
        """Number and seal one entry; a refusal goes to its ticket and leaves no trace."""
        try:
            head = self._head_for(entry)
            parent = seq_of_parent(entry.parent)
            self._check(entry, head)
            if entry.premises is not None:
                self._rest_on(entry.premises, entry, head)
            self._seal(entry, head, parent)
        except (sqlite3.Error, OSError):
            raise
        except (LogCorrupt, LogUnavailable) as error:
            entry.ticket.error = LogUnavailable("the run log cannot be written", detail=error.detail)
        except OmniError as error:
            entry.ticket.error = error
        except Exception as error:
            entry.ticket.error = Internal("the event could not be recorded", detail=repr(error))

    def flush(self) -> None:
        """Send what was added to the database, so that it can be seen inside this transaction."""
        connection = self._ledger.connection
        rows = self._rows[self._flushed :]
        for statement, values in in_portions("INSERT INTO run_keys (run, id) VALUES {rows}", "(?, ?)", self._runs):
            connection.execute(statement, values)
        for statement, values in event_statements(rows, self._sealed):
            connection.execute(statement, values)
        project(connection, self._facts)
        if rows:
            save_heads(connection, self._ledger._keys, list(self._heads.values()), self._total)
        self._runs, self._sealed, self._facts, self._flushed = [], [], [], len(self._rows)

    def index(self) -> None:
        """Index everything at the end of this transaction."""
        self._index_wanted = True

    def notices(self) -> list[Notice]:
        """Return what subscribers hear, one notice for each run that grew."""
        return [Notice(run, self._heads[run].count, not loud) for run, loud in self._loud.items()]

    def _head_for(self, entry: Entry) -> Head:
        head = self._heads.get(entry.run)
        if head is not None:
            return head
        head = self._ledger.head_of(entry.run)
        if head is None:
            if not entry.creates:
                raise NotFound("there is no such run", detail=f"run {entry.run!r} was never created")
            head = Head(self._next_run, entry.run, unlimited=bool(entry.values) and entry.values[0] == "gateway")
            self._next_run += 1
            self._runs.append((head.run_key, head.run))
        self._heads[entry.run] = head
        return head

    def _check(self, entry: Entry, head: Head) -> None:
        if entry.kind in OUTCOME_KINDS and entry.call is not None:
            is_open = entry.call in self._opened or entry.call in self._ledger._open_calls
            if not is_open or entry.call in self._closed:
                raise Conflict(
                    "the call has its outcome already", detail=f"call {entry.call} is not open: exactly one outcome"
                )
            return
        full = head.count >= self._ledger._events_per_run
        if entry.outcome or not full or head.unlimited or entry.code in _ALWAYS_ACCEPTED:
            return
        if head.quota_reached is None:
            sql = "SELECT EXISTS (SELECT 1 FROM events WHERE run = ? AND code = 'quota_exceeded')"
            head.quota_reached = bool(self._ledger.connection.execute(sql, (head.run_key,)).fetchone()[0])
        if not head.quota_reached:
            head.quota_reached = True
            limit = self._ledger._events_per_run
            payload = canonical(QuotaReached(limit=limit).model_dump())
            told = replace(
                entry, kind="system_event", code="quota_exceeded", actor="gateway", call=None, privacy=(),
                payload=payload, values=(), ticket=Ticket(), quiet=False, body=None,
            )  # fmt: skip
            self._seal(told, head, None)
        raise QuotaExceeded(
            "this run has as many events as it may have", detail=f"events_per_run = {self._ledger._events_per_run}"
        )

    def _rest_on(self, premises: Premises, entry: Entry, head: Head) -> None:
        """Give a decision the seq of its premises, which are recorded ahead of the second that has the same.

        The run's first says them itself: most runs of a single call have no second one.
        """
        seq = head.premises.get(premises.key)
        if seq is None:
            head.premises = with_one_more(head.premises, premises.key, 0)
            entry.payload, entry.privacy = whole_decision(entry.payload, entry.privacy, self._told(premises), head.run)
            return
        if seq == 0:
            payload, privacy = self._told(premises)
            told = replace(
                entry, kind="system_event", code="decision_premises", actor="gateway", call=None, privacy=privacy,
                payload=payload, values=(), ticket=Ticket(), body=None, premises=None,
            )  # fmt: skip
            self._seal(told, head, None)
            seq = head.count
            head.premises = with_one_more(head.premises, premises.key, seq)
            self._check(entry, head)
        entry.payload = naming_decision(entry.payload, seq)

    def _told(self, premises: Premises) -> tuple[bytes, tuple[str, ...]]:
        """Return premises as they are recorded, and what was masked in them."""
        masked, privacy = self._ledger.masker.mask(premises.payload) if self._ledger.masker else (premises.payload, ())
        return canonical(masked), privacy

    def _seal(self, entry: Entry, head: Head, parent: int | None) -> None:
        seq, gid = head.count + 1, self._total.count + 1
        body_digest = NO_BODY
        if entry.body is not None:
            body_digest, stored = self._ledger._bodies.seal(
                entry.body, run_key=head.run_key, run=head.run, seq=seq, gid=gid
            )
            self._sealed.append((gid, stored))
        row = sealed_row(
            run_key=head.run_key, run=head.run, seq=seq, gid=gid, at_ns=entry.at_ns, kind=entry.kind, code=entry.code,
            actor=entry.actor, call=entry.call, parent=parent, privacy=entry.privacy, payload=entry.payload,
            prev=head.hash, body_digest=body_digest, salt=self._ledger.random.take(SALT_BYTES),
        )  # fmt: skip
        self._rows.append(row)
        self._fresh.append((gid, entry.payload))
        self._fresh_bytes += len(entry.payload)
        if seq % SHEET_EVENTS == 0:
            self._filled.append((head.run_key, sheet_of(seq)))
        head.count, head.hash = seq, row[-2]
        self._total.count, self._total.hash = gid, roll(self._total.hash, row[-2])
        if entry.kind in _PROJECTED or entry.code == "run_closed":
            self._facts.append(Fact(head.run_key, seq, entry.at_ns, entry.kind, entry.code, entry.call, entry.values))
            self._note_call(entry)
        self._loud[head.run] = self._loud.get(head.run, False) or not entry.quiet
        entry.ticket.written = seq

    def _note_call(self, entry: Entry) -> None:
        if entry.call is None:
            return
        if entry.kind == "tool_call":
            self._opened.add(entry.call)
        elif entry.kind in OUTCOME_KINDS:
            self._closed.add(entry.call)

    def _index_if_due(self) -> None:
        """Index in portions; what is not indexed yet is found by readers another way (LogReader.search)."""
        ledger = self._ledger
        behind = self._total.count - ledger._indexed
        size = ledger._unindexed.bytes + self._fresh_bytes
        if not self._index_wanted and behind < INDEX_EVERY_EVENTS and size < INDEX_EVERY_BYTES:
            return
        if len(ledger._unindexed) + len(self._fresh) == behind:
            fresh = [(gid, text_of(payload)) for gid, payload in self._fresh]
            index_texts(ledger.connection, ledger._unindexed.texts() + fresh, self._total.count)
        else:  # somebody else wrote some of them
            index_up_to(ledger.connection, self._total.count)
        self._indexed = self._total.count

    def _adopt(self) -> None:
        ledger = self._ledger
        ledger.commits += 1
        ledger.sheets.fill(self._filled)
        ledger._total, ledger._next_run = self._total, self._next_run
        ledger._heads.update(self._heads)
        while len(ledger._heads) > HEADS_KEPT:
            ledger._heads.popitem(last=False)
        ledger._open_calls |= self._opened
        ledger._open_calls -= self._closed
        if self._indexed is None:
            ledger._unindexed.add(self._fresh, self._fresh_bytes)
            return
        if self._indexed // SHARD_EVENTS != ledger._indexed // SHARD_EVENTS:
            ledger.filters.look_again()
        ledger._indexed, ledger._unindexed = self._indexed, Unindexed()

    def _roll_back(self) -> None:
        self._ledger.forget()
        if self._ledger.connection.in_transaction:
            self._ledger.connection.execute("ROLLBACK")
