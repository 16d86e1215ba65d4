"""Shelf: what the catalog has of one server. It is made again only when that server brings something else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import is_

from omni_mcp.contracts.json import digest
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.catalog.names import is_server_name, scheme_of

Key = tuple[str, str, str]  # (kind, server, name)

URI_KINDS = ("resource", "resource_template")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shelf:
    """The entries of one server. Never changed after it was made.

    `came` is what its sources brought. `entries` are those in force by key, sorted; `older` their superseded versions.
    `schemes` are those of its URIs, `own_schemes` those of URIs that the gateway itself answers.
    """

    server: str
    came: tuple[Entry, ...]
    entries: Mapping[Key, Entry]
    older: Mapping[Key, Mapping[str, Entry]]
    refused: tuple[str, ...]
    digest: str
    schemes: frozenset[str]
    own_schemes: frozenset[str]

    def is_of(self, came: Sequence[Entry]) -> bool:
        """Whether it was made of these very entries."""
        return len(came) == len(self.came) and all(map(is_, came, self.came))


def shelf_of(server: str, came: Sequence[Entry]) -> Shelf:
    """Sort what one server brings. Of two entries that claim one key neither stays, nor any of a server whose name
    does not fit."""
    in_force = [entry for entry in came if entry.state != "superseded"]
    count = Counter(entry.key for entry in in_force)
    fits = is_server_name(server)
    entries = {e.key: e for e in sorted(in_force, key=lambda e: e.key) if fits and count[e.key] == 1}
    older: dict[Key, dict[str, Entry]] = {}
    for entry in came:
        if entry.state == "superseded" and entry.key in entries:
            older.setdefault(entry.key, {})[entry.version] = replace(entry, state="accepted")
    with_uri = [entry for entry in entries.values() if entry.kind in URI_KINDS]
    return Shelf(
        server=server, came=tuple(came), entries=entries, older=older,
        refused=tuple(sorted({label(entry) for entry in in_force if entry.key not in entries})),
        digest=digest([[*key, entry.state, entry.digest] for key, entry in entries.items()]),
        schemes=frozenset(scheme_of(uri_of(entry)) for entry in with_uri),
        own_schemes=frozenset(scheme_of(uri_of(entry)) for entry in with_uri if entry.binding == "inproc_safe"),
    )  # fmt: skip


def label(entry: Entry) -> str:
    """Return how an entry is named to people."""
    return f"{entry.kind} {entry.server}/{entry.name}"


def uri_of(entry: Entry) -> str:
    """Return the server's own URI or URI template."""
    field_name = "uri" if entry.kind == "resource" else "uriTemplate"
    return str(entry.definition.get(field_name, entry.name))
