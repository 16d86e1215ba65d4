"""An anchor file: how far the log was and how each run ended, signed, to be kept where its writer cannot reach.

The gateway's own anchor lies beside its keys, so whoever owns both can take both back. A file on another machine, in a
repository or on paper cannot be taken back: a log that no longer contains what it says was cut or rewritten.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from omni_mcp.contracts.errors import LogCorrupt
from omni_mcp.contracts.ids import iso_time
from omni_mcp.contracts.manifest import Closed
from omni_mcp.engines.runlog.anchor import KnownHead
from omni_mcp.engines.runlog.connection import open_reader, translated
from omni_mcp.engines.runlog.heads import GLOBAL_NAME
from omni_mcp.engines.runlog.pack import Count, Hash
from omni_mcp.engines.runlog.signing import Signature, SigningKey, signed_document
from omni_mcp.engines.runlog.trust import read_document
from omni_mcp.engines.runlog.verify import NAMED_EACH, Fault, heads_in

SIGNED_AS = "log anchor"
LIMIT_BYTES = 1024 * 1024 * 1024


class Anchored(Closed):
    """The head of one run."""

    count: Count
    hash: Hash


class AnchorFile(Closed):
    """The head of the whole log, and of each of its runs, at one moment."""

    format: Literal["omni-mcp log anchor"]
    version: Literal[1]
    at: str
    count: Count
    hash: Hash
    runs: dict[Annotated[str, Field(max_length=64)], Anchored]

    @property
    def head(self) -> str:
        """As `audit verify --head` takes it."""
        return f"{self.count}:{self.hash}"


def take_anchor(file: Path, key: SigningKey) -> tuple[AnchorFile, bytes]:
    """Return the anchor of the log in *file*, and what is to be kept of it: one signed line.

    Raises:
        LogUnavailable: there is no log.
        LogCorrupt: it cannot be read, or is empty.
    """
    with closing(open_reader(file)) as connection:
        try:
            heads = {head.run: head for head in heads_in(connection)}
        except sqlite3.DatabaseError as error:
            raise translated(error, file) from error
    whole = heads.pop(GLOBAL_NAME, None)
    if whole is None:
        raise LogCorrupt("there is nothing to anchor", detail=f"{file} has no head")
    anchor = AnchorFile(
        format="omni-mcp log anchor", version=1, at=iso_time(time.time_ns()), count=whole.count, hash=whole.hash.hex(),
        runs={run: Anchored(count=head.count, hash=head.hash.hex()) for run, head in heads.items()},
    )  # fmt: skip
    return anchor, signed_document(key, SIGNED_AS, anchor.model_dump())


def read_anchor(file: Path) -> tuple[AnchorFile, Signature]:
    """Return the anchor in *file* and its signature, which fits.

    Raises:
        LogCorrupt: it is none, or was edited.
        OSError: it cannot be read.
    """
    with file.open("rb") as source:
        document, signature = read_document(source.read(LIMIT_BYTES), SIGNED_AS, name=str(file))
    try:
        return AnchorFile.model_validate(document), signature
    except ValidationError as error:
        raise LogCorrupt("the file is not an anchor that can be read", detail=str(file)) from error


def known_head(anchor: AnchorFile, file: Path) -> KnownHead:
    """Return what the whole log must contain."""
    return KnownHead(anchor.count, bytes.fromhex(anchor.hash), str(file))


def anchor_faults(log: Path, anchor: AnchorFile) -> list[Fault]:
    """Return what the log in *log* lacks of *anchor*, run by run: each event that was cut off, named.

    Raises:
        LogUnavailable, LogCorrupt: the log cannot be read.
    """
    with closing(open_reader(log)) as connection:
        try:
            return [fault for run, known in anchor.runs.items() for fault in _missing(connection, run, known)]
        except sqlite3.DatabaseError as error:
            raise translated(error, log) from error


def _missing(connection: sqlite3.Connection, run: str, known: Anchored) -> list[Fault]:
    sql = (
        "SELECT e.seq, e.hash FROM events e WHERE e.run = (SELECT run FROM run_keys WHERE id = ?) AND e.seq <= ? "
        "ORDER BY e.seq DESC LIMIT 1"
    )
    found = connection.execute(sql, (run, known.count)).fetchone()
    last = found[0] if found else 0
    if last == known.count:
        if found and found[1].hex() != known.hash:
            return [Fault(run, last, "the chain was rewritten: it is not the event that the anchor knows")]
        return []
    gone = range(last + 1, min(known.count, last + NAMED_EACH) + 1)
    return [Fault(run, seq, "cut off: the anchor knows it, and it is gone") for seq in gone]
