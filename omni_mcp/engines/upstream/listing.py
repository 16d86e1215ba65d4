"""Listing: what one server offers, page by page, under caps; one bad definition never hides the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import orjson

from omni_mcp.contracts.errors import ConfigError, Problem
from omni_mcp.contracts.json import JsonObject, depth_of
from omni_mcp.contracts.manifest import Limits
from omni_mcp.contracts.tool import Entry, EntryKind
from omni_mcp.engines.upstream.faults import Garbled, RemoteError
from omni_mcp.engines.upstream.talk import Talk
from omni_mcp.protocol.headers import fault_of_header_schema
from omni_mcp.protocol.methods import NAME_LIMIT, URI_LIMIT
from omni_mcp.protocol.rpc import METHOD_NOT_FOUND
from omni_mcp.turns import Work, finish, in_turns

PAGES_LIMIT = 200
ITEMS_LIMIT = 5000
LIST_BYTES = 32 * 1024 * 1024
ITEM_BYTES = 256 * 1024
CURSOR_LIMIT = 16 * 1024
DEPTH_LIMIT = 48  # of one definition: what a client gets is nested a little deeper
PAGE_S = 30.0
PROBLEMS_KEPT = 50


SchemaFaults = Callable[[JsonObject], Sequence[str]]


def _none(schema: JsonObject) -> Sequence[str]:
    return ()


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of list: its method, the member with the items, the member that names one, and its longest name."""

    kind: EntryKind
    method: str
    member: str
    key: str
    capability: str
    limit: int


