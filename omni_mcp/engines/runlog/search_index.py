"""Full text search over events, by recency: contentless FTS5 tables, one for every 32,768 events.

Contentless, because the text stands in the events already. SQLite before 3.43 cannot delete from such a table, and what
its segments leave behind in pages is nobody's to clean; so an erasure drops the tables that it touches, which zeroes
their pages, and fills them anew from what is left. Many small tables, because that must not take long.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import chain, compress, groupby
from operator import methodcaller, not_

from omni_mcp.engines.runlog.rows import in_portions, payload_of
from omni_mcp.engines.runlog.word_filters import drop_all, unmake

SHARD_EVENTS = 32_768
INDEXED_BYTES = 64 * 1024  # of one event; what stands further back is on record but not found
_OPTIONS = "text, content='', columnsize=0, tokenize='unicode61 remove_diacritics 2'"
_DIGITS = b"-0123456789"
_ends_a_name = methodcaller("startswith", b":")
_NUMBERS_ONLY = bytes(byte if byte in b"-+.0123456789eE" else 0x20 for byte in range(256))
_ESCAPE = re.compile(rb"\\(?:u[0-9a-fA-F]{4}|.)")
_BACKSLASH, _QUOTE = b"\0", b"\1"  # in place of escaped ones: no JSON text holds these bytes
_DECISION, _CHANGING, _AFTER = b'{"approval":', b'"args_bytes":', b'"egress_hosts":'
_REMEMBERED_BYTES = 2048
_MERGES = {"automerge": 0, "crisismerge": 256, "usermerge": 8}  # none but those that we ask for; eight pieces into one
MERGED_PAGES, EVENTS_PER_MERGED_PAGE = 8, 16  # with each portion: more than it adds, so that no table falls behind


def text_of(payload: bytes) -> str:
    """Return the words of a payload as stored: its strings without their names, numbers beside them.

    The same bytes always give the same text; an erasure depends on that.
    """
    escaped = b"\\" in payload
    if escaped:
        plain = payload.replace(rb"\\", _BACKSLASH).replace(rb"\"", _QUOTE)
        text = b" ".join(chain(*_strings_and_numbers(plain)))
        text = _ESCAPE.sub(_unescaped, text) if b"\\" in text else text
        text = text.replace(_BACKSLASH, b"\\").replace(_QUOTE, b'"')
    else:
        found = _of_decision(payload) if payload.startswith(_DECISION) else _strings_and_numbers(payload)
        text = b" ".join(chain(*found))
    return text[:INDEXED_BYTES].decode("utf-8", "ignore")


def _strings_and_numbers(plain: bytes) -> tuple[list[bytes], list[bytes]]:
    parts = plain.split(b'"')  # what stands between strings, and strings, by turns
    strings = list(compress(parts[1::2], map(not_, map(_ends_a_name, parts[2::2]))))
    others = b" ".join(parts[::2]).translate(_NUMBERS_ONLY).split()
    return strings, [number for number in others if number[0] in _DIGITS]  # not the last letter of `true`


_remembered = lru_cache(maxsize=256)(_strings_and_numbers)


def _of_decision(plain: bytes) -> tuple[list[bytes], list[bytes]]:
    """Do the same for a decision, the longest event of a call: but for its arguments' digest the next one is like it.

    It is cut ahead of two names, which only a name can look like in a text without escapes.
    """
    at = plain.find(_CHANGING, 0, _REMEMBERED_BYTES)
    end = plain.find(_AFTER, at) if at > 0 else -1
    if end < 0 or len(plain) - end > _REMEMBERED_BYTES:
        return _strings_and_numbers(plain)
    ahead, between, behind = _remembered(plain[:at]), _strings_and_numbers(plain[at:end]), _remembered(plain[end:])
    return ahead[0] + between[0] + behind[0], ahead[1] + between[1] + behind[1]


def _unescaped(match: re.Match[bytes]) -> bytes:
    return b"/" if match.group() == rb"\/" else b" "


def shards(connection: sqlite3.Connection, *, schema: str = "main") -> list[str]:
    """Return the tables that exist, newest first."""
    rows = connection.execute(
        f"SELECT name FROM {schema}.sqlite_schema WHERE type = 'table' AND name GLOB 'search_[0-9]*'"
    )
    names = [name for (name,) in rows if name.removeprefix("search_").isdigit()]
    return sorted(names, key=lambda name: -int(name.removeprefix("search_")))


def indexed_gid(connection: sqlite3.Connection) -> int:
    """Return the global number up to which events are indexed."""
    return find_indexed_gid(connection) or 0


def find_indexed_gid(connection: sqlite3.Connection, *, schema: str = "main") -> int | None:
    """Return the global number up to which events are indexed; None if that is not on record."""
    found = connection.execute(f"SELECT gid FROM {schema}.search_state").fetchone()
    return None if found is None else int(found[0])


def index_up_to(connection: sqlite3.Connection, gid: int) -> None:
    """Index what is not indexed yet, up to *gid*, in the caller's transaction."""
    at = indexed_gid(connection)
    while at < gid:
        until = min(gid, at + 1024)
        index_payloads(connection, payloads_between(connection, at, until), until)
        at = until


