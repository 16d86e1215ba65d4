"""A sealed body is what stands masked in an event, as it really was: encrypted under a key that belongs to its run.

The key of a run is wrapped by the key of the home, which lies outside of the database. Whoever overwrites a wrapped key
has erased every body of the run, in whatever copy; a single body is erased by overwriting it. The chain covers the
digest of what is sealed, so it verifies before and after.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from omni_mcp.contracts.errors import LogCorrupt
from omni_mcp.engines.runlog.random_bytes import RandomBytes
from omni_mcp.paths import make_private_dir, sync_directory

DIRECTORY = "bodies"  # beside the log
KEY_BYTES, NONCE_BYTES = 32, 12
INLINE_LIMIT_BYTES = 64 * 1024  # as for artifacts: below this a row is cheaper than a file
BODY_LIMIT_BYTES = 16 * 1024 * 1024  # what is larger has no body; a replay then says so
KEYS_CACHED = 1024


class Bodies:
    """Seals bodies for one connection. It belongs to the thread of its ledger.

    Args:
        wrapping: the key of the home.
    """

    def __init__(self, connection: sqlite3.Connection, directory: Path, wrapping: bytes, random: RandomBytes) -> None:
        self._random = random
        self._connection = connection
        self._files = BodyFiles(directory)
        self._wrapping = wrapping
        self._keys: OrderedDict[int, AESGCM] = OrderedDict()

    def seal(self, body: bytes, *, run_key: int, run: str, seq: int, gid: int) -> tuple[bytes, bytes]:
        """Return the digest of the sealed body, and what stands in its row; a large one is in its file by then.

        Raises:
            OSError: the file cannot be written.
        """
        nonce = self._random.take(NONCE_BYTES)
        sealed = nonce + self._key_of(run_key, run).encrypt(nonce, body, _place(run, seq))
        digest = hashlib.sha256(sealed).digest()
        if len(sealed) <= INLINE_LIMIT_BYTES:
            return digest, sealed
        self._files.write(gid, sealed)
        return digest, b""

    def forget(self) -> None:
        """Forget every key: one may have been destroyed, or never have been committed."""
        self._keys.clear()

    def _key_of(self, run_key: int, run: str) -> AESGCM:
        known = self._keys.get(run_key)
        if known is not None:
            self._keys.move_to_end(run_key)
            return known
        key = find_run_key(self._connection, self._wrapping, run_key, run) or self._make(run_key, run)
        self._keys[run_key] = key
        while len(self._keys) > KEYS_CACHED:
            self._keys.popitem(last=False)
        return key

    def _make(self, run_key: int, run: str) -> AESGCM:
        key, nonce = os.urandom(KEY_BYTES), os.urandom(NONCE_BYTES)
        wrapped = nonce + AESGCM(self._wrapping).encrypt(nonce, key, _owner(run))
        self._connection.execute("INSERT INTO body_keys (run, wrapped) VALUES (?, ?)", (run_key, wrapped))
        return AESGCM(key)


class BodyFiles:
    """The large ones: a file each, named by the global number of its event."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def write(self, gid: int, sealed: bytes) -> None:
        """Write, sync, rename: a crash leaves a whole file or none. What no event names goes with the next `sweep`."""
        make_private_dir(self._directory)
        path = self._path(gid)
        part = path.with_suffix(".part")
        descriptor = os.open(part, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            out.write(sealed)
            out.flush()
            os.fsync(out.fileno())
        part.rename(path)
        sync_directory(self._directory)

    def read(self, gid: int) -> bytes | None:
        """Return a sealed body, or None if it is not there."""
        try:
            return self._path(gid).read_bytes()
        except FileNotFoundError:
            return None

    def remove(self, gids: Sequence[int]) -> None:
        """Remove what was erased."""
        for gid in gids:
            self._path(gid).unlink(missing_ok=True)

    def sweep(self, connection: sqlite3.Connection) -> None:
        """Remove what no event has, and what a crash kept of an erasure. Only for whoever alone writes to the log."""
        wanted = (
            "SELECT EXISTS (SELECT 1 FROM bodies b JOIN events e ON e.gid = b.gid "
            "WHERE b.gid = ? AND length(b.sealed) = 0 AND e.erased_by IS NULL)"
        )
        for path in self._directory.glob("*") if self._directory.is_dir() else ():
            number = int(path.stem) if path.suffix == ".sealed" and path.stem.isdigit() else None
            if number is None or not connection.execute(wanted, (number,)).fetchone()[0]:
                path.unlink(missing_ok=True)

    def _path(self, gid: int) -> Path:
        return self._directory / f"{gid}.sealed"


def find_run_key(connection: sqlite3.Connection, wrapping: bytes, run_key: int, run: str) -> AESGCM | None:
    """Return the key of a run; None if it has none, or no longer.

    Raises:
        LogCorrupt: it was wrapped by another key, or changed.
    """
    sql = "SELECT wrapped FROM body_keys WHERE run = ? ORDER BY id DESC LIMIT 1"
    found = connection.execute(sql, (run_key,)).fetchone()
    if found is None or not any(found[0]):
        return None
    try:
        return AESGCM(AESGCM(wrapping).decrypt(found[0][:NONCE_BYTES], found[0][NONCE_BYTES:], _owner(run)))
    except (InvalidTag, ValueError) as error:
        detail = f"the key of the bodies of run {run} was not wrapped by the key of this home, or was changed"
        raise LogCorrupt("a sealed body cannot be opened", detail=detail) from error


def opened(sealed: bytes, key: AESGCM, *, run: str, seq: int) -> bytes:
    """Return what is inside a sealed body.

    Raises:
        LogCorrupt: it is not what was sealed for this event.
    """
    try:
        return key.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _place(run, seq))
    except (InvalidTag, ValueError) as error:
        detail = f"the body of run {run} event {seq} is not what was sealed; run: omni-mcp audit verify"
        raise LogCorrupt("a sealed body cannot be opened", detail=detail) from error


def _place(run: str, seq: int) -> bytes:
    return b"omni-mcp body 1\0%s\0%d" % (run.encode(), seq)


def _owner(run: str) -> bytes:
    return b"omni-mcp body key 1\0%s" % run.encode()
