"""An export is one JSON Lines file that verifies by itself: a header, events run by run, the heads of their chains."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, NamedTuple

import orjson

from omni_mcp.contracts.errors import LogCorrupt, NotFound
from omni_mcp.contracts.events import CONTRACT_VERSION
from omni_mcp.contracts.ids import iso_time
from omni_mcp.contracts.json import JsonObject, canonical
from omni_mcp.engines.runlog.anchor import KnownHead
from omni_mcp.engines.runlog.connection import open_reader, translated
from omni_mcp.engines.runlog.keys import LogKeys
from omni_mcp.engines.runlog.rows import SELECT_EVENT, Row, event_of
from omni_mcp.engines.runlog.verify import HeadRecord, Report, heads_in, verify_rows

FORMAT, FORMAT_VERSION = "omni-mcp run log", 1
LINE_LIMIT_BYTES = 256 * 1024 * 1024


class Exported(NamedTuple):
    """What was written, and the head of the whole log at that moment as `COUNT:HASH`."""

    events: int
    head: str


def export(file: Path, out: BinaryIO, *, run: str | None) -> Exported:
    """Write one run, or all of them if *run* is None, to *out*.

    Raises:
        NotFound: there is no such run.
        LogCorrupt, LogUnavailable: the database cannot be read.
    """
    with closing(open_reader(file)) as connection:
        try:
            connection.execute("BEGIN")  # one snapshot: what is committed meanwhile is not half in it
            return _write(connection, out, run)
        except sqlite3.DatabaseError as error:
            raise translated(error, file) from error


def _write(connection: sqlite3.Connection, out: BinaryIO, run: str | None) -> Exported:
    heads = list(heads_in(connection, run))
    if run is not None and not heads:
        raise NotFound("there is no such run", detail=f"run {run!r} was never created")
    header = {
        "format": FORMAT, "version": FORMAT_VERSION, "contract": CONTRACT_VERSION,
        "scope": "all" if run is None else "run", "run": run, "exported_at": iso_time(time.time_ns()),
    }  # fmt: skip
    _line(out, header)
    where, values = ("", ()) if run is None else ("WHERE k.id = ?", (run,))
    count = 0
    for row in connection.execute(f"{SELECT_EVENT} {where} ORDER BY e.run, e.seq", values):
        _line(out, {"event": event_of(row).model_dump()})
        count += 1
    for head in heads:
        _line(out, {"head": {"run": head.run, "count": head.count, "hash": head.hash.hex(), "mac": head.mac.hex()}})
    total = connection.execute("SELECT count, hash FROM global_head").fetchone()
    return Exported(count, f"{total[0]}:{total[1].hex()}" if total else "")


def _line(out: BinaryIO, value: JsonObject) -> None:
    out.write(canonical(value) + b"\n")


def is_export(file: Path) -> bool:
    """Say whether *file* begins like an export rather than like a database."""
    with file.open("rb") as source:
        return source.read(1) == b"{"


def verify_export(file: Path, keys: LogKeys | None, known: Sequence[KnownHead] = ()) -> Report:
    """Verify an export without the database that it came from, and that it contains the heads *known* from earlier.

    Raises:
        LogCorrupt: it is no export, or not a whole one.
    """
    with file.open("rb") as source:
        header = _parsed(source.readline(LINE_LIMIT_BYTES), file, 1)
        if header.get("format") != FORMAT or header.get("version") != FORMAT_VERSION:
            raise LogCorrupt(
                "not an export that this program can read", detail=f"{file}: its first line names no known format"
            )
        heads: list[HeadRecord] = []
        whole_log = header.get("scope") == "all"
        return verify_rows(_rows(source, file, heads), _Late(heads), keys, whole_log=whole_log, known=known)


class _Late(list[HeadRecord]):
    """The heads, which become known only when all events have been read."""

    def __init__(self, heads: list[HeadRecord]) -> None:
        super().__init__()
        self._heads = heads

    def __bool__(self) -> bool:
        return bool(self._heads)

    def __iter__(self) -> Iterator[HeadRecord]:
        return iter(self._heads)


def _rows(source: BinaryIO, file: Path, heads: list[HeadRecord]) -> Iterator[Row]:
    number = 1
    while line := source.readline(LINE_LIMIT_BYTES):
        number += 1
        found = _parsed(line, file, number)
        try:
            if "event" in found:
                yield _row_of(found["event"])
            else:
                head = found["head"]
                heads.append(
                    HeadRecord(head["run"], head["count"], bytes.fromhex(head["hash"]), bytes.fromhex(head["mac"]))
                )
        except (KeyError, TypeError, ValueError) as error:
            raise LogCorrupt("a line of the export cannot be read", detail=f"{file}:{number}: {error!r}") from error


def _parsed(line: bytes, file: Path, number: int) -> JsonObject:
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise LogCorrupt("a line of the export cannot be read", detail=f"{file}:{number}: {error}") from error
    if not isinstance(found, dict):
        raise LogCorrupt("a line of the export cannot be read", detail=f"{file}:{number}: not an object")
    return found


def _row_of(event: JsonObject) -> Row:
    """Return an exported event as a row; the canonical form of its payload is again the bytes that were hashed."""
    payload, salt = event["payload"], bytes.fromhex(event["salt"])
    return (
        event["run"], event["seq"], event["gid"], event["at_ns"], event["v"], event["kind"], event["code"],
        event["actor"], event["call"], event["parent"], canonical(event["privacy"]), event["erased_by"],
        bytes.fromhex(event["payload_digest"]), bytes.fromhex(event["body_digest"]), bytes.fromhex(event["prev"]),
        bytes.fromhex(event["hash"]), None if payload is None else salt + canonical(payload),
    )  # fmt: skip
