"""Standing grants are rows: given once, revoked at most once, each by one statement.

The command line and a running gateway open the same file. A grant counts only once `recorded` says that the run log
has its giving; only a gateway says so.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import orjson

from omni_mcp.contracts.approval import StandingGrant
from omni_mcp.contracts.errors import BadRequest, Conflict, NotFound

DAY_NS = 86400 * 1_000_000_000
MAX_SPAN_NS = 90 * DAY_NS  # longer than a quarter, nobody remembers having given it
MAX_STANDING = 1000
MAX_DEFINITIONS = 500  # the event that holds them is searched by its first 64 KiB
MAX_HOSTS = 64
MAX_NOTE_CHARS = 2000
KEPT_NS = 30 * DAY_NS  # as closed questions; the run log keeps the facts
HINT = "see: omni-mcp approvals grants --all"
Step = Literal["given", "revoked"]

_TABLE = """
CREATE TABLE IF NOT EXISTS standing_grants (
    id TEXT PRIMARY KEY,
    body TEXT NOT NULL,
    given_at_ns INTEGER NOT NULL,
    expires_at_ns INTEGER NOT NULL,
    revoked_at_ns INTEGER,
    revoked_by TEXT,
    recorded INTEGER NOT NULL DEFAULT 0 CHECK (recorded IN (0, 1, 2))  -- nothing, the giving, the revoking as well
) WITHOUT ROWID;
"""
_COLUMNS = "body, revoked_at_ns, revoked_by, recorded"


@dataclass(frozen=True, slots=True)
class StoredGrant:
    """A grant as it is stored. `on_record` says whether the run log has its giving."""

    grant: StandingGrant
    on_record: bool

    def state_at(self, at_ns: int) -> Literal["stands", "not on record yet", "expired", "revoked"]:
        """Say in a word what it is worth at *at_ns*."""
        if self.grant.revoked_at_ns is not None:
            return "revoked"
        if not self.grant.stands_at(at_ns):
            return "expired"
        return "stands" if self.on_record else "not on record yet"


class StandingStore:
    """All standing grants of one state database. Synchronous, one thread at a time.

    Args:
        connection: in autocommit mode; whoever made it closes it.
        now_ns: UTC nanoseconds since the epoch.
    """

    def __init__(self, connection: sqlite3.Connection, *, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._connection = connection
        self._now_ns = now_ns
        connection.executescript(_TABLE)

    def give(self, grant: StandingGrant) -> None:
        """Keep *grant*. It counts when a gateway has put it on record.

        Raises:
            BadRequest: it has no end within 90 days, covers too many definitions or none or too many hosts, or its
                note is too long.
            Conflict: too many grants stand.
        """
        now = self._now_ns()
        if not now < grant.expires_at_ns <= now + MAX_SPAN_NS:
            raise BadRequest("a standing grant ends within 90 days, such as: --expires 7d")
        if grant.definitions is not None and not 0 < len(grant.definitions) <= MAX_DEFINITIONS:
            raise BadRequest(f"a standing grant is bound to 1 to {MAX_DEFINITIONS} definitions; name a single tool")
        if len(grant.hosts or ()) > MAX_HOSTS:
            raise BadRequest(f"a standing grant names at most {MAX_HOSTS} hosts")
        if grant.note is not None and len(grant.note) > MAX_NOTE_CHARS:
            raise BadRequest(f"a note has at most {MAX_NOTE_CHARS} characters")
        done = self._connection.execute(
            "INSERT INTO standing_grants (id, body, given_at_ns, expires_at_ns) SELECT ?, ?, ?, ? WHERE (SELECT"
            " count(*) FROM standing_grants WHERE revoked_at_ns IS NULL AND expires_at_ns > ?) < ?",
            (
                grant.id,
                orjson.dumps(grant.model_dump(mode="json")).decode(),
                grant.given_at_ns,
                grant.expires_at_ns,
                now,
                MAX_STANDING,
            ),
        )
        if done.rowcount != 1:
            raise Conflict(f"{MAX_STANDING} standing grants stand already; {HINT}, and revoke what is not needed")

    def revoke(self, prefix: str, *, by: str) -> StandingGrant:
        """Take back the one grant whose id begins with *prefix*.

        Raises:
            NotFound: there is none.
            Conflict: several, or it is revoked or expired already.
        """
        found = self.find(prefix).grant
        now = self._now_ns()
        done = self._connection.execute(
            "UPDATE standing_grants SET revoked_at_ns = ?, revoked_by = ?"
            " WHERE id = ? AND revoked_at_ns IS NULL AND expires_at_ns > ?",
            (now, by, found.id, now),
        )
        if done.rowcount != 1:
            raise Conflict(f"standing grant {found.id} is {self.find(found.id).state_at(now)} already")
        return self.find(found.id).grant

    def find(self, prefix: str) -> StoredGrant:
        """Return the one grant whose id begins with *prefix*.

        Raises:
            NotFound: none does.
            Conflict: several do.
        """
        found = self._many("id >= ? AND id < ? ORDER BY id LIMIT 2", (prefix, prefix + "\U0010ffff"))
        if len(found) > 1:
            raise Conflict(f"several standing grants begin with {prefix!r}; give more of the id")
        if not found or not prefix:
            raise NotFound(f"there is no standing grant {prefix!r}; {HINT}")
        return found[0]

    def all(self) -> list[StoredGrant]:
        """Return what is kept, newest first."""
        return self._many("1 ORDER BY given_at_ns DESC, id DESC", ())

    def standing(self) -> tuple[StandingGrant, ...]:
        """Return the grants that count now: on record, not revoked, not expired."""
        where = "recorded > 0 AND revoked_at_ns IS NULL AND expires_at_ns > ? ORDER BY id"
        return tuple(stored.grant for stored in self._many(where, (self._now_ns(),)))

    def unrecorded(self) -> list[tuple[Step, StandingGrant]]:
        """Return what the run log has not got yet, in the order in which it happened to each grant."""
        found: list[tuple[Step, StandingGrant]] = []
        for stored in self._many("recorded < iif(revoked_at_ns IS NULL, 1, 2) ORDER BY given_at_ns, id LIMIT 1000", ()):
            found += [] if stored.on_record else [("given", stored.grant)]
            found += [("revoked", stored.grant)] if stored.grant.revoked_at_ns is not None else []
        return found

    def mark_recorded(self, grant_id: str, step: Step) -> None:
        """Remember that the run log has *step*; the steps before it are on record as well."""
        reached = 1 if step == "given" else 2
        self._connection.execute(
            "UPDATE standing_grants SET recorded = max(recorded, ?) WHERE id = ?", (reached, grant_id)
        )

    def purge(self) -> int:
        """Delete what ended more than a month ago and is on record; returns how many."""
        before = self._now_ns() - KEPT_NS
        done = self._connection.execute(
            "DELETE FROM standing_grants WHERE recorded >= iif(revoked_at_ns IS NULL, 1, 2) AND expires_at_ns < ?",
            (before,),
        )
        return done.rowcount

    def _many(self, where: str, values: tuple[object, ...]) -> list[StoredGrant]:
        rows = self._connection.execute(f"SELECT {_COLUMNS} FROM standing_grants WHERE {where}", values).fetchall()
        return [_stored(*row) for row in rows]


def _stored(body: str, revoked_at_ns: int | None, revoked_by: str | None, recorded: int) -> StoredGrant:
    facts = orjson.loads(body)
    facts.update(revoked_at_ns=revoked_at_ns, revoked_by=revoked_by)
    return StoredGrant(StandingGrant.model_validate(facts), recorded > 0)
