"""A nonce is used once: whoever inserts it first wins, across processes and restarts."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from omni_mcp.contracts.errors import Overloaded

KEPT_AFTER_EXPIRY_NS = 3600 * 1_000_000_000  # clocks are set back, by less than this
MAX_NONCE_CHARS = 512
MAX_NONCES = 1_000_000
PURGE_EVERY = 256

_TABLE = """
CREATE TABLE IF NOT EXISTS nonces (
    nonce TEXT PRIMARY KEY,
    expires_at_ns INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS nonces_by_expiry ON nonces (expires_at_ns);
"""


class StoredNonces:
    """The port `Nonces` on a state database.

    Args:
        connection: of its own, from `open_state`; closed by `close`.
        now_ns: UTC nanoseconds since the epoch.
        max_nonces: how many are kept before new ones are refused.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        *,
        now_ns: Callable[[], int] = time.time_ns,
        max_nonces: int = MAX_NONCES,
    ) -> None:
        self._connection = connection
        self._now_ns = now_ns
        self._max_nonces = max_nonces
        self._uses = 0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="nonces")
        connection.executescript(_TABLE)

    async def use(self, nonce: str, *, expires_at_ns: int) -> bool:
        """Return True for the first use of *nonce* before *expires_at_ns*, else False; see the port.

        Raises:
            Overloaded: too many unexpired nonces are kept.
            ValueError: it is empty or longer than 512 characters.
        """
        if not 0 < len(nonce) <= MAX_NONCE_CHARS:
            raise ValueError(f"a nonce has 1 to {MAX_NONCE_CHARS} characters")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._use, nonce, expires_at_ns)

    def _use(self, nonce: str, expires_at_ns: int) -> bool:
        now = self._now_ns()
        if expires_at_ns <= now:
            return False
        if self._uses % PURGE_EVERY == 0:
            self._purge(now)
        self._uses += 1
        done = self._connection.execute("INSERT OR IGNORE INTO nonces VALUES (?, ?)", (nonce, expires_at_ns))
        return done.rowcount == 1

    def _purge(self, now: int) -> None:
        self._connection.execute("DELETE FROM nonces WHERE expires_at_ns < ?", (now - KEPT_AFTER_EXPIRY_NS,))
        if int(self._connection.execute("SELECT count(*) FROM nonces").fetchone()[0]) >= self._max_nonces:
            raise Overloaded(
                "too many open requests", detail=f"{self._max_nonces} nonces are kept", data={"retry_after_s": 60}
            )

    async def close(self) -> None:
        """Wait for what is under way and close the connection."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._connection.close)
        self._thread.shutdown(wait=True)
