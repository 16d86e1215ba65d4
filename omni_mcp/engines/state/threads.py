"""Threads: names under which a principal groups its runs. Which runs belong to one is in the run log and not here.

A title stands in `thread_titles` and nowhere else: a row there is appended and later overwritten with zeros of the same
length. Rows of other tables move between pages, and a page that one moved away from keeps its old bytes.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from omni_mcp.contracts.errors import NotFound, QuotaExceeded
from omni_mcp.contracts.ids import new_id
from omni_mcp.contracts.ports import Masker

T = TypeVar("T")

THREADS_LIMIT = 10_000  # of one principal
LIST_LIMIT = 1000

_TABLE = """
CREATE TABLE IF NOT EXISTS thread_titles (number INTEGER PRIMARY KEY AUTOINCREMENT, title BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS named_threads (
    id TEXT PRIMARY KEY,
    principal TEXT NOT NULL,
    project TEXT NOT NULL,
    title INTEGER NOT NULL REFERENCES thread_titles (number),
    created_at_ns INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS named_threads_by_principal ON named_threads (principal, id);
"""
_COLUMNS = "n.id, CAST(t.title AS TEXT), n.project, n.created_at_ns"
_TABLES = "named_threads n JOIN thread_titles t ON t.number = n.title"


@dataclass(frozen=True, slots=True)
class Thread:
    """One thread. `created_at_ns` counts UTC nanoseconds since the epoch: no run of it is older."""

    id: str
    title: str
    project: str
    created_at_ns: int


class StoredThreads:
    """The threads in a state database. What a principal did not make does not exist for it.

    Args:
        connection: of its own, from `open_state`; closed by `close`.
        masker: takes registered secrets out of titles.
    """

    def __init__(
        self, connection: sqlite3.Connection, masker: Masker, *, now_ns: Callable[[], int] = time.time_ns,
        limit: int = THREADS_LIMIT,
    ) -> None:  # fmt: skip
        self._connection = connection
        self._masker = masker
        self._now_ns = now_ns
        self._limit = limit
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="threads")
        connection.executescript(_TABLE)
        self._take_titles_out()

    async def create(self, principal: str, project: str, title: str) -> Thread:
        """Make a thread.

        Raises:
            QuotaExceeded: the principal has as many as it may have.
        """
        made = Thread(new_id(), self._masker.mask_text(title), project, self._now_ns())
        await self._in_thread(lambda: self._insert(made, principal))
        return made

    async def get(self, thread: str, *, principal: str) -> Thread:
        """Return one thread.

        Raises:
            NotFound: there is none, or it is another's: the same answer.
        """
        sql = f"SELECT {_COLUMNS} FROM {_TABLES} WHERE n.id = ? AND n.principal = ?"
        found = await self._in_thread(lambda: self._connection.execute(sql, (thread, principal)).fetchone())
        if found is None:
            raise NotFound("there is no such thread of yours")
        return Thread(*found)

    async def list(self, *, principal: str, limit: int, before: str | None = None) -> list[Thread]:
        """Return the newest threads first, from the one before the id *before*."""
        sql = f"SELECT {_COLUMNS} FROM {_TABLES} WHERE n.principal = ? AND n.id < ? ORDER BY n.id DESC LIMIT ?"
        values = (principal, before or "\U0010ffff", max(0, min(limit, LIST_LIMIT)))
        rows = await self._in_thread(lambda: self._connection.execute(sql, values).fetchall())
        return [Thread(*row) for row in rows]

    async def forget(self, thread: str, *, principal: str) -> None:
        """Remove a thread's name; its runs stay what they are.

        Raises:
            NotFound: as `get`.
        """
        if not await self._in_thread(lambda: self._remove(thread, principal)):
            raise NotFound("there is no such thread of yours")
        # The title is overwritten in the file, and its old page goes out of the write-ahead log if nobody is in it.
        await self._in_thread(lambda: self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall())

    def _remove(self, thread: str, principal: str) -> bool:
        with self._transaction() as connection:
            sql = "DELETE FROM named_threads WHERE id = ? AND principal = ? RETURNING title"
            found = connection.execute(sql, (thread, principal)).fetchall()
            empty = "UPDATE thread_titles SET title = zeroblob(length(title)) WHERE number = ?"
            connection.executemany(empty, found)
        return bool(found)

    def _insert(self, made: Thread, principal: str) -> None:
        with self._transaction() as connection:
            count = "SELECT count(*) FROM named_threads WHERE principal = ?"
            if connection.execute(count, (principal,)).fetchone()[0] >= self._limit:
                raise QuotaExceeded(f"you have {self._limit} threads, and more there may not be; delete some first")
            self._add(made, principal)

    def _add(self, made: Thread, principal: str) -> None:
        title = (made.title.encode("utf-8", "replace"),)
        number = self._connection.execute("INSERT INTO thread_titles (title) VALUES (?)", title).lastrowid
        self._connection.execute(
            "INSERT INTO named_threads (id, principal, project, title, created_at_ns) VALUES (?, ?, ?, ?, ?)",
            (made.id, principal, made.project, number, made.created_at_ns),
        )

    def _take_titles_out(self) -> None:
        """Bring threads of an earlier version over, and clean the pages in which their titles had moved about."""
        find = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'threads'"
        if self._connection.execute(find).fetchone() is None:
            return
        with self._transaction() as connection:
            sql = "SELECT id, title, project, created_at_ns, principal FROM threads ORDER BY id"
            for *facts, principal in connection.execute(sql).fetchall():
                self._add(Thread(*facts), principal)
            connection.execute("DROP TABLE threads")
        self._connection.execute("VACUUM")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection
            self._connection.execute("COMMIT")
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise

    async def close(self) -> None:
        """Wait for what is under way and close the connection."""
        await self._in_thread(self._connection.close)
        self._pool.shutdown(wait=True)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)
