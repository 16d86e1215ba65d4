"""Versions: which of several versions of an entry a project sees, and what `tool@1.2.0` names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.catalog.shelf import Key, Shelf

Pins = Mapping[str, Mapping[Key, str]]  # project -> key of an entry -> version
LATEST = "latest"

_SEMANTIC = re.compile(r"(\d+)\.(\d+)\.(\d+)(?:-([0-9A-Za-z.-]+))?")


@dataclass(frozen=True, slots=True)
class Versions:
    """The older versions beside what is in force, and what pins make of it. Never changed after it was made."""

    older: Mapping[Key, Mapping[str, Entry]] = field(default_factory=dict)
    pinned: Mapping[str, Mapping[Key, Entry]] = field(default_factory=dict)

    def seen_by(self, project: str, entry: Entry) -> Entry:
        """Return what *entry*, which is in force, is for *project*.

        A pin makes nothing callable that is not accepted: what is quarantined stays so for everybody.
        """
        if not self.pinned or entry.state == "quarantined":
            return entry
        return self.pinned.get(project, {}).get(entry.key, entry)

    def named(self, project: str, entry: Entry, wanted: str) -> Entry | None:
        """Return the version, tag or `latest` of *entry* that a call names. A pin leaves the pinned version only."""
        seen = self.seen_by(project, entry)
        if entry.state == "quarantined" or wanted in (LATEST, seen.version):
            return seen
        if entry.key in self.pinned.get(project, {}):
            return None
        older = {version: one for version, one in self.older.get(entry.key, {}).items() if _is_its_own(one)}
        if wanted in older:
            return older[wanted]
        return next((one for one in [entry, *sorted_newest(older.values())] if wanted in tags_of(one)), None)

    def of(self, entry: Entry) -> list[Entry]:
        """Return *entry* and its older versions."""
        return [entry, *self.older.get(entry.key, {}).values()]

    def facts(self) -> list[object]:
        """Return all that decides what is named, in a fixed order; nothing where there are no pins and no versions."""
        older = sorted(
            [*key, version, entry.digest] for key, found in self.older.items() for version, entry in found.items()
        )
        pinned = sorted(
            [project, *key, entry.state, entry.digest]
            for project, found in self.pinned.items()
            for key, entry in found.items()
        )
        return [older, pinned] if older or pinned else []


def versions_of(shelves: Mapping[str, Shelf], pins: Pins) -> Versions:
    """Return the versions beside what is in force; a pin on what is not in the catalog at all says nothing."""
    older = {key: versions for shelf in shelves.values() for key, versions in shelf.older.items()}
    pinned: dict[str, dict[Key, Entry]] = {}
    for project, wanted in pins.items():
        for key, version in wanted.items():
            shelf = shelves.get(key[1])
            if shelf is not None and (entry := shelf.entries.get(key)) is not None:
                pinned.setdefault(project, {})[key] = _pinned(entry, older.get(key, {}), version)
    return Versions(older, pinned)


def _pinned(entry: Entry, older: Mapping[str, Entry], version: str) -> Entry:
    if entry.version == version:
        return entry
    return older.get(version) or replace(entry, state="pin_missing", version=version, digest="")


def newest_of(entries: Iterable[Entry]) -> Entry:
    """Return what `latest` means: the newest that is neither deprecated nor a pre-release, else the newest."""
    found = sorted_newest(entries)
    return next((one for one in found if not _is_deprecated(one) and "-" not in one.version), found[0])


def sorted_newest(entries: Iterable[Entry]) -> list[Entry]:
    """Return *entries*, the newest first."""
    return sorted(entries, key=lambda entry: precedence(entry.version), reverse=True)


def precedence(version: str) -> tuple[object, ...]:
    """Return what versions are ordered by (Semantic Versioning 2.0.0, section 11); other words come first of all."""
    found = _SEMANTIC.fullmatch(version)
    if found is None:
        return (-1, 0, 0, False, (), version)
    parts = tuple(
        (0, int(part), "") if part.isdigit() else (1, 0, part) for part in (found[4] or "").split(".") if part
    )
    return int(found[1]), int(found[2]), int(found[3]), found[4] is None, parts, ""


def tags_of(entry: Entry) -> tuple[str, ...]:
    """Return the tags that its manifest gives it."""
    return entry.manifest.tags if entry.manifest is not None else ()


def _is_its_own(entry: Entry) -> bool:
    """Whether the version is the manifest's. One that the lock gave is there because some project is pinned to it."""
    return entry.manifest is not None and entry.manifest.version == entry.version


def _is_deprecated(entry: Entry) -> bool:
    return entry.manifest is not None and bool(entry.manifest.deprecated)
