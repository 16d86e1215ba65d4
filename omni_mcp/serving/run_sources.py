"""What a stream reads: one run's events by their seq, or all of a principal's by a sealed place in the log."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.errors import BadRequest
from omni_mcp.contracts.json import JsonObject
from omni_mcp.engines.runlog.store import SqliteRunLog

PLACE_BYTES = 8
FAR_EVENTS = 10_000  # of others, which a stream that comes back may have to pass over once more


@dataclass(frozen=True, slots=True)
class Page:
    """Events in JSON with their ids; `more` are there already; `closed`: none will come after these."""

    events: Sequence[tuple[str, bytes]]
    more: bool
    closed: bool


class Source(Protocol):
    """Where a stream is, and what comes next."""

    @property
    def run(self) -> str | None:
        """The one run that is read; None for all of the principal's."""
        ...

    @property
    def place(self) -> str:
        """The id to come back with."""
        ...

    async def next(self) -> Page:
        """Return what is there behind the place, and move it."""
        ...


class RunSource:
    """One run. Its ids are the seqs."""

    def __init__(self, log: SqliteRunLog, facts: JsonObject, *, after: int) -> None:
        self._log = log
        self._run: str = facts["id"]
        self._closed = not facts["open"]
        self._after = after

    @property
    def run(self) -> str:
        """The run."""
        return self._run

    @property
    def place(self) -> str:
        """The last seq that was read."""
        return str(self._after)

    async def next(self) -> Page:
        """As the protocol says."""
        found = await self._log.follow_run(self._run, after=self._after)
        self._after = found.reached
        self._closed = self._closed or found.closed
        return Page([(str(line.place), line.text) for line in found.lines], found.more, self._closed and not found.more)


class PrincipalSource:
    """All runs of a principal, in the order in which everything was committed.

    Its ids hide how much others wrote in between: they are sealed, and open for their principal alone. The place that a
    silent stream tells does not move with each event of another's either: that would say that there was one.
    """

    def __init__(self, log: SqliteRunLog, places: Places, principal: Principal, *, after: int) -> None:
        self._log = log
        self._places = places
        self._principal = principal.key
        self._after = self._told = after

    @property
    def run(self) -> None:
        """No single one."""
        return

    @property
    def place(self) -> str:
        """A sealed place behind the last event that was read, and not far from where was looked last."""
        if self._after - self._told >= FAR_EVENTS:
            self._told = self._after
        return self._places.seal(self._told, self._principal)

    async def next(self) -> Page:
        """As the protocol says."""
        found = await self._log.follow_principal(self._principal, after=self._after)
        self._after = found.reached
        self._told = found.lines[-1].place if found.lines else self._told
        seal = self._places.seal
        return Page([(seal(line.place, self._principal), line.text) for line in found.lines], found.more, False)


class Places:
    """Seals places in the log: the same place and principal give the same text, also after a restart.

    Args:
        secret: from the log's own key, so that whoever has it can tell places apart already.
    """

    def __init__(self, secret: str) -> None:
        self._cipher = AESSIV(hashlib.sha512(f"places of streams\n{secret}".encode()).digest())

    def seal(self, gid: int, principal: str) -> str:
        """Return the text of a place."""
        sealed = self._cipher.encrypt(gid.to_bytes(PLACE_BYTES, "big"), [principal.encode()])
        return base64.urlsafe_b64encode(sealed).decode()

    def open(self, text: str, principal: str) -> int:
        """Return the place that *text* was made of.

        Raises:
            BadRequest: it is none, or another's.
        """
        try:
            sealed = base64.b64decode(text.encode("ascii"), altchars=b"-_", validate=True)
            return int.from_bytes(self._cipher.decrypt(sealed, [principal.encode()]), "big")
        except (UnicodeEncodeError, binascii.Error, ValueError, InvalidTag) as fault:
            raise BadRequest("Last-Event-ID is not valid", data={"path": "Last-Event-ID"}) from fault
