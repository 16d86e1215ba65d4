"""The housekeeper does in a thread of its own what a log needs after commits and what no caller should wait for.

It moves the write-ahead log into the file, which SQLite would otherwise do inside the commit that fills it, and it
writes the anchor. Both wait for the disk several times.
"""

from __future__ import annotations

import sqlite3
import threading
from contextlib import suppress
from pathlib import Path

from omni_mcp.contracts.errors import OmniError
from omni_mcp.engines.runlog.anchor import AnchorKeeper
from omni_mcp.engines.runlog.connection import open_reader
from omni_mcp.engines.runlog.heads import GlobalHead
from omni_mcp.engines.runlog.signal import Signal

CHECKPOINT_COMMITS = 64  # of a dozen pages or more each
PASSES = 4  # of one checkpoint: each moves what was written during the one before


class Housekeeper:
    """Works for one writer, whose thread calls everything here.

    Args:
        file: the log.
        anchor: gets the newest head, in the housekeeper's thread.
    """

    def __init__(self, file: Path, anchor: AnchorKeeper) -> None:
        self._file = file
        self._anchor = anchor
        self._head = GlobalHead()
        self._commits = self._moved = 0
        self._rests = False  # it sleeps until it is woken
        self._closing = False
        self._wake = Signal()
        self._connection: sqlite3.Connection | None = None
        self._thread = threading.Thread(target=self._work, name="run-log-housekeeper", daemon=True)

    @property
    def problem(self) -> str:
        """Why the newest head could not be anchored, or nothing."""
        return self._anchor.problem

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def look(self, head: GlobalHead, commits: int) -> None:
        """Take note of the committed *head* of the log after so many *commits*; waits for nothing."""
        self._head, self._commits = head, commits
        if self._rests or commits - self._moved >= CHECKPOINT_COMMITS:
            self._rests = False
            self._wake.set()

    def close(self) -> None:
        """Anchor the newest head and end, once nothing is written any more."""
        self._closing = True
        self._wake.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._closing:
            self._rests = True
            due_s = self._anchor.due_in_s(self._head.count)
            self._rests = due_s is None
            self._wake.wait(due_s)
            if self._commits - self._moved >= CHECKPOINT_COMMITS:
                self._moved = self._commits
                self._checkpoint()
            if self._anchor.due_in_s(self._head.count) == 0:
                self._anchor.keep(self._head)
        if self._anchor.due_in_s(self._head.count) is not None:
            self._anchor.keep(self._head)
        if self._connection is not None:
            self._connection.close()

    def _checkpoint(self) -> None:
        """Move what is in the write-ahead log; the writer goes on meanwhile, and begins it anew once all was moved.

        What fails here is tried again, at last by the commit that finds the log too long.
        """
        with suppress(OmniError, sqlite3.Error, OSError):
            connection = self._connection = self._connection or open_reader(self._file)
            for _ in range(PASSES):
                _, written, moved = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                if moved == written:
                    return
