"""Verification: names each event that was changed, deleted, moved or cut off, in a database or in a pack.

The chain alone finds what was changed in the middle. Only the heads find a chain that was cut short, and a run that is
gone; whoever can write the file can write heads too, so they count for who holds the key that authenticates them.
"""

from __future__ import annotations

import hmac
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from omni_mcp.contracts.events import GENESIS, chain_hash, header_bytes, payload_digest
from omni_mcp.contracts.json import JsonObject
from omni_mcp.engines.runlog.anchor import KnownHead
from omni_mcp.engines.runlog.bodies import DIRECTORY
from omni_mcp.engines.runlog.bodies_reader import body_faults
from omni_mcp.engines.runlog.compare import projection_faults
from omni_mcp.engines.runlog.connection import open_reader, translated
from omni_mcp.engines.runlog.guards import trigger_faults
from omni_mcp.engines.runlog.heads import GLOBAL_NAME, roll
from omni_mcp.engines.runlog.keys import LogKeys
from omni_mcp.engines.runlog.rows import BODY, EVENT_COLUMNS, SALT_BYTES, Row

NAMED_EACH = 1000  # missing events of one gap that are named one by one
NAMED_IN_ALL = 50_000  # a pack that somebody made may hold a fault in each byte


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong. `seq` 0 means the run as a whole, an empty `run` the log as a whole."""

    run: str
    seq: int
    what: str

    def as_json(self) -> JsonObject:
        return {"run": self.run, "seq": self.seq, "what": self.what}

    def __str__(self) -> str:
        place = f"run {self.run} event {self.seq}" if self.seq else f"run {self.run}" if self.run else "log"
        return f"{place}: {self.what}"


@dataclass(frozen=True, slots=True)
class Tombstone:
    """An event whose text was erased, and the event of its run that says so."""

    run: str
    seq: int
    by: int

    def as_json(self) -> JsonObject:
        return {"run": self.run, "seq": self.seq, "erased_by": self.by}


@dataclass(slots=True)
class Report:
    """What a verification found. `erased` events are in order: their texts are gone and their links hold.

    `signer` is the fingerprint of whose signature a pack bears, where it fits.
    """

    runs: int = 0
    events: int = 0
    artifacts: int = 0
    erased: list[Tombstone] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    heads_checked: bool = False
    scope: str = "all"
    head: str = ""  # of the whole log, as `COUNT:HASH`: for `--head` of a later verification
    signer: str = ""
    notes: list[str] = field(default_factory=list)  # what could not be checked

    @property
    def ok(self) -> bool:
        return not self.faults

    def as_json(self) -> JsonObject:
        return {
            "ok": self.ok, "scope": self.scope, "runs": self.runs, "events": self.events, "artifacts": self.artifacts,
            "heads_checked": self.heads_checked, "head": self.head, "signed_by": self.signer,
            "notes": self.notes, "faults": [fault.as_json() for fault in self.faults],
            "erased": [tombstone.as_json() for tombstone in self.erased],
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class HeadRecord:
    """A head as stored; `run` is `*` for the global one."""

    run: str
    count: int
    hash: bytes
    mac: bytes


class Verifier:
    """Takes events run by run in order of seq, then heads; `report` says what is wrong with them."""

    def __init__(self, keys: LogKeys | None) -> None:
        self._keys = keys
        self.report = Report(heads_checked=keys is not None)
        self._run: str | None = None
        self._seq = 0
        self._hash: bytes | None = GENESIS  # None: of an event that cannot be read
        self._ends: dict[str, tuple[int, bytes | None]] = {}
        self._tombstones: list[tuple[int, int]] = []
        self._erasures: dict[int, frozenset[int]] = {}
        self._order: list[tuple[int, bytes]] = []

    def take(self, row: Row) -> None:
        """Check one event against the one before it. Columns are those of `SELECT_EVENT`."""
        run = row[0] if isinstance(row[0], str) else f"(unknown run of event {row[2]})"
        if run != self._run:
            self._end_run()
            self._begin_run(run)
        self.report.events += 1
        try:
            self._check_event(run, row)
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            seq = row[1] if isinstance(row[1], int) else self._seq + 1
            self._fault(run, seq, f"changed: cannot be read ({type(error).__name__})")
            self._seq = max(self._seq, seq)

    def skip(self, run: str, why: str) -> None:
        """Name the next event of *run* as one that cannot be read at all."""
        if run != self._run:
            self._end_run()
            self._begin_run(run)
        self.report.events += 1
        self._seq, self._hash = self._seq + 1, None
        self._fault(run, self._seq, f"changed: {why}")

    def finish(self, heads: Iterable[HeadRecord], *, whole_log: bool, known: Sequence[KnownHead] = ()) -> Report:
        """Compare all heads, and those *known* from earlier, with what was seen and return the report."""
        self._end_run()
        self._order.sort(key=lambda pair: pair[0])
        self._check_known(known, whole_log=whole_log)
        seen: set[str] = set()
        for head in heads:
            if head.run == GLOBAL_NAME:
                self._check_global(head)
            else:
                self._check_head(head)
            seen.add(head.run)
        for run in self._ends.keys() - seen:
            self._fault(run, 0, "its head is missing, so that a truncation would not be seen")
        if whole_log and self.report.events and GLOBAL_NAME not in seen:
            self._fault("", 0, "the global head is missing, so that a run that was deleted would not be seen")
        self.report.scope = "all" if whole_log else "run"
        self.report.runs = len(self._ends)
        return self.report

    def _check_event(self, run: str, row: Row) -> None:
        seq, gid, stored_prev, stored_hash = row[1], row[2], row[14], row[15]
        self._order.append((gid, stored_hash))
        if seq <= self._seq:
            self._fault(run, seq, "out of order, or there twice")
            return
        if seq > self._seq + 1:
            self._missing(run, self._seq + 1, seq - 1, "deleted")
        elif self._hash is not None and stored_prev != self._hash:
            self._fault(run, seq, "does not follow the event before it: its link was changed")
        self._seq, self._hash = seq, stored_hash
        self._check_text(run, row)
        header = header_bytes(
            v=row[4], run=run, seq=seq, at_ns=row[3], kind=row[5], code=row[6], actor=row[7], call=row[8],
            parent=row[9], privacy=tuple(orjson.loads(row[10])),
        )  # fmt: skip
        if chain_hash(stored_prev, header, row[12], row[13]) != stored_hash:
            self._fault(run, seq, "changed: its header, digests or hash are not what was sealed")

    def _check_text(self, run: str, row: Row) -> None:
        seq, code, erased_by, digest, body = row[1], row[6], row[11], row[12], row[BODY]
        if erased_by is not None:
            self.report.erased.append(Tombstone(run, seq, erased_by))
            self._tombstones.append((seq, erased_by))
            if body is not None and any(body):
                self._fault(run, seq, "said to be erased, but its text is still there")
            return
        if body is None or len(body) < SALT_BYTES:
            self._fault(run, seq, "its text is gone without an erasure")
            return
        payload = body[SALT_BYTES:]
        if payload_digest(body[:SALT_BYTES], payload) != digest:
            self._fault(run, seq, "changed: its text is not what was recorded")
        elif code == "erased":
            targets = orjson.loads(payload)
            if targets["target_run"] == run:
                self._erasures[seq] = frozenset(targets["seqs"])

    def _begin_run(self, run: str) -> None:
        if run in self._ends:
            self._fault(run, 0, "its events do not stand together")
        self._run, self._seq, self._hash = run, 0, GENESIS
        self._tombstones, self._erasures = [], {}

    def _end_run(self) -> None:
        if self._run is None:
            return
        for seq, by in self._tombstones:
            targets = self._erasures.get(by)
            if targets is None or (targets and seq not in targets) or seq >= by:
                self._fault(self._run, seq, "its text is gone, and no erasure on record covers it")
        self._ends[self._run] = (self._seq, self._hash)
        self._run = None

    def _check_head(self, head: HeadRecord) -> None:
        count, digest = self._ends.get(head.run, (0, GENESIS))
        if not self._authentic(head):
            self._fault(head.run, 0, "its head does not fit the key: it was changed, or put in place of another")
        elif count < head.count:
            self._missing(head.run, count + 1, head.count, "cut off the end")
        elif count > head.count:
            self._fault(head.run, head.count + 1, "added after the end that the head names")
        elif digest is not None and digest != head.hash:
            self._fault(head.run, count, "the chain was rewritten: it does not end where the head says")

    def _check_known(self, known: Sequence[KnownHead], *, whole_log: bool) -> None:
        """Check that the log contains what somebody noted of it earlier."""
        if known and not whole_log:
            self._fault("", 0, "this is one run, and the head to compare it with is one of the whole log")
            return
        wanted = {head.count for head in known}
        rolling, last, at = GENESIS, 0, {0: GENESIS}
        for last, digest in self._order if wanted else ():
            rolling = roll(rolling, digest)
            if last in wanted:
                at[last] = rolling
        for head in known:
            if head.count > last:
                told = f"it has {last} events, and had {head.count} by {head.source}"
                self._fault("", 0, f"older than it was, or cut off at its end: {told}")
            elif at.get(head.count) != head.hash:
                self._fault("", 0, f"its first {head.count} events are not those that {head.source} knows")

    def _check_global(self, head: HeadRecord) -> None:
        self.report.head = f"{head.count}:{head.hash.hex()}"
        if not self._authentic(head):
            self._fault("", 0, "the global head does not fit the key: it was changed")
            return
        rolling, expected = GENESIS, 1
        for gid, digest in self._order:
            if gid > expected:
                self._fault("", 0, f"{_numbers(expected, gid - 1)} gone, with whatever run they belonged to")
            expected = gid + 1
            rolling = roll(rolling, digest)
        if expected <= head.count:
            self._fault("", 0, f"{_numbers(expected, head.count)} gone, with whatever run they belonged to")
        elif expected - 1 > head.count:
            self._fault("", 0, f"there are {expected - 1 - head.count} events more than the global head counts")
        elif rolling != head.hash:
            self._fault("", 0, "hashes or the global order of events are not what the global head covers")

    def _authentic(self, head: HeadRecord) -> bool:
        if self._keys is None:
            return True
        return hmac.compare_digest(head.mac, self._keys.head_mac(head.run, head.count, head.hash))

    def _missing(self, run: str, first: int, last: int, what: str) -> None:
        if len(self.report.faults) > NAMED_IN_ALL:
            return
        for seq in range(first, min(last, first + NAMED_EACH - 1) + 1):
            self._fault(run, seq, what)
        if last - first >= NAMED_EACH:
            self._fault(run, last, f"{what}, and all from {first} on")

    def _fault(self, run: str, seq: int, what: str) -> None:
        if len(self.report.faults) < NAMED_IN_ALL:
            self.report.faults.append(Fault(run, seq, what))
        elif len(self.report.faults) == NAMED_IN_ALL:
            self.report.faults.append(Fault("", 0, f"more than {NAMED_IN_ALL} faults; the others are not named"))


def _numbers(first: int, last: int) -> str:
    return (
        f"the event with global number {first} is"
        if first == last
        else f"the events with global numbers {first} to {last} are"
    )


_SELECT_ALL = (
    f"SELECT {EVENT_COLUMNS} FROM events e LEFT JOIN run_keys k ON k.run = e.run LEFT JOIN texts t ON t.gid = e.gid "
    "ORDER BY e.run, e.seq"
)


def verify_database(file: Path, keys: LogKeys | None, known: Sequence[KnownHead] = ()) -> Report:
    """Verify every event of the database in *file*, on one snapshot, while a gateway may be writing.

    Also its triggers, that it contains the heads *known* from earlier, and that its projections say what its events
    say; the latter on a snapshot of its own.

    Raises:
        LogUnavailable: there is no such file.
        LogCorrupt: SQLite cannot read it to the end.
    """
    with closing(open_reader(file)) as connection:
        try:
            connection.execute("BEGIN")
            verifier = Verifier(keys)
            for row in connection.execute(_SELECT_ALL):
                verifier.take(row)
            report = verifier.finish(heads_in(connection), whole_log=True, known=known)
            report.faults += [Fault("", 0, what) for what in trigger_faults(connection)]
            report.faults += [Fault(*fault) for fault in body_faults(connection, file.parent / DIRECTORY)]
        except sqlite3.DatabaseError as error:
            raise translated(error, file) from error
    report.faults += [Fault(run, 0, what) for run, what in projection_faults(file)]
    return report


def heads_in(connection: sqlite3.Connection, run: str | None = None) -> Iterator[HeadRecord]:
    """Yield the heads of all runs and the global one, or the head of one run."""
    sql = "SELECT coalesce(k.id, '(unknown run)'), count, hash, mac FROM heads h LEFT JOIN run_keys k ON k.run = h.run"
    if run is not None:
        yield from (HeadRecord(*row) for row in connection.execute(f"{sql} WHERE k.id = ?", (run,)))
        return
    yield from (HeadRecord(*row) for row in connection.execute(f"{sql} ORDER BY h.run"))
    for count, digest, mac in connection.execute("SELECT count, hash, mac FROM global_head"):
        yield HeadRecord(GLOBAL_NAME, count, digest, mac)
