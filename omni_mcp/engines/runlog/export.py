"""Writes an audit pack: runs with what they refer to, in one archive that verifies by itself, signed.

One snapshot of the log: what is committed meanwhile is not half in it.
"""

from __future__ import annotations

import base64
import hashlib
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from omni_mcp.contracts import export as contracts
from omni_mcp.contracts.errors import NotFound
from omni_mcp.contracts.events import CONTRACT_VERSION
from omni_mcp.contracts.ids import iso_time
from omni_mcp.contracts.json import JsonObject, canonical
from omni_mcp.engines.runlog.connection import open_reader, translated
from omni_mcp.engines.runlog.heads import GLOBAL_NAME
from omni_mcp.engines.runlog.pack import (
    FORMAT,
    FORMAT_VERSION,
    MANIFEST,
    SIGNATURE,
    SIGNED_AS,
    PackedFile,
    PackedHead,
    PackedRun,
    PackManifest,
    mark_of,
    run_member,
)
from omni_mcp.engines.runlog.references import references_of
from omni_mcp.engines.runlog.rows import SELECT_EVENT, event_of
from omni_mcp.engines.runlog.signing import SigningKey
from omni_mcp.engines.runlog.tar import TarWriter
from omni_mcp.engines.runlog.verify import HeadRecord, heads_in

SCHEMAS = ("RunEvent", "ArtifactRef")


class StoredBytes(Protocol):
    """What an export needs of the artifact store."""

    def held_by(self, run: str) -> list[str]:
        """Return the sha256 of everything that *run* refers to."""
        ...

    def read(self, sha256: str) -> bytes:
        """Return the bytes of a blob, whoever it belongs to.

        Raises:
            NotFound: there is no such blob.
        """
        ...


class Exported(NamedTuple):
    """What was written, the head of the whole log at that moment as `COUNT:HASH`, and by whom it is signed."""

    runs: int
    events: int
    artifacts: int
    absent: tuple[str, ...]
    head: str
    fingerprint: str


def export(file: Path, out: BinaryIO, *, runs: Sequence[str] | None, blobs: StoredBytes, key: SigningKey) -> Exported:
    """Write *runs*, or all of them if that is None, to *out*, which can be sought in.

    Raises:
        NotFound: there is no such run.
        LogCorrupt, LogUnavailable: the database, or an artifact, cannot be read.
    """
    with closing(open_reader(file)) as connection:
        try:
            connection.execute("BEGIN")
            return _Exporter(connection, out, blobs).write(runs, key)
        except sqlite3.DatabaseError as error:
            raise translated(error, file) from error


class _Exporter:
    """Writes one pack."""

    def __init__(self, connection: sqlite3.Connection, out: BinaryIO, blobs: StoredBytes) -> None:
        self._connection = connection
        self._out = out
        self._tar = TarWriter(out)
        self._blobs = blobs
        self._files: dict[str, PackedFile] = {}
        self._wanted: dict[str, None] = {}  # artifacts, in the order in which they are met
        self._events = 0

    def write(self, runs: Sequence[str] | None, key: SigningKey) -> Exported:
        heads = {head.run: head for head in heads_in(self._connection)}
        whole = heads.pop(GLOBAL_NAME, None)
        chosen = list(heads) if runs is None else list(dict.fromkeys(runs))
        for run in chosen:
            if run not in heads:
                raise NotFound("there is no such run", detail=f"run {run!r} was never created")
        packed = [self._run(heads[run]) for run in chosen]
        absent = self._artifacts()
        for name in SCHEMAS:
            self._file(f"schemas/{name}.json", canonical(contracts.export(name, cedar_schema="")) + b"\n")
        manifest = PackManifest(
            format=FORMAT, version=FORMAT_VERSION, contract=CONTRACT_VERSION, scope="all" if runs is None else "runs",
            exported_at=iso_time(time.time_ns()), runs=tuple(packed), head=_head(whole), absent=absent,
            files=dict(self._files),
        )  # fmt: skip
        told = canonical(manifest.model_dump()) + b"\n"
        self._file(MANIFEST, told)
        self._file(SIGNATURE, canonical(key.sign(SIGNED_AS, told).as_json()) + b"\n")
        self._tar.close()
        artifacts = sum(name.startswith("artifacts/") for name in self._files)
        head = f"{whole.count}:{whole.hash.hex()}" if whole else ""
        return Exported(len(packed), self._events, artifacts, absent, head, key.fingerprint)

    def _run(self, head: HeadRecord) -> PackedRun:
        marks = bytearray()
        sql = f"{SELECT_EVENT} WHERE k.id = ? ORDER BY e.seq"

        def lines(write: Callable[[bytes], None]) -> None:
            for row in self._connection.execute(sql, (head.run,)):
                event = event_of(row)
                for sha256 in references_of(event):
                    self._wanted[sha256] = None
                line = canonical(event.model_dump()) + b"\n"
                marks.extend(mark_of(line))
                write(line)
                self._events += 1

        self._stream(run_member(head.run), lines)
        for sha256 in self._blobs.held_by(head.run):
            self._wanted[sha256] = None
        return PackedRun(
            run=head.run, count=head.count, hash=head.hash.hex(), mac=head.mac.hex(),
            marks=base64.b64encode(marks).decode(),
        )  # fmt: skip

    def _artifacts(self) -> tuple[str, ...]:
        """Write what was referred to and is still there; returns what is not."""
        absent = []
        for sha256 in self._wanted:
            try:
                data = self._blobs.read(sha256)
            except NotFound:
                absent.append(sha256)
                continue
            self._file(f"artifacts/{sha256}", data)
        return tuple(sorted(absent))

    def _file(self, name: str, content: bytes) -> None:
        self._stream(name, lambda write: write(content))

    def _stream(self, name: str, produce: Callable[[Callable[[bytes], None]], None]) -> None:
        digest = hashlib.sha256()
        self._tar.begin(name)

        def write(part: bytes) -> None:
            digest.update(part)
            self._out.write(part)

        produce(write)
        self._files[name] = PackedFile(size=self._tar.end(), sha256=digest.hexdigest())


def _head(whole: HeadRecord | None) -> PackedHead | None:
    return whole if whole is None else PackedHead(count=whole.count, hash=whole.hash.hex(), mac=whole.mac.hex())


class NoBlobs:
    """The artifact store of a gateway that never kept anything."""

    def held_by(self, run: str) -> list[str]:
        """As the protocol."""
        return []

    def read(self, sha256: str) -> bytes:
        """As the protocol."""
        raise NotFound("there is no such artifact")


def described(done: Exported) -> JsonObject:
    """Return what was written as JSON."""
    return {**done._asdict(), "absent": list(done.absent)}