def payloads_between(connection: sqlite3.Connection, after: int, until: int) -> list[tuple[int, bytes | None]]:
    """Return (gid, payload) of the events after global number *after* and up to *until*."""
    rows = connection.execute(
        "SELECT t.gid, e.erased_by, t.body FROM texts t CROSS JOIN events e ON e.gid = t.gid "
        "WHERE t.gid > ? AND t.gid <= ? ORDER BY t.gid",
        (after, until),
    )
    return [(gid, payload_of(erased_by, body)) for gid, erased_by, body in rows]


def index_payloads(connection: sqlite3.Connection, rows: Sequence[tuple[int, bytes | None]], until: int) -> None:
    """Index (gid, payload) *rows* in order of gid and note that everything up to *until* is indexed."""
    index_texts(connection, [(gid, text_of(payload)) for gid, payload in rows if payload is not None], until)


def index_texts(connection: sqlite3.Connection, texts: Iterable[tuple[int, str]], until: int) -> None:
    """Index (gid, text) in order of gid, as `text_of` gave it; note that everything up to *until* is indexed."""
    for number, found in groupby(texts, lambda row: row[0] // SHARD_EVENTS):
        shard, rows = f"search_{number}", list(found)
        _make_if_missing(connection, shard)
        for statement, values in in_portions(f"INSERT INTO {shard} (rowid, text) VALUES {{rows}}", "(?, ?)", rows):
            connection.execute(statement, values)
        merge(connection, shard, max(MERGED_PAGES, len(rows) // EVENTS_PER_MERGED_PAGE))
    connection.execute("UPDATE search_state SET gid = ?", (until,))


def _make_if_missing(connection: sqlite3.Connection, shard: str) -> None:
    if connection.execute("SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = ?)", (shard,)).fetchone()[0]:
        return
    connection.execute(f"CREATE VIRTUAL TABLE {shard} USING fts5({_OPTIONS})")
    for name, value in _MERGES.items():
        connection.execute(f"INSERT INTO {shard} ({shard}, rank) VALUES (?, ?)", (name, value))


def merge(connection: sqlite3.Connection, shard: str, pages: int) -> bool:
    """Merge about so many pages of a table where pieces have gathered, of a negative number of pages wherever.

    SQLite would do it by itself, up to 12 ms of it at once, in the commit in which it is due. False if there was
    nothing to merge.
    """
    before = connection.total_changes
    connection.execute(f"INSERT INTO {shard} ({shard}, rank) VALUES ('merge', ?)", (pages,))
    return connection.total_changes - before > 1  # as FTS5's documentation says how to tell


def refill_shards(connection: sqlite3.Connection, gids: Iterable[int]) -> None:
    """Drop and fill anew every table that indexes one of *gids*, after their texts were erased."""
    done = indexed_gid(connection)
    for number in sorted({gid // SHARD_EVENTS for gid in gids if gid <= done}):
        connection.execute(f"DROP TABLE IF EXISTS search_{number}")
        unmake(connection, number)
        at, end = number * SHARD_EVENTS - 1, min(done, (number + 1) * SHARD_EVENTS - 1)
        while at < end:
            until = min(end, at + 1024)
            index_payloads(connection, payloads_between(connection, at, until), done)
            at = until


def drop_index(connection: sqlite3.Connection) -> None:
    """Drop every table of the index."""
    for shard in shards(connection):
        connection.execute(f"DROP TABLE {shard}")
    drop_all(connection)
    connection.execute("INSERT OR REPLACE INTO search_state (id, gid) VALUES (1, 0)")


def digest_of_index(connection: sqlite3.Connection) -> bytes:
    """Return a sha256 over every (term, event, position): how the segments lie in the file does not matter."""
    digest = hashlib.sha256(b"%d" % indexed_gid(connection))
    for shard in reversed(shards(connection)):
        digest.update(digest_of_shard(connection, shard))
    return digest.digest()


def digest_of_shard(connection: sqlite3.Connection, shard: str, *, schema: str = "main") -> bytes:
    """Return a sha256 over every (term, event, position) of one table of the index."""
    digest = hashlib.sha256()
    connection.execute(f"CREATE VIRTUAL TABLE temp.vocabulary USING fts5vocab({schema}, {shard}, instance)")
    try:
        for row in connection.execute("SELECT term, doc, offset FROM temp.vocabulary"):
            digest.update(repr(row).encode())
    finally:
        connection.execute("DROP TABLE temp.vocabulary")
    return digest.digest()


class Query:
    """Any text as a query: every word of it must be found.

    A word with letters or digits goes to the index, as a phrase if it has parts (`files_read`). What has neither, such
    as an emoji, is in no index: it is looked for in the texts themselves.
    """

    def __init__(self, text: str) -> None:
        words = dict.fromkeys(text.replace("\0", " ").encode("utf-8", "replace").decode().split())
        self.phrases = tuple(word for word in words if _has_word(word))
        self.literals = tuple(word.casefold() for word in words if not _has_word(word))

    def __bool__(self) -> bool:
        return bool(self.phrases or self.literals)

    @property
    def match(self) -> str:
        """The query in FTS5's language; empty if there is nothing for the index."""
        return " ".join('"' + word.replace('"', '""') + '"' for word in self.phrases)

    def fits(self, payload: bytes) -> bool:
        """Say whether the words that are in no index stand in the text of *payload*."""
        if not self.literals:
            return True
        text = text_of(payload).casefold()
        return all(word in text for word in self.literals)


def _has_word(word: str) -> bool:
    return any(char.isalnum() for char in word)


class Tokenizer:
    """Cuts a query into the words that the index has for it: folded and without accents, as it keeps them."""

    def __init__(self) -> None:
        self._connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self._connection.execute(f"CREATE VIRTUAL TABLE search USING fts5({_OPTIONS})")
        self._connection.execute("CREATE VIRTUAL TABLE words USING fts5vocab(search, row)")

    def words_of(self, query: Query) -> list[str]:
        """Return each word once."""
        self._connection.execute("BEGIN")
        try:
            self._connection.execute("INSERT INTO search (rowid, text) VALUES (1, ?)", (" ".join(query.phrases),))
            return [word for (word,) in self._connection.execute("SELECT term FROM words")]
        finally:
            self._connection.execute("ROLLBACK")


def memory_index(rows: Iterable[tuple[int, bytes | None]]) -> sqlite3.Connection:
    """Return an index in memory, table `search`, over (gid, payload) *rows*: for events not yet indexed on disk."""
    connection = sqlite3.connect(":memory:")
    connection.execute(f"CREATE VIRTUAL TABLE search USING fts5({_OPTIONS})")
    texts = [(gid, text_of(payload)) for gid, payload in rows if payload is not None]
    connection.executemany("INSERT INTO search (rowid, text) VALUES (?, ?)", texts)
    return connection
