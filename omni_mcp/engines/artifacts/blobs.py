"""Blobs by content: small ones are rows, large ones files; references say who may see them.

A database of its own, not a table of the run log: blobs come and go, so its pages are rewritten and vacuumed while the
log only grows; and bytes on their way into it do not hold the lock on which every call waits.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from omni_mcp.contracts.artifact import INLINE_LIMIT_BYTES, ArtifactRef
from omni_mcp.contracts.errors import Internal, LogCorrupt, NotFound, QuotaExceeded
from omni_mcp.contracts.large import KeptFile
from omni_mcp.engines.artifacts import references
from omni_mcp.engines.artifacts.spool import Spool
from omni_mcp.paths import make_private_dir
from omni_mcp.sqlite_settings import settle

BUSY_TIMEOUT_S = 5.0
TRUNCATE_WAIT_S = 10.0
LIST_LIMIT = 1000
OWNER_QUOTA_BYTES = 1 << 30
SCHEMA_VERSION = 3
_BLOBS = "CREATE TABLE IF NOT EXISTS blobs (sha256 TEXT PRIMARY KEY, size INTEGER NOT NULL, data BLOB) STRICT;"
# A row that is taken out moves its neighbours together, and what they leave behind is out of `secure_delete`'s reach:
# their own erasure would miss it. So a row stays, with zeros of the same length, for whoever stores the same bytes.
_EMPTY = "UPDATE blobs SET data = zeroblob(length(data)) WHERE sha256 = ? AND data IS NOT NULL"


class BlobStore:
    """The synchronous store in *directory*; safe to use from several threads and processes.

    Args:
        directory: made with mode 0700 if it is missing.
        owner_quota_bytes: what one owner may refer to in all: each blob once, and 512 bytes for every reference.

    Raises:
        LogCorrupt: its database is damaged or newer than this program.
    """

    def __init__(self, directory: Path, *, owner_quota_bytes: int = OWNER_QUOTA_BYTES) -> None:
        self._owner_quota_bytes = owner_quota_bytes
        self._directory = make_private_dir(directory)
        self._files = make_private_dir(directory / "blobs")
        self._guard = threading.Lock()
        database = directory / "artifacts.db"
        if not database.exists():
            os.close(os.open(database, os.O_CREAT | os.O_RDWR, 0o600))
        self._connection = sqlite3.connect(
            database, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        try:
            self._prepare(database)
        except sqlite3.Error as error:
            self._connection.close()
            raise LogCorrupt("the artifact store cannot be opened", detail=f"{database}: {error}") from error
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """Close the database."""
        with self._guard:
            self._connection.close()

    def put(self, data: bytes, *, media_type: str, owner: str, run: str, name: str | None = None) -> ArtifactRef:
        """Store *data* durably and note who holds it; storing the same bytes twice keeps one copy.

        Raises:
            QuotaExceeded: *owner* would refer to more than they may; nothing was stored.
            Internal: it could not be written.
        """
        reference = ArtifactRef(
            sha256=hashlib.sha256(data).hexdigest(), size=len(data), media_type=media_type, name=name
        )
        self._keep(reference, data, owner=owner, run=run)
        return reference

    def put_file(self, kept: KeptFile, *, owner: str, run: str, name: str | None = None) -> ArtifactRef:
        """Store the bytes of *kept*, whose digest is believed; otherwise as `put`."""
        reference = ArtifactRef(sha256=kept.sha256, size=kept.size_bytes, media_type=kept.media_type, name=name)
        small = kept.size_bytes <= INLINE_LIMIT_BYTES
        data = os.pread(kept.file, kept.size_bytes, kept.start) if small else kept
        self._keep(reference, data, owner=owner, run=run)
        return reference

    def _keep(self, reference: ArtifactRef, data: bytes | KeptFile, *, owner: str, run: str) -> None:
        with self._transaction() as connection:
            is_new = not references.is_there(connection, reference, owner, run)
            if is_new:
                self._charge(connection, reference, owner, run)
            known = connection.execute(
                f"SELECT {references.HELD} FROM blobs WHERE sha256 = ?", (reference.sha256,)
            ).fetchone()
            if reference.size > INLINE_LIMIT_BYTES and not self._is_whole(reference):
                self._write_file(reference.sha256, data)
            if known is None or not known[0]:
                inline = data if reference.size <= INLINE_LIMIT_BYTES else None
                connection.execute(
                    "INSERT INTO blobs VALUES (?, ?, ?) ON CONFLICT (sha256) DO UPDATE SET data = excluded.data",
                    (reference.sha256, reference.size, inline),
                )
            if is_new:
                references.add(connection, reference, owner, run)

    def _charge(self, connection: sqlite3.Connection, reference: ArtifactRef, owner: str, run: str) -> None:
        """Count what the new reference costs *owner*."""
        cost = references.cost(connection, reference, owner)
        held = references.held_bytes(connection, owner)
        if held + cost > self._owner_quota_bytes:
            raise QuotaExceeded(
                f"your artifacts would have {held + cost} bytes, and {self._owner_quota_bytes} is the most they may "
                "have; erase runs that are not needed any more (`omni-mcp erase RUN`), or have "
                "limits.artifact_bytes_per_principal raised",
                detail=f"{owner} holds {held} bytes and wanted {cost} more in run {run}",
                data={"held_bytes": held, "wanted_bytes": cost, "limit_bytes": self._owner_quota_bytes},
            )
        references.charge(connection, owner, cost)

    def held_bytes(self, owner: str) -> int:
        """Return what *owner* has used of the quota."""
        with self._reading() as connection:
            return references.held_bytes(connection, owner)

    def get(self, sha256: str, *, owner: str) -> tuple[ArtifactRef, bytes]:
        """Return a blob that *owner* may see.

        Raises:
            NotFound: no such blob, or not one of theirs: the same answer.
            LogCorrupt: its bytes are not what was stored.
        """
        with self._reading() as connection:
            found = connection.execute(
                f"SELECT b.data, {references.FACTS} FROM {references.TABLES} "
                "WHERE r.sha256 = ? AND r.owner = ? ORDER BY r.id DESC LIMIT 1",
                (sha256, owner),
            ).fetchone()
        if found is None:
            raise NotFound("there is no such artifact")
        data, reference = found[0], references.ref_of(found[1:])
        if data is None:
            data = self._read_file(sha256)
        if len(data) != reference.size or hashlib.sha256(data).hexdigest() != sha256:
            raise LogCorrupt("the artifact is damaged", detail=f"the bytes of {sha256} are not what was stored")
        return reference, bytes(data)

    def read(self, sha256: str) -> bytes:
        """Return the bytes of a blob, whoever it belongs to: for the operator's own commands.

        Raises:
            NotFound: there is no such blob.
            LogCorrupt: its bytes are not what was stored.
        """
        with self._reading() as connection:
            found = connection.execute(
                f"SELECT data FROM blobs WHERE sha256 = ? AND {references.HELD}", (sha256,)
            ).fetchone()
        if found is None:
            raise NotFound("there is no such artifact")
        data = bytes(found[0]) if found[0] is not None else self._read_file(sha256)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise LogCorrupt("the artifact is damaged", detail=f"the bytes of {sha256} are not what was stored")
        return data

    def list_refs(self, *, owner: str, limit: int = 100) -> list[ArtifactRef]:
        """Return the newest references that *owner* may see."""
        with self._reading() as connection:
            rows = connection.execute(
                f"SELECT {references.FACTS} FROM {references.TABLES} WHERE r.owner = ? ORDER BY r.id DESC LIMIT ?",
                (owner, max(0, min(limit, LIST_LIMIT))),
            ).fetchall()
        return [references.ref_of(row) for row in rows]

    def page(self, *, owner: str, limit: int, before: int | None = None) -> list[tuple[int, ArtifactRef, str, int]]:
        """Return (number, reference, run, UTC nanoseconds) of the newest references of *owner* before a number."""
        with self._reading() as connection:
            rows = connection.execute(
                f"SELECT r.id, r.run, r.at_ns, {references.FACTS} FROM {references.TABLES} "
                "WHERE r.owner = ? AND r.id < ? ORDER BY r.id DESC LIMIT ?",
                (owner, before if before is not None else 2**62, max(0, min(limit, LIST_LIMIT))),
            ).fetchall()
        return [(number, references.ref_of(tuple(facts)), run, at_ns) for number, run, at_ns, *facts in rows]

    def check_room(self, owner: str, size_bytes: int) -> None:
        """Raise where *owner* could not hold *size_bytes* more: before anybody sends them.

        Raises:
            QuotaExceeded: so it is.
        """
        held = self.held_bytes(owner)
        if held + size_bytes + references.REFERENCE_BYTES > self._owner_quota_bytes:
            raise QuotaExceeded(
                f"your artifacts may have {self._owner_quota_bytes} bytes, and have {held}",
                detail=f"{owner} holds {held} bytes and wants to send {size_bytes} more",
                data={"held_bytes": held, "wanted_bytes": size_bytes, "limit_bytes": self._owner_quota_bytes},
            )

    def spool(self, *, limit_bytes: int) -> Spool:
        """Return a file for an upload, beside the blobs."""
        return Spool(self._directory, limit_bytes=limit_bytes)

    def held_by(self, run: str) -> list[str]:
        """Return the sha256 of everything that *run* refers to, oldest first."""
        with self._reading() as connection:
            rows = connection.execute("SELECT sha256 FROM refs WHERE run = ? GROUP BY sha256 ORDER BY min(id)", (run,))
            return [sha256 for (sha256,) in rows.fetchall()]

    def held_as(self, run: str, names: Sequence[str]) -> list[str]:
        """Return the sha256 of what *run* refers to by one of *names*."""
        with self._reading() as connection:
            return references.named(connection, run, names)

    def release(self, run: str, sha256s: Sequence[str]) -> list[str]:
        """Drop the references of *run* to *sha256s* and remove blobs without any other; returns those removed.

        Raises:
            Internal: it could not be done; everything is as it was, apart from files that are already gone.
        """
        removed: list[str] = []
        with self._transaction() as connection:
            for sha256 in sha256s:
                dropped = references.give_back(connection, run, sha256)
                held = "SELECT EXISTS (SELECT 1 FROM refs WHERE sha256 = ?)"
                if not dropped or connection.execute(held, (sha256,)).fetchone()[0]:
                    continue
                connection.execute(_EMPTY, (sha256,))
                # inside the transaction, so that nobody can store the same bytes between the two
                self._path(sha256).unlink(missing_ok=True)
                removed.append(sha256)
        if sha256s:  # a reference that goes alone has a name
            self._shrink()
        return removed

    # --- files --------------------------------------------------------------------------------------------------------

    def _path(self, sha256: str) -> Path:
        return self._files / sha256[:2] / sha256

    def _is_whole(self, reference: ArtifactRef) -> bool:
        path = self._path(reference.sha256)
        return path.is_file() and path.stat().st_size == reference.size

    def _write_file(self, sha256: str, data: bytes | KeptFile) -> None:
        """Write, sync, rename, sync the directory: a power cut leaves the whole blob under its name, or nothing."""
        path = self._path(sha256)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        part = path.with_name(f"{sha256}.{os.getpid()}.part")
        try:
            descriptor = os.open(part, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "wb") as out:
                if isinstance(data, bytes):
                    out.write(data)
                else:
                    _copy(data, out.fileno())
                out.flush()
                os.fsync(out.fileno())
            part.rename(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        for directory in (path.parent, self._files):
            _sync(directory)

    def _read_file(self, sha256: str) -> bytes:
        try:
            return self._path(sha256).read_bytes()
        except FileNotFoundError:
            raise LogCorrupt("the artifact is damaged", detail=f"the file of {sha256} is gone") from None

    def _remove_leftovers(self) -> None:
        """Remove what a crash left: half-written files, and whole ones that no row names."""
        with self._transaction() as connection:
            for path in self._files.glob("*/*"):
                known = connection.execute(
                    f"SELECT EXISTS (SELECT 1 FROM blobs WHERE sha256 = ? AND {references.HELD})", (path.name,)
                ).fetchone()[0]
                if not known:
                    path.unlink(missing_ok=True)

    # --- database -----------------------------------------------------------------------------------------------------

    def _prepare(self, database: Path) -> None:
        connection = self._connection
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise LogCorrupt(
                "the artifact store was written by a newer version", detail=f"{database}: schema {version}"
            )
        if version == 0:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        settle(connection)
        connection.executescript(_BLOBS)
        if version < SCHEMA_VERSION:
            with self._transaction():
                references.take_names_out(connection)
        connection.executescript(references.SCHEMA)
        if version < SCHEMA_VERSION:
            with self._transaction():
                references.count_owners(connection)
            if version:
                connection.execute("VACUUM")  # names that stood in rows which moved
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        self._remove_leftovers()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._guard:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self._connection
                    self._connection.execute("COMMIT")
                except BaseException:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                    raise
            except (sqlite3.Error, OSError) as error:
                raise Internal("the artifact cannot be stored", detail=f"{self._directory}: {error}") from error

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._guard:
            try:
                yield self._connection
            except sqlite3.Error as error:
                raise Internal("the artifact cannot be read", detail=f"{self._directory}: {error}") from error

    def _shrink(self) -> None:
        """Give pages back and cut the write-ahead log, which still has the removed bytes."""
        deadline = time.monotonic() + TRUNCATE_WAIT_S
        with self._guard:
            while True:
                try:
                    self._connection.execute("PRAGMA incremental_vacuum").fetchall()
                    busy = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
                except sqlite3.OperationalError:
                    busy = 1
                if not busy:
                    return
                if time.monotonic() > deadline:
                    raise Internal(
                        "removed artifacts may still be in the write-ahead log", detail="readers kept it busy"
                    )


def _copy(kept: KeptFile, out: int) -> None:
    at, end = kept.start, kept.start + kept.size_bytes
    while at < end:
        copied = os.sendfile(out, kept.file, at, end - at)
        if copied == 0:
            raise OSError("the file is shorter than it was said to be")
        at += copied


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
