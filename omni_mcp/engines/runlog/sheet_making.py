"""Makes sheets of what has been written: one in each transaction, whenever nothing else is to be done."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from omni_mcp.contracts.errors import LogCorrupt
from omni_mcp.engines.runlog.rows import Row
from omni_mcp.engines.runlog.sheets import NO_SHEET, SALT_BYTES, SHEET_EVENTS, SHEET_LIMIT_BYTES, SheetFiles, packed
from omni_mcp.engines.runlog.shown import RUN, SELECT_SHOWN, SEQ, line_of

FREE_BYTES = 512 * 1024 * 1024  # of the disk, that sheets leave to the evidence
TEXT_LIMIT_BYTES = 4 * SHEET_LIMIT_BYTES  # of stored texts: some are shown in part only, but more is not even read
_RUNS_AT_ONCE = 64
_DUE_KEPT = 4096  # more are found again
_TEXT_BYTES = (
    "SELECT coalesce(sum(length(t.body)), 0) FROM events e JOIN texts t ON t.gid = e.gid "
    "WHERE e.run = ? AND e.seq > ? AND e.seq <= ? AND e.erased_by IS NULL"
)
_DUE_RUNS = (
    "SELECT run, count / ?1 AS full FROM heads h WHERE count >= ?1 "
    "AND full > (SELECT count(*) FROM sheets s WHERE s.run = h.run) ORDER BY run DESC LIMIT ?2"
)


class SheetMaker:
    """Makes what is missing through the connection of a ledger, inside its transactions.

    Reading, writing the file and naming it in the table are one transaction: no erasure comes between them.
    """

    def __init__(self, connection: sqlite3.Connection, log_file: Path) -> None:
        self._connection = connection
        self._directory = log_file.parent
        self.files = SheetFiles(log_file)
        self._due: deque[tuple[int, int]] = deque()
        self._may_be_due = True
        self._had_no_room = False

    @property
    def is_due(self) -> bool:
        """Whether there may be a sheet to make."""
        return self._may_be_due or bool(self._due)

    def look_again(self) -> None:
        """Somebody else filled a sheet, or took one away: every run is looked at, so not after each commit."""
        self._may_be_due = True

    def fill(self, places: Iterable[tuple[int, int]]) -> None:
        """The sheets with these numbers of these runs are full now."""
        for place in places:
            if self._had_no_room or len(self._due) >= _DUE_KEPT:
                self._had_no_room = False
                self.look_again()
            else:
                self._due.append(place)

    def make_one(self) -> None:
        """Make one sheet, if one is due and the disk has room.

        Raises:
            OSError: its file cannot be written.
            sqlite3.Error: it cannot be read, or named.
        """
        if not self._due and self._may_be_due:
            self._due.extend(self._found())
            self._may_be_due = bool(self._due)
        if not self._due:
            return
        if not self._has_room():
            self._due.clear()
            self._may_be_due = False
            self._had_no_room = True  # until another one is full
            return
        place = self._due.popleft()
        with suppress(sqlite3.IntegrityError):  # it was made meanwhile
            self._make(*place)

    def forget(self, run_key: int, numbers: Iterable[int]) -> None:
        """Take sheets away whose events were erased. The files go first: what names none is read from rows.

        Raises:
            OSError: a file is still there.
        """
        chosen = sorted(set(numbers))
        sql = "DELETE FROM sheets WHERE run = ? AND number = ?"
        self._connection.executemany(sql, [(run_key, number) for number in chosen])
        self.files.remove(run_key, chosen)
        self.look_again()

    def forget_all(self) -> None:
        """Take all sheets away.

        Raises:
            OSError: a file is still there.
        """
        for run_key, number in self._connection.execute("SELECT run, number FROM sheets").fetchall():
            self.files.remove(run_key, [number])
        self._connection.execute("DELETE FROM sheets")
        self._due.clear()
        self.look_again()

    def _make(self, run_key: int, number: int) -> None:
        sql = "INSERT INTO sheets (run, number, digest) VALUES (?, ?, ?)"
        data = derived(self._connection, run_key, number, os.urandom(SALT_BYTES))
        digest = NO_SHEET if data is None else hashlib.sha256(data).digest()
        self._connection.execute(sql, (run_key, number, digest))
        if data is not None:
            self.files.write(run_key, number, data)

    def _found(self) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        for run_key, full in self._connection.execute(_DUE_RUNS, (SHEET_EVENTS, _RUNS_AT_ONCE)).fetchall():
            made = {
                number for (number,) in self._connection.execute("SELECT number FROM sheets WHERE run = ?", (run_key,))
            }
            found += [(run_key, number) for number in range(full) if number not in made]
        return found

    def _has_room(self) -> bool:
        disk = os.statvfs(self._directory)
        return disk.f_bavail * disk.f_frsize > FREE_BYTES


def derived(connection: sqlite3.Connection, run_key: int, number: int, salt: bytes) -> bytes | None:
    """Return the bytes that a sheet must have; None if there must be none: events are missing, damaged or too large."""
    after = number * SHEET_EVENTS
    places = (run_key, after, after + SHEET_EVENTS)
    if connection.execute(_TEXT_BYTES, places).fetchone()[0] > TEXT_LIMIT_BYTES:
        return None
    sql = f"{SELECT_SHOWN} WHERE e.run = ? AND e.seq > ? AND e.seq <= ? ORDER BY e.seq"
    rows: list[Row] = connection.execute(sql, places).fetchall()
    if [row[SEQ] for row in rows] != list(range(after + 1, after + SHEET_EVENTS + 1)):
        return None
    try:
        data = packed(rows[0][RUN], number, [line_of(row) for row in rows], salt)
    except LogCorrupt:
        return None
    return data if len(data) <= SHEET_LIMIT_BYTES else None
