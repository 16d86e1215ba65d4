"""Erasure: texts go, links stay. Works beside a running gateway and without one.

In one transaction payloads, salts and sealed bodies are overwritten with zeros, and with a whole run the key of its
bodies; the search tables that held their words are filled anew, what was projected of them is derived again, and an
`erased` event says which places were emptied. Then files of bodies and artifacts that nobody else holds are unlinked,
and the write-ahead log, which still has the old pages, is cut to nothing.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import orjson

from omni_mcp.contracts.artifact import answer_name
from omni_mcp.contracts.errors import LogUnavailable, NotFound, OmniError
from omni_mcp.contracts.events import Erased, RetentionRun, RunCreated, draft
from omni_mcp.contracts.ids import new_id
from omni_mcp.contracts.json import JsonObject, canonical
from omni_mcp.contracts.manifest import Closed
from omni_mcp.engines.runlog.bodies import DIRECTORY, BodyFiles
from omni_mcp.engines.runlog.ledger import Entry, Ledger, Transaction
from omni_mcp.engines.runlog.premises import unnamed_premises
from omni_mcp.engines.runlog.projections import project_run_again, values_of
from omni_mcp.engines.runlog.retiring import erased_together
from omni_mcp.engines.runlog.rows import SALT_BYTES
from omni_mcp.engines.runlog.search_index import SHARD_EVENTS, refill_shards
from omni_mcp.engines.runlog.sheets import sheet_of
from omni_mcp.engines.runlog.tickets import Ticket

TRUNCATE_WAIT_S = 10.0
_MAY_ERASE = "omni_mcp_may_erase"
_LEAVES = frozenset({"artifact_ref", "tool_result"})
_NS_PER_S = 1_000_000_000


class Blobs(Protocol):
    """What an erasure needs of the artifact store."""

    def held_by(self, run: str) -> list[str]:
        """Return the sha256 of everything that *run* refers to."""
        ...

    def held_as(self, run: str, names: Sequence[str]) -> list[str]:
        """Return the sha256 of what *run* refers to by one of *names*."""
        ...

    def release(self, run: str, sha256s: Sequence[str]) -> list[str]:
        """Drop the references of *run* to *sha256s* and remove blobs without any other; returns those removed."""
        ...


@dataclass(slots=True)
class Erasure:
    """What was erased, and which items of the memory went with it.

    `wal_truncated` False means that old pages may still be in the file's -wal: erase again. `still_open` are calls that
    have no outcome yet: what they write from now on is not erased.
    """

    runs: list[str] = field(default_factory=list)
    events: int = 0
    artifacts: list[str] = field(default_factory=list)
    memory: list[str] = field(default_factory=list)
    still_open: list[str] = field(default_factory=list)
    wal_truncated: bool = False

    def as_json(self) -> JsonObject:
        return {
            "runs": self.runs, "events": self.events, "artifacts": self.artifacts, "memory": self.memory,
            "still_open": self.still_open, "wal_truncated": self.wal_truncated,
        }  # fmt: skip


class Eraser:
    """Erases through a ledger of its own.

    Args:
        by: who asked for it, as the `erased` event names them.
    """

    def __init__(
        self, ledger: Ledger, file: Path, blobs: Blobs, *, by: str, now_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._ledger = ledger
        self._connection = ledger.connection
        self._file = file
        self._blobs = blobs
        self._by = by
        self._now_ns = now_ns

    def erase(self, run: str, *, call: str | None = None, reason: str) -> Erasure:
        """Erase the texts of a run, or of one of its calls, and everything derived from them.

        With a call go the premises that only its decisions named.

        Raises:
            NotFound: there is no such run, or no such call in it.
            LogUnavailable: it could not be done; everything is as it was.
        """
        done = Erasure()
        self._erase({run: None if call is None else [call]}, reason, done)
        done.still_open = [one for where, one in self._open_calls() if where == run and call in (None, one)]
        done.wal_truncated = self._clean_up()
        return done

    def erase_calls(self, calls: Iterable[tuple[str, str]], *, reason: str) -> Erasure:
        """Erase the texts of single calls, each named as (run, call), and of what they left. Unknown ones are passed
        over: they hold nothing.

        Raises:
            LogUnavailable: it could not be done; what was erased before the failure stays erased.
        """
        done = Erasure()
        by_run: dict[str, list[str]] = {}
        for run, call in calls:
            by_run.setdefault(run, []).append(call)
        for together in self._sharing_tables(by_run):
            self._erase(together, reason, done)
        done.wal_truncated = self._clean_up()
        return done

    def open_among(self, calls: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return those of *calls* that have no outcome yet: what they still write would outlive their erasure."""
        wanted = set(calls)
        return [one for one in self._open_calls() if one in wanted]

    def _open_calls(self) -> list[tuple[str, str]]:
        sql = "SELECT k.id, c.call FROM open_calls c JOIN run_keys k ON k.run = c.run"
        try:
            return list(self._connection.execute(sql))
        except sqlite3.Error as error:
            raise self._ledger.translated(error) from error

    def note(self, payload: Closed) -> None:
        """Append an event of the operator's own doing to the gateway's run.

        Raises:
            LogUnavailable: it could not be written.
        """
        with self._ledger.transaction() as group:
            self._note(group, self._own_run(group), payload)

    def retention(self, *, older_than_s: float, older_than: str) -> Erasure:
        """Erase all runs that have no open call and whose last event is older than *older_than_s* seconds.

        Raises:
            LogUnavailable: it could not be done; runs before the one that failed are erased.
        """
        done = Erasure()
        old = self._older_than(self._now_ns() - int(older_than_s * _NS_PER_S))
        try:
            for together in erased_together(self._connection, old):
                self._erase(dict.fromkeys(together), f"retention: older than {older_than}", done)
        except sqlite3.Error as error:
            raise self._ledger.translated(error) from error
        if done.runs:
            payload = RetentionRun(
                older_than=older_than, runs=len(done.runs), events=done.events, artifacts=len(done.artifacts)
            )
            with self._ledger.transaction() as group:
                self._note(group, self._own_run(group), payload)
        done.wal_truncated = self._clean_up()
        return done

    def _sharing_tables(self, by_run: Mapping[str, Sequence[str]]) -> list[dict[str, Sequence[str]]]:
        """Return what is erased together: runs whose calls are in the same tables of the search index.

        To fill a table anew is what takes long, and all other calls wait for it: once, and not once for each run.
        """
        sql = (
            "SELECT DISTINCT e.gid / ?1 FROM events e JOIN run_keys k ON k.run = e.run "
            "WHERE k.id = ?2 AND e.call IN (SELECT value FROM json_each(?3))"
        )
        groups: dict[frozenset[int], dict[str, Sequence[str]]] = {}
        try:
            for run, calls in by_run.items():
                rows = self._connection.execute(sql, (SHARD_EVENTS, run, _json_list(calls)))
                if tables := frozenset(number for (number,) in rows):
                    groups.setdefault(tables, {})[run] = calls
        except sqlite3.Error as error:
            raise self._ledger.translated(error) from error
        return list(groups.values())

    def _erase(self, wanted: Mapping[str, Sequence[str] | None], reason: str, done: Erasure) -> None:
        """Erase calls of runs, or whole runs, in one transaction."""
        self._empty_wal()
        artifacts = {run: self._artifacts_of(run, calls) for run, calls in wanted.items()}
        gids: list[int] = []
        with self._ledger.transaction() as group, self._allowed():
            for run, calls in wanted.items():
                gids += self._erase_run(group, run, calls, artifacts[run], reason)
            if gids:
                refill_shards(self._connection, gids)
                self._ledger.reload_index_state()
        once = [gid for run, calls in wanted.items() for gid in self._erased_before(run, calls)]
        BodyFiles(self._file.parent / DIRECTORY).remove([*gids, *once])
        done.events += len(gids)
        done.runs.extend(wanted)
        for run, sha256s in artifacts.items():
            done.artifacts.extend(self._blobs.release(run, sha256s))

    def _erase_run(
        self, group: Transaction, run: str, calls: Sequence[str] | None, artifacts: Sequence[str], reason: str
    ) -> list[int]:
        """Empty the places of one run and return their global numbers; the search tables are the caller's to fill."""
        run_key = self._run_key(run)
        if calls is not None and not self._has_call(run_key, calls):
            raise NotFound("there is no such call", detail=f"no call of {list(calls)} is in run {run!r}")
        places = self._places(run_key, calls)
        if calls is not None:
            places = sorted([*places, *unnamed_premises(self._connection, run_key, calls)])
        if places:
            named = () if calls is None else tuple(seq for seq, _ in places)  # empty: everything before the erasure
            payload = Erased(target_run=run, seqs=named, artifacts=tuple(artifacts), reason=reason, by=self._by)
            erased_by = self._note(group, run, payload)
            group.flush()
            self._overwrite(run_key, places, erased_by)
            self._ledger.sheets.forget(run_key, {sheet_of(seq) for seq, _ in places})
            if calls is None:
                self._destroy_key(run_key)
            project_run_again(self._connection, run_key)
        return [gid for _, gid in places]

    def _places(self, run_key: int, calls: Sequence[str] | None) -> list[tuple[int, int]]:
        """Return (seq, gid) of what is to be erased; `erased` events stay, they name places and no texts."""
        sql = "SELECT seq, gid FROM events WHERE run = ? AND erased_by IS NULL AND code IS NOT 'erased'"
        values: list[int | str] = [run_key]
        if calls is not None:
            sql, values = f"{sql} AND call IN (SELECT value FROM json_each(?))", [run_key, _json_list(calls)]
        return [(seq, gid) for seq, gid in self._connection.execute(f"{sql} ORDER BY seq", values)]

    def _erased_before(self, run: str, calls: Sequence[str] | None) -> list[int]:
        """Return what stands there without its text: whoever erased it may have been killed before its files went."""
        sql = "SELECT gid FROM events WHERE run = ? AND erased_by IS NOT NULL"
        values: list[int | str] = [self._run_key(run)]
        if calls is not None:
            sql, values = f"{sql} AND call IN (SELECT value FROM json_each(?))", [*values, _json_list(calls)]
        return [gid for (gid,) in self._connection.execute(sql, values)]

    def _overwrite(self, run_key: int, places: Sequence[tuple[int, int]], erased_by: int) -> None:
        """Put zeros of the same length where the texts were: SQLite then writes them in place."""
        self._connection.executemany(
            "UPDATE texts SET body = zeroblob(length(body)) WHERE gid = ?", [(gid,) for _, gid in places]
        )
        self._connection.executemany(
            "UPDATE bodies SET sealed = zeroblob(length(sealed)) WHERE gid = ?", [(gid,) for _, gid in places]
        )
        self._connection.executemany(
            "UPDATE events SET erased_by = ? WHERE run = ? AND seq = ?",
            [(erased_by, run_key, seq) for seq, _ in places],
        )

    def _destroy_key(self, run_key: int) -> None:
        """Whatever copy of a body is left somewhere cannot be read any more."""
        self._connection.execute("UPDATE body_keys SET wrapped = zeroblob(length(wrapped)) WHERE run = ?", (run_key,))

    def _artifacts_of(self, run: str, calls: Sequence[str] | None) -> list[str]:
        """Return what the erased events of the run refer to and no other event left; for a whole run, all it holds.

        Who merely names an artifact does not keep it. What an earlier erasure said it removed is taken again, and so is
        the answer of a call that was killed before its outcome: a process may end anywhere.
        """
        held = self._blobs.held_by(run)
        if calls is None or not held:
            return held
        inside = set(self._blobs.held_as(run, [answer_name(call) for call in calls]))
        outside: set[str] = set()
        sql = (
            "SELECT e.call, e.kind, e.code, t.body FROM events e JOIN texts t ON t.gid = e.gid "
            "WHERE e.run = (SELECT run FROM run_keys WHERE id = ?) AND e.erased_by IS NULL"
        )
        for owner, kind, code, body in self._connection.execute(sql, (run,)):
            named = {sha256 for sha256 in held if sha256.encode() in body}
            if owner in calls or code == "erased":
                inside |= named
            elif named and kind in _LEAVES:
                outside |= named & left_by(kind, orjson.loads(body[SALT_BYTES:]))
        return [sha256 for sha256 in held if sha256 in inside - outside]

    def _older_than(self, at_ns: int) -> list[str]:
        sql = (
            "SELECT k.id FROM heads h JOIN run_keys k ON k.run = h.run "
            "JOIN events e ON e.run = h.run AND e.seq = h.count WHERE e.at_ns < ? "
            "AND NOT EXISTS (SELECT 1 FROM open_calls c WHERE c.run = h.run) "
            "AND EXISTS (SELECT 1 FROM events t WHERE t.run = h.run AND t.erased_by IS NULL "
            "AND t.code IS NOT 'erased') "
            "ORDER BY h.run"
        )
        try:
            return [run for (run,) in self._connection.execute(sql, (at_ns,))]
        except sqlite3.Error as error:
            raise self._ledger.translated(error) from error

    def _own_run(self, group: Transaction) -> str:
        """Return the gateway's newest run, or begin one: what the command line did belongs to its own record."""
        sql = "SELECT id FROM run_keys WHERE run = (SELECT max(run) FROM runs WHERE kind = 'gateway')"
        found = self._connection.execute(sql).fetchone()
        if found:
            return str(found[0])
        run = new_id()
        payload = RunCreated(run_kind="gateway", project="default", principal=self._by, gateway_version="command line")
        self._note(group, run, payload, creates=True)
        return run

    def _note(self, group: Transaction, run: str, payload: Closed, *, creates: bool = False) -> int:
        event = draft(payload, actor=self._by)
        values = payload.model_dump()
        entry = Entry(
            run=run, kind=event.kind, code=event.code, actor=self._by, call=None, parent=None, privacy=(),
            payload=canonical(values), values=values_of(event.kind, values), at_ns=self._now_ns(), ticket=Ticket(),
            creates=creates,
        )  # fmt: skip
        group.add(entry)
        if entry.ticket.written is None:
            raise entry.ticket.error or LogUnavailable("the run log cannot be written")
        return entry.ticket.written

    def _run_key(self, run: str) -> int:
        found = self._connection.execute("SELECT run FROM run_keys WHERE id = ?", (run,)).fetchone()
        if found is None:
            raise NotFound("there is no such run", detail=f"run {run!r} was never created")
        return int(found[0])

    def _has_call(self, run_key: int, calls: Sequence[str]) -> bool:
        sql = "SELECT EXISTS (SELECT 1 FROM events WHERE call IN (SELECT value FROM json_each(?)) AND run = ?)"
        return bool(self._connection.execute(sql, (_json_list(calls), run_key)).fetchone()[0])

    @contextmanager
    def _allowed(self) -> Iterator[None]:
        """Give this connection, for as long as this, the function that the guarding trigger asks for."""
        self._connection.create_function(_MAY_ERASE, 0, lambda: 1)
        try:
            yield
        finally:
            self._connection.create_function(_MAY_ERASE, 0, None)

    def _empty_wal(self) -> None:
        """Move the write-ahead log into the file if nobody reads: on a full disk its room is all there is."""
        with suppress(sqlite3.OperationalError):
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def _clean_up(self) -> bool:
        """Give free pages back and cut the write-ahead log; False if readers kept it busy all the time."""
        deadline = time.monotonic() + TRUNCATE_WAIT_S
        while True:
            try:
                self._connection.execute("PRAGMA incremental_vacuum").fetchall()
                busy, _, _ = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            except sqlite3.OperationalError:
                busy = 1
            if not busy or time.monotonic() > deadline:
                return not busy


def left_by(kind: str, payload: JsonObject) -> set[str]:
    """Return the sha256 of what an event says that its call left; what its texts name besides is no artifact of it."""
    refs = [payload] if kind == "artifact_ref" else [payload.get("artifact"), *(payload.get("artifacts") or ())]
    return {str(ref["sha256"]) for ref in refs if ref}


def _json_list(texts: Sequence[str]) -> str:
    return canonical(list(texts)).decode()


def refuse_missing(file: Path) -> None:
    """Raise unless there is a log: an erasure must not make one.

    Raises:
        LogUnavailable: there is none.
    """
    if not file.exists():
        error: OmniError = LogUnavailable("there is no run log yet", detail=f"{file} does not exist")
        raise error
