"""Memory: what agents keep, where each item came from, and what a recall finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from omni_mcp.contracts.manifest import Closed

MemoryKind = Literal["episodic", "semantic", "procedural"]
MemoryScope = Literal["user", "project", "agent", "run"]
Taint = Literal["reads_private", "reads_untrusted"]
Change = Literal["remembered", "revised", "promoted", "imported", "merged", "forgotten", "expired"]

SERVER = "memory"
TEXT_LIMIT_CHARS = 16_384
QUERY_LIMIT_CHARS = 10_000

Tag = Annotated[str, Field(min_length=1, max_length=64)]
Name = Annotated[str, Field(min_length=1, max_length=256)]


class MemorySource(Closed):
    """Where an item came from: the event that wrote it, and what it was made of where it was promoted.

    `run`, `seq` and `call` name the `tool_call` that wrote it last; `from_run` and `from_seq` the event, or `artifact`
    the blob, whose text it holds.
    """

    run: str | None = None
    seq: int | None = None
    call: str | None = None
    artifact: str | None = None
    from_run: str | None = None
    from_seq: int | None = None


class MemoryItem(Closed):
    """One thing that is remembered.

    `owner` says whose it is within its scope: a principal's key (`agent`), `User::"ID"@project` (`user`), a project
    (`project`) or a run (`run`). `key` is the caller's own name for it, unique below `scope` and `owner`. `at_ns` is
    when it happened, `created_at_ns` when it was written; both count UTC nanoseconds since the epoch. `importance` is
    from 0 to 1. `taint` holds the labels of what the writing run had read: they never come off by a revision.
    """

    id: str
    kind: MemoryKind = "semantic"
    scope: MemoryScope
    owner: str
    project: str
    text: Annotated[str, Field(min_length=1, max_length=TEXT_LIMIT_CHARS)]
    key: Name | None = None
    subject: Name | None = None
    session: Name | None = None
    tags: tuple[Tag, ...] = ()
    importance: Annotated[float, Field(ge=0, le=1)] = 0.5
    taint: tuple[Taint, ...] = ()
    source: MemorySource = MemorySource()
    at_ns: int
    created_at_ns: int
    revised_at_ns: int | None = None
    expires_at_ns: int | None = None
    version: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Readers:
    """Whose items a caller may see: pairs of (scope, owner). Made from the principal and its run alone."""

    places: tuple[tuple[MemoryScope, str], ...]
    project: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall:
    """What to look for. `budget_chars` bounds the texts of all hits together; the first that does not fit is left out
    and the next shorter ones are still tried."""

    query: str
    readers: Readers
    k: int = 10
    budget_chars: int | None = None
    kinds: tuple[MemoryKind, ...] = ()
    tags: tuple[str, ...] = ()
    subject: str | None = None
    session: str | None = None
    without_taint: tuple[Taint, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One item that was found. `parts` says what its score is made of: `words`, `meaning`, `neighbour`, `entity`, …;
    they add up to `score`."""

    item: MemoryItem
    score: float
    parts: dict[str, float] = field(default_factory=dict)


def is_withheld(server: str | None, arguments: Mapping[str, object]) -> bool:
    """Whether a call says that what it carries must not be kept: it is refused, and recorded without its arguments.

    Only calls of the memory's own tools can say so, because they are refused then: nothing that runs leaves the record.
    """
    return server == SERVER and arguments.get("do_not_store", False) is not False