KINDS = (
    Kind("tool", "tools/list", "tools", "name", "tools", NAME_LIMIT),
    Kind("resource", "resources/list", "resources", "uri", "resources", URI_LIMIT),
    Kind("resource_template", "resources/templates/list", "resourceTemplates", "uriTemplate", "resources", URI_LIMIT),
    Kind("prompt", "prompts/list", "prompts", "name", "prompts", NAME_LIMIT),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Everything that one server offers, verbatim; JSON can say it, so it can be kept across restarts.

    `problems` says in words what was left out and why.
    """

    items: dict[str, list[JsonObject]] = field(default_factory=dict)  # by entry kind
    problems: tuple[str, ...] = ()
    asks_roots: bool = False  # it takes its directories from its client, outside of any call

    def entries(self, server: str, *, timeout_s: float) -> list[Entry]:
        """Return an entry for each item: quarantined, with the labels of the worst, until somebody accepts it."""
        return finish(self.entries_after((), server, timeout_s=timeout_s))

    def entries_after(self, before: Iterable[Entry], server: str, *, timeout_s: float) -> Work[list[Entry]]:
        """The same in turns.

        Args:
            before: entries of this server and deadline; one that a new entry would equal to the letter stays.
        """
        limits = Limits(timeout_s=timeout_s)
        known = {entry.key: entry for entry in before}
        found: list[Entry] = []
        for kind in KINDS:
            for item in self.items.get(kind.kind, []):
                yield
                entry = known.get((kind.kind, server, item[kind.key]))
                if entry is None or not _same(entry.definition, item):
                    entry = Entry(
                        kind=kind.kind, server=server, name=item[kind.key], definition=item, binding="mcp_remote",
                        limits=limits, state="quarantined",
                    )  # fmt: skip
                found.append(entry)
        return found


async def fetch(talk: Talk, schema_faults: SchemaFaults = _none) -> Listing:
    """Ask a server for all its lists.

    Args:
        schema_faults: why a schema can be used by nobody; a tool with such a one is left out: no call could be checked.

    Raises:
        RemoteError, Garbled, WireFault, TimeoutError: it did not answer one of them as it should.
    """
    items: dict[str, list[JsonObject]] = {}
    problems: list[str] = []
    for kind in KINDS:
        if talk.peer.has(kind.capability):
            items[kind.kind] = await _fetch_kind(talk, kind, problems, schema_faults)
    return Listing(items=items, problems=tuple(problems[:PROBLEMS_KEPT]), asks_roots=talk.roots_asked.is_set())


async def _fetch_kind(
    talk: Talk, kind: Kind, problems: list[str], schema_faults: SchemaFaults
) -> list[JsonObject]:  # fmt: skip
    raw: list[object] = []
    cursor: str | None = None
    seen: set[str] = set()
    size = 0
    for _ in range(PAGES_LIMIT):
        try:
            page = await talk.request(kind.method, {"cursor": cursor} if cursor is not None else {}, timeout_s=PAGE_S)
        except RemoteError as error:
            if error.code == METHOD_NOT_FOUND and kind.kind != "tool" and not raw:
                return []  # declared resources without templates, say
            raise
        part = page.get(kind.member)
        if not isinstance(part, list):
            raise Garbled(f"{kind.method} without {kind.member}")
        raw += part
        size += len(orjson.dumps(part))
        cursor = page.get("nextCursor")
        if cursor is None:
            break
        if not isinstance(cursor, str) or cursor in seen or len(cursor) > CURSOR_LIMIT:
            problems.append(f"{kind.method}: the cursor repeats or is none; the list ends there")
            break
        seen.add(cursor)
        if len(raw) >= ITEMS_LIMIT or size >= LIST_BYTES:
            problems.append(f"{kind.method}: more than {ITEMS_LIMIT} items or {LIST_BYTES} bytes; the rest is left out")
            break
    else:
        problems.append(f"{kind.method}: more than {PAGES_LIMIT} pages; the rest is left out")
    return await in_turns(_fit(raw[:ITEMS_LIMIT], kind, talk, problems, schema_faults))


def _fit(
    raw: list[object], kind: Kind, talk: Talk, problems: list[str], schema_faults: SchemaFaults
) -> Work[list[JsonObject]]:
    """Return the items that can be entries; of two with one name neither, since nobody can tell which is meant."""
    fit: list[JsonObject] = []
    names = Counter(item[kind.key] for item in raw if isinstance(item, dict) and isinstance(item.get(kind.key), str))
    for number, item in enumerate(raw):
        yield
        fault = _fault(item, kind, modern=talk.peer.era == "modern") or _unusable(item, kind, schema_faults)
        if fault is None and isinstance(item, dict):
            if names[item[kind.key]] == 1:
                fit.append(item)
                continue
            fault = "its name is used twice"
        name = item.get(kind.key) if isinstance(item, dict) else None
        problems.append(f"{kind.kind} {str(name)[:64]!r} (number {number + 1}): {fault}")
    return fit


def _fault(item: object, kind: Kind, *, modern: bool) -> str | None:
    """Say why an item cannot be an entry."""
    if not isinstance(item, dict):
        return "is no object"
    name = item.get(kind.key)
    if not isinstance(name, str) or not 0 < len(name) <= kind.limit or not name.isprintable():
        return f"{kind.key} must be a printable string of at most {kind.limit} characters"
    if depth_of(item, limit=DEPTH_LIMIT) > DEPTH_LIMIT:
        return f"is nested deeper than {DEPTH_LIMIT} levels"
    if len(orjson.dumps(item)) > ITEM_BYTES:
        return f"has more than {ITEM_BYTES} bytes"
    if kind.kind != "tool":
        return None
    for member in ("inputSchema", "outputSchema"):
        schema = item.get(member)
        if schema is None and member == "outputSchema":
            continue
        if not isinstance(schema, dict):
            return f"{member} must be an object"
    if item["inputSchema"].get("type") != "object":
        return 'inputSchema must have the type "object"'
    return fault_of_header_schema(item["inputSchema"]) if modern else None


def _unusable(item: object, kind: Kind, schema_faults: SchemaFaults) -> str | None:
    """Say why nobody could call a tool, though its definition has the right shape."""
    if kind.kind != "tool" or not isinstance(item, dict):
        return None
    execution = item.get("execution")
    if isinstance(execution, dict) and execution.get("taskSupport") == "required":
        return "can be called as a task only, and tasks are not passed on"
    for member in ("inputSchema", "outputSchema"):
        if (schema := item.get(member)) is not None and (faults := schema_faults(schema)):
            return f"{member} is refused: {faults[0]}"
    return None


def _same(one: object, other: object) -> bool:
    """Whether both are the same to the letter: to Python, `1`, `1.0` and `true` are equal."""
    return one is other or orjson.dumps(one) == orjson.dumps(other)


class Listings:
    """The last good listing of every server in use, as a `Source`.

    Args:
        accept: turns a server's definition into what is in force: labels and state. By default all stay quarantined.
    """

    def __init__(self, *, accept: Callable[[Entry], Entry] = lambda entry: entry) -> None:
        self._accept = accept
        self._timeout_s: dict[str, float] = {}
        self._known: dict[str, Listing] = {}
        self._entries: dict[str, tuple[Listing, float, list[Entry]]] = {}  # what they were made of, and they

    def use(self, timeout_s: dict[str, float], known: Mapping[str, Listing]) -> None:
        """Say which servers are in use, and the deadline of a call of each; *known* is for those without a listing."""
        self._timeout_s = timeout_s
        everything = {**known, **self._known}
        self._known = {server: listing for server, listing in everything.items() if server in timeout_s}
        self._entries = {server: made for server, made in self._entries.items() if server in timeout_s}

    def forget(self, server: str) -> None:
        """Drop what is known of a server."""
        self._known.pop(server, None)

    def find(self, server: str) -> Listing | None:
        """Return what is known of a server."""
        return self._known.get(server)

    def put(self, server: str, listing: Listing) -> bool:
        """Replace what is known; True if it differs."""
        before = self._known.get(server)
        self._known[server] = listing
        return before is None or before.asks_roots != listing.asks_roots or not _same(before.items, listing.items)

    def load(self) -> list[Entry]:
        """As the port `Source`."""
        return finish(self.steps())

    def steps(self) -> Work[list[Entry]]:
        """As `load`, in turns; of one moment, whatever comes in the meantime."""
        found: list[Entry] = []
        problems: list[Problem] = []
        for server, listing, timeout_s in [(name, one, self._timeout_s[name]) for name, one in self._known.items()]:
            try:
                entries = yield from self._entries_of(server, listing, timeout_s)
            except (TypeError, KeyError, AttributeError) as error:  # a kept listing that somebody changed
                problems.append(Problem(file=f"listing of {server}", line=0, path="$", message=str(error)))
                continue
            found += [self._accept(entry) for entry in entries]
        if problems:
            raise ConfigError(problems)
        return found

    def _entries_of(self, server: str, listing: Listing, timeout_s: float) -> Work[list[Entry]]:
        """Return the entries of a server, the very same ones for what did not change since they were made."""
        made = self._entries.get(server)
        if made is None or made[0] is not listing or made[1] != timeout_s:
            before = made[2] if made is not None and made[1] == timeout_s else ()
            entries = yield from listing.entries_after(before, server, timeout_s=timeout_s)
            made = self._entries[server] = listing, timeout_s, entries
        return made[2]
