"""How an item lies in the database: what was written in one blob, everything else as numbers."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, get_args

import orjson

from omni_mcp.contracts.errors import BadRequest
from omni_mcp.contracts.memory import MemoryItem, MemoryKind, MemorySettings, MemorySource, Taint

KINDS: tuple[MemoryKind, ...] = get_args(MemoryKind)
TAINTS: tuple[Taint, ...] = get_args(Taint)
ITEM_COLUMNS = (
    "i.id, p.scope, p.owner, p.project, i.kind, i.taint, i.importance, i.at_ns, i.created_at_ns, i.revised_at_ns, "
    "i.expires_at_ns, i.version, w.principal, b.json"
)
ITEM_TABLES = (
    "items i JOIN places p ON p.place = i.place JOIN bodies b ON b.body = i.body "
    "LEFT JOIN writers w ON w.writer = i.principal"
)
MIB = 1024 * 1024
_INT64 = 1 << 63


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much one owner may keep in one scope, and one principal in all scopes but its own.

    The index in memory takes about as many bytes as what was written. A place with more than `quick_items` is searched
    by a thread of its own, so that to load it keeps nobody waiting but those who ask for such places.
    """

    items: int = 250_000
    bytes: int = 128 * 1024 * 1024
    shared_items: int = 50_000
    shared_bytes: int = 32 * 1024 * 1024
    quick_items: int = 20_000

    @classmethod
    def of(cls, settings: MemorySettings) -> Limits:
        """Return the limits that an operator set."""
        return cls(
            items=settings.items, bytes=settings.mib * MIB, shared_items=settings.shared_items,
            shared_bytes=settings.shared_mib * MIB,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """An item with all that is computed from it before the database is locked."""

    item: MemoryItem
    body: bytes
    mark: Mark


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """By what a text is found: its words as hashes, and its vector as int8; zeros if it could not be had yet."""

    length: int
    question: bool
    vector: bytes
    words: bytes
    subject_words: bytes
    has_vector: bool = True


def name_hash(name: str) -> int:
    """Return the signed 64-bit hash under which a key, session, subject or tag is indexed; never 0."""
    digest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True) or 1


def optional_hash(name: str | None) -> int | None:
    return None if name is None else name_hash(name)


def taint_bits(taint: tuple[Taint, ...]) -> int:
    return sum(1 << TAINTS.index(label) for label in set(taint))


def taint_of(bits: int) -> tuple[Taint, ...]:
    return tuple(label for place, label in enumerate(TAINTS) if bits >> place & 1)


def body_of(item: MemoryItem) -> bytes:
    """Return what was written, as it is stored: names and tags beside the text, so that all go with it.

    Raises:
        BadRequest: a time is out of range.
    """
    for name in ("at_ns", "created_at_ns", "expires_at_ns"):
        value = getattr(item, name)
        if value is not None and not -_INT64 <= value < _INT64:
            raise BadRequest("a time is out of range", detail=f"{name} = {value}")
    return orjson.dumps(
        {
            "text": item.text, "key": item.key, "session": item.session, "subject": item.subject, "tags": item.tags,
            "source": item.source.model_dump(exclude_none=True),
        }
    )  # fmt: skip


def text_and_subject(body: bytes) -> tuple[str, str | None]:
    written = orjson.loads(body)
    return written["text"], written["subject"]


def item_of(row: tuple[Any, ...]) -> MemoryItem:
    """Return the item of a row of ITEM_COLUMNS."""
    id_, scope, owner, project, kind, taint, importance, at, created, revised, expires, version, writer, body = row
    written = orjson.loads(body)
    return MemoryItem(
        id=id_, kind=KINDS[kind], scope=scope, owner=owner, project=project, text=written["text"], key=written["key"],
        subject=written["subject"], session=written["session"], tags=tuple(written["tags"]), importance=importance,
        taint=taint_of(taint), source=MemorySource(**written["source"]), at_ns=at,
        created_at_ns=created, revised_at_ns=revised, expires_at_ns=expires, version=version, writer=writer,
    )  # fmt: skip
