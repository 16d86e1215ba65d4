"""Questions to a person are rows; every step from one state to the next is one compare-and-set.

The command line and a running gateway open the same file: whoever is first wins, and the other gets a conflict.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import orjson

from omni_mcp.contracts.approval import Approval, ApprovalState
from omni_mcp.contracts.errors import BadRequest, Conflict, NotFound, RateLimited
from omni_mcp.contracts.json import canonical

Channel = Literal["command_line", "elicitation", "url", "console", "clock", "gateway"]
Decision = Literal["approved", "denied", "expired", "withdrawn"]
MAX_OPEN_PER_PRINCIPAL = 32
MAX_OPEN = 512
KEPT_NS = 30 * 86400 * 1_000_000_000  # closed questions are kept for a month; the run log keeps the facts
MAX_NOTE_CHARS = 2000
MAX_LISTED = 1000

_TABLE = """
CREATE TABLE IF NOT EXISTS approvals (
    id TEXT PRIMARY KEY,
    state TEXT NOT NULL CHECK (state IN ('pending', 'approved', 'denied', 'expired', 'used', 'withdrawn')),
    binding BLOB NOT NULL,
    principal TEXT NOT NULL,
    run TEXT NOT NULL,
    body TEXT NOT NULL,
    parent_seq INTEGER,
    used_by TEXT,
    asked_at_ns INTEGER NOT NULL,
    expires_at_ns INTEGER NOT NULL,
    decided_at_ns INTEGER,
    decided_by TEXT,
    decision TEXT,
    channel TEXT,
    note TEXT,
    recorded INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS approvals_by_binding ON approvals (binding, state);
CREATE INDEX IF NOT EXISTS approvals_by_state ON approvals (state, expires_at_ns);
CREATE INDEX IF NOT EXISTS approvals_unrecorded ON approvals (recorded) WHERE recorded = 0;
"""
_COLUMNS = "id, state, body, parent_seq, asked_at_ns, expires_at_ns, decided_at_ns, decided_by, note, decision, channel"


@dataclass(frozen=True, slots=True)
class Decided:
    """A decision that the run log has not got yet."""

    approval: Approval
    decision: Decision
    channel: Channel
    parent_seq: int | None


@dataclass(frozen=True, slots=True)
class Claim:
    """What became of a claim: `taken` (good for this call), `joined` (already asked) or `opened` (asked now)."""

    outcome: Literal["taken", "joined", "opened"]
    approval: Approval


class ApprovalStore:
    """All questions of one state database. Synchronous, one thread at a time.

    Args:
        connection: of its own, in autocommit mode.
        now_ns: UTC nanoseconds since the epoch.
        max_open_per_principal, max_open: open questions beyond which nobody is asked anything more.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        *,
        now_ns: Callable[[], int] = time.time_ns,
        max_open_per_principal: int = MAX_OPEN_PER_PRINCIPAL,
        max_open: int = MAX_OPEN,
    ) -> None:
        self._connection = connection
        self._now_ns = now_ns
        self._max_open_per_principal = max_open_per_principal
        self._max_open = max_open
        connection.executescript(_TABLE)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def claim(
        self, wanted: Approval, *, parent_seq: int | None = None, again: bool = False, alone: bool = False
    ) -> Claim:  # fmt: skip
        """Take an approval for *wanted*'s binding, join the open question of the same binding, or open *wanted*.

        All in one transaction, so two callers never take one approval, and never open two questions for one call.

        Args:
            wanted: the question as it would be asked; its `call` is whom an approval is marked as used by.
            again: the same call goes into another round: an approval that it has used already still counts.
            alone: neither take what was given to another call nor join its question: a person is asked about this one.

        Raises:
            RateLimited: too many open questions.
        """
        key = binding_of(wanted)
        with self._transaction():
            self._expire_due()
            if again and (used := self._first("binding = ? AND state = 'used' AND used_by = ?", (key, wanted.call))):
                return Claim("taken", used)
            while not alone and (approved := self._first("binding = ? AND state = 'approved'", (key,))):
                if self._move(approved.id, "approved", "used", used_by=wanted.call):
                    return Claim("taken", approved.model_copy(update={"state": "used"}))
            if not alone and (pending := self._first("binding = ? AND state = 'pending'", (key,))):
                return Claim("joined", pending)
            self._check_room(wanted.principal)
            self._insert(wanted, key, parent_seq)
            return Claim("opened", wanted)

    def use(self, approval_id: str, call: str) -> bool:
        """Mark an approved question as used by *call*; False if somebody else was first or it has expired."""
        with self._transaction():
            self._expire_due()
            return self._move(approval_id, "approved", "used", used_by=call)

    def _check_room(self, principal: str) -> None:
        total = "SELECT count(*), count(*) FILTER (WHERE principal = ?) FROM approvals WHERE state = 'pending'"
        everybody, own = self._connection.execute(total, (principal,)).fetchone()
        if own >= self._max_open_per_principal or everybody >= self._max_open:
            detail = f"{own} open questions of {principal}, {everybody} in all"
            raise RateLimited("too many calls wait for a person", detail=detail, data={"retry_after_s": 60})

    def _insert(self, wanted: Approval, key: bytes, parent_seq: int | None) -> None:
        self._connection.execute(
            "INSERT INTO approvals (id, state, binding, principal, run, body, parent_seq, asked_at_ns, expires_at_ns)"
            " VALUES (?, 'pending', ?, ?, ?, ?, ?, ?, ?)",
            (
                wanted.id,
                key,
                wanted.principal,
                wanted.run,
                orjson.dumps(wanted.model_dump(mode="json")).decode(),
                parent_seq,
                wanted.asked_at_ns,
                wanted.expires_at_ns,
            ),
        )

    def decide(
        self, approval_id: str, *, by: str, approve: bool, note: str | None = None, channel: Channel = "command_line"
    ) -> Approval:
        """Answer one question, once.

        Args:
            by: the user who answers, as policies name users.

        Raises:
            NotFound: there is no such question.
            Conflict: it is decided, used, withdrawn or expired already.
            BadRequest: the note is too long.
        """
        if note is not None and len(note) > MAX_NOTE_CHARS:
            raise BadRequest(f"a note has at most {MAX_NOTE_CHARS} characters")
        with self._transaction():
            self._expire_due()
            moved = self._decide(approval_id, "approved" if approve else "denied", by=by, channel=channel, note=note)
            found = self.get(approval_id)
        if not moved:
            raise Conflict(f"question {approval_id} is {found.state} already", data={"state": found.state})
        return found

    def withdraw(self, approval_ids: Iterable[str], *, note: str) -> list[str]:
        """Withdraw open questions; returns the ids of those that were still open."""
        with self._transaction():
            return [
                one
                for one in approval_ids
                if self._decide(one, "withdrawn", by="gateway", channel="gateway", note=note)
            ]

    def rebind(self, approval_ids: Iterable[str], policy_version: str) -> None:
        """Let open questions count under *policy_version*, which asks them as well."""
        with self._transaction():
            for one in approval_ids:
                found = self._first("id = ? AND state = 'pending'", (one,))
                if found is None:
                    continue
                moved = found.model_copy(update={"policy_version": policy_version})
                self._connection.execute(
                    "UPDATE approvals SET binding = ?, body = ? WHERE id = ? AND state = 'pending'",
                    (binding_of(moved), orjson.dumps(moved.model_dump(mode="json")).decode(), one),
                )

    def expire_due(self) -> int:
        """Close every question whose time has passed; returns how many were open until now."""
        due = "SELECT 1 FROM approvals WHERE state IN ('pending', 'approved') AND expires_at_ns <= ? LIMIT 1"
        if self._connection.execute(due, (self._now_ns(),)).fetchone() is None:
            return 0  # the usual case takes no write lock
        with self._transaction():
            return self._expire_due()

    def _expire_due(self) -> int:
        now = self._now_ns()
        done = self._connection.execute(
            "UPDATE approvals SET state = 'expired', decision = 'expired', decided_at_ns = ?, decided_by = 'clock',"
            " channel = 'clock'"
            " WHERE state = 'pending' AND expires_at_ns <= ?",
            (now, now),
        )
        # An approval that nobody used in time: the person's answer is on record already and stays theirs.
        self._connection.execute(
            "UPDATE approvals SET state = 'expired' WHERE state = 'approved' AND expires_at_ns <= ?", (now,)
        )
        return done.rowcount

    def _decide(self, approval_id: str, state: Decision, *, by: str, channel: Channel, note: str | None) -> bool:
        done = self._connection.execute(
            "UPDATE approvals SET state = ?, decision = ?, decided_at_ns = ?, decided_by = ?, channel = ?, note = ?"
            " WHERE id = ? AND state = 'pending'",
            (state, state, self._now_ns(), by, channel, note, approval_id),
        )
        return done.rowcount == 1

    def _move(self, approval_id: str, old: ApprovalState, new: ApprovalState, *, used_by: str) -> bool:
        done = self._connection.execute(
            "UPDATE approvals SET state = ?, used_by = ? WHERE id = ? AND state = ?", (new, used_by, approval_id, old)
        )
        return done.rowcount == 1

    def get(self, approval_id: str) -> Approval:
        """Return one question.

        Raises:
            NotFound: there is no such question.
        """
        found = self._first("id = ?", (approval_id,))
        if found is None:
            raise NotFound(f"there is no question {approval_id!r}; see: omni-mcp approvals list --all")
        return found

    def find(self, prefix: str) -> Approval:
        """Return the one question whose id begins with *prefix*.

        Raises:
            NotFound: none does.
            Conflict: several do.
        """
        found = self._many("id >= ? AND id < ? ORDER BY id LIMIT 2", (prefix, prefix + "\U0010ffff"))
        if len(found) > 1:
            raise Conflict(f"several questions begin with {prefix!r}; give more of the id")
        if not found or not prefix:
            raise NotFound(f"there is no question {prefix!r}; see: omni-mcp approvals list --all")
        return found[0]

    def open_questions(self, *, project: str | None = None) -> list[Approval]:
        """Return what waits, oldest first; what has expired is not among it."""
        found = self._many(
            "state = 'pending' AND expires_at_ns > ? ORDER BY asked_at_ns, id LIMIT ?", (self._now_ns(), self._max_open)
        )
        return [one for one in found if project is None or one.project == project]

    def recent(self, *, limit: int = 100) -> list[Approval]:
        """Return questions in any state, newest first."""
        return self._many("1 ORDER BY asked_at_ns DESC, id DESC LIMIT ?", (min(max(limit, 0), MAX_LISTED),))

    def states(self, approval_ids: Iterable[str]) -> dict[str, Approval]:
        """Return the questions of these ids that exist."""
        return {one: found for one in approval_ids if (found := self._first("id = ?", (one,))) is not None}

    def data_version(self) -> int:
        """Return a number that changes when another connection has written."""
        return int(self._connection.execute("PRAGMA data_version").fetchone()[0])

    def unrecorded(self) -> list[Decided]:
        """Return decisions that the run log has not got yet, oldest first."""
        query = (
            f"SELECT {_COLUMNS} FROM approvals WHERE recorded = 0 AND decided_at_ns IS NOT NULL"
            " ORDER BY decided_at_ns, id LIMIT 1000"
        )
        rows = self._connection.execute(query).fetchall()
        return [Decided(_approval(row), row[9], row[10], row[3]) for row in rows]

    def mark_recorded(self, approval_id: str, *, refused: bool = False) -> None:
        """Remember that the run log has the decision, or that it will never take it."""
        self._connection.execute("UPDATE approvals SET recorded = ? WHERE id = ?", (2 if refused else 1, approval_id))

    def erase_run(self, run: str, call: str | None = None) -> bool:
        """Delete every question of *run*, or of one of its calls, with its arguments; open ones are lost as well.

        Returns:
            Whether the write-ahead log could be cut; until it is, the old pages are in it.
        """
        with self._transaction():
            asked_by = "json_extract(body, '$.call')"
            self._connection.execute(
                f"DELETE FROM approvals WHERE run = ? AND {asked_by} = ifnull(?, {asked_by})", (run, call)
            )
        busy, _, _ = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not busy

    def purge(self) -> int:
        """Delete recorded questions that were closed more than a month ago; returns how many."""
        before = self._now_ns() - KEPT_NS
        done = self._connection.execute(
            "DELETE FROM approvals WHERE recorded > 0 AND state <> 'pending' AND expires_at_ns < ?", (before,)
        )
        return done.rowcount

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def _first(self, where: str, values: tuple[object, ...]) -> Approval | None:
        found = self._many(f"{where} ORDER BY asked_at_ns LIMIT 1", values)
        return found[0] if found else None

    def _many(self, where: str, values: tuple[object, ...]) -> list[Approval]:
        rows = self._connection.execute(f"SELECT {_COLUMNS} FROM approvals WHERE {where}", values).fetchall()
        return [_approval(row) for row in rows]


def binding_of(approval: Approval) -> bytes:
    """Return what an answer is good for: exactly this caller, definition, name, arguments and policy."""
    return canonical(
        [
            approval.principal,
            approval.server,
            approval.tool,
            approval.name,  # a resource template covers many URIs: the person saw one
            approval.definition_digest,
            approval.arguments_digest,
            approval.policy_version,
        ]
    )


def _approval(row: tuple[object, ...]) -> Approval:
    body = orjson.loads(str(row[2]))
    body.update(state=row[1], decided_at_ns=row[6], decided_by=row[7], note=row[8])
    return Approval.model_validate(body)
