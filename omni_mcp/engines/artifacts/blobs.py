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
from contextlib import ExitStack, contextmanager
from pathlib import Path

from omni_mcp.contracts.artifact import INLINE_LIMIT_BYTES, ArtifactRef
from omni_mcp.contracts.errors import Internal, LogCorrupt, NotFound, QuotaExceeded
from omni_mcp.contracts.large import KeptFile
from omni_mcp.engines.artifacts import references
from omni_mcp.engines.artifacts.blob_database import SHRINK_FROM_BYTES, open_database
from omni_mcp.engines.artifacts.blob_files import BlobFiles
from omni_mcp.engines.artifacts.spool import Spool
from omni_mcp.paths import make_private_dir

TRUNCATE_WAIT_S = 10.0
LIST_LIMIT = 1000
OWNER_QUOTA_BYTES = 1 << 30
# A row that is taken out moves its neighbours together, and what they leave behind is out of `secure_delete`'s reach:
# their own erasure would miss it. So a row stays, with zeros of the same length, for whoever stores the same bytes.
_EMPTY = "UPDATE blobs SET data = zeroblob(length(data)) WHERE sha256 = ? AND data IS NOT NULL"


class BlobStore:
    """The synchronous store in *directory*; safe to use from several threads and processes.

    Args:
        directory: made with mode 0700 if it is missing.
        owner_quota_bytes: what one owner may refer to in all: each blob once, and 512 bytes for every reference.
        shrink_from_bytes: a database of this size, of which half or more was removed, is made smaller now.

    Raises:
        LogCorrupt: its database is damaged or newer than this program.
    """

    def __init__(
        self, directory: Path, *, owner_quota_bytes: int = OWNER_QUOTA_BYTES, shrink_from_bytes: int = SHRINK_FROM_BYTES
    ) -> None:
        self._owner_quota_bytes = owner_quota_bytes
        self._directory = make_private_dir(directory)
        self._files = BlobFiles(directory / "blobs")
        self._guard = threading.Lock()
        self._connection = open_database(directory / "artifacts.db", shrink_from_bytes=shrink_from_bytes)
        try:
            with self._transaction():
                self._files.remove_leftovers(self._is_known)
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
        """Write a large blob before the database is held, so that nobody waits for it while the bytes reach the disk.

        Somebody may remove it between the two; then it is written again.
        """
        part: Path | None = None
        while True:
            with ExitStack() as stack:
                if reference.size > INLINE_LIMIT_BYTES and not self._files.is_whole(reference.sha256, reference.size):
                    self._check_room_for(reference, owner, run)
                    part = stack.enter_context(self._writing(reference.sha256, data))
                if self._note(reference, data, part, owner=owner, run=run):
                    return

    @contextmanager
    def _writing(self, sha256: str, data: bytes | KeptFile) -> Iterator[Path]:
        with _kept_or_internal(self._directory), self._files.written(sha256, data) as part:
            yield part

    def _note(self, reference: ArtifactRef, data: bytes | KeptFile, part: Path | None, *, owner: str, run: str) -> bool:
        """Put it in its place and note who holds it; False where its file is gone, and has to be written."""
        sha256, is_inline = reference.sha256, reference.size <= INLINE_LIMIT_BYTES
        with self._transaction() as connection:
            is_missing = not is_inline and not self._files.is_whole(sha256, reference.size)
            if is_missing and (part is None or not part.exists()):
                return False
            is_new = not references.is_there(connection, reference, owner, run)
            if is_new:
                self._charge(connection, reference, owner, run)
            if is_missing and part is not None:
                self._files.put_in_place(sha256, part)
            known = connection.execute(f"SELECT {references.HELD} FROM blobs WHERE sha256 = ?", (sha256,)).fetchone()
            if known is None or not known[0]:
                connection.execute(
                    "INSERT INTO blobs VALUES (?, ?, ?) ON CONFLICT (sha256) DO UPDATE SET data = excluded.data",
                    (sha256, reference.size, data if is_inline else None),
                )
            if is_new:
                references.add(connection, reference, owner, run)
        return True

    def _check_room_for(self, reference: ArtifactRef, owner: str, run: str) -> None:
        """Raise as `_charge` does, before anything is written."""
        with self._reading() as connection:
            if not references.is_there(connection, reference, owner, run):
                self._cost_within_quota(connection, reference, owner, run)

    def _charge(self, connection: sqlite3.Connection, reference: ArtifactRef, owner: str, run: str) -> None:
        """Count what the new reference costs *owner*."""
        references.charge(connection, owner, self._cost_within_quota(connection, reference, owner, run))

    def _cost_within_quota(self, connection: sqlite3.Connection, reference: ArtifactRef, owner: str, run: str) -> int:
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
        return cost

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
            data = self._files.read(sha256)
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
        data = bytes(found[0]) if found[0] is not None else self._files.read(sha256)
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
                self._files.remove(sha256)
                removed.append(sha256)
        if sha256s:  # a reference that goes alone has a name
            self._shrink()
        return removed

    def _is_known(self, sha256: str) -> bool:
        sql = f"SELECT EXISTS (SELECT 1 FROM blobs WHERE sha256 = ? AND {references.HELD})"
        return bool(self._connection.execute(sql, (sha256,)).fetchone()[0])

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._guard, _kept_or_internal(self._directory):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

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


@contextmanager
def _kept_or_internal(directory: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise Internal("the artifact cannot be stored", detail=f"{directory}: {error}") from error
