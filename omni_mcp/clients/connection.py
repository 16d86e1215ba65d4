"""Puts the gateway into a client's file, and takes it out again, leaving everything else as it stands."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from omni_mcp.clients import json_edit, toml_edit
from omni_mcp.clients.client_file import (
    Snapshot,
    back_up,
    make_directories,
    read_snapshot,
    replace_file,
    retry_on_change,
)
from omni_mcp.clients.json_edit import CannotEdit, RawValue
from omni_mcp.clients.jsonc import NotJson, read_jsonc
from omni_mcp.clients.places import TRAITS, Place
from omni_mcp.clients.reading import is_own_entry
from omni_mcp.clients.records import Change, Records
from omni_mcp.clients.toml_edit import NotToml, read_toml
from omni_mcp.contracts.errors import BadRequest, Conflict, NotFound
from omni_mcp.contracts.json import JsonObject, JsonValue

DEFAULT_ENTRY = "omni"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a command did, or would do, to *file*: its text before and after (None: no file)."""

    file: Path
    before: str | None = field(repr=False)
    after: str | None = field(repr=False)
    backup: Path | None = None
    moved: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    way: Literal["unchanged", "written", "removed", "restored"] = "unchanged"


def entry_of(
    place: Place, executable: Sequence[str], *, agent: str, profile: str | None, environment: dict[str, str]
) -> JsonObject:
    """Return our entry as the client of *place* spells it.

    Args:
        executable: absolute path of the command, and what comes before `stdio`.
        environment: variables without which the command would find another gateway.
    """
    args = [*executable[1:], "stdio", "--agent", agent, *(["--profile", profile] if profile else [])]
    entry: JsonObject = {"type": "stdio"} if TRAITS[place.client].names_type else {}
    entry |= {"command": executable[0], "args": args}
    return entry | ({"env": environment} if environment else {})


class Connector:
    """Edits the one table of a place.

    Args:
        stamp: returns the date that backups get into their names.
    """

    def __init__(self, place: Place, records: Records, *, stamp: Callable[[], str]) -> None:
        self._place = place
        self._records = records
        self._stamp = stamp
        self._key = "#".join((str(place.file), *place.path))

    def connect(self, name: str, entry: JsonObject, *, move: Sequence[str] = (), dry_run: bool = False) -> Outcome:
        """Put *entry* in as *name*, and take the entries *move* out.

        Raises:
            Conflict: *name* is something else, or the client keeps writing the file.
            BadRequest: the file cannot be read or changed.
        """
        return self._run(lambda: self._connect(name, entry, move, dry_run), dry_run)

    def disconnect(self, *, dry_run: bool = False) -> Outcome:
        """Take our entry out and put moved ones back; a file that nobody changed since becomes what it was.

        Raises:
            NotFound: there is no entry of ours.
            Conflict: the client keeps writing the file.
            BadRequest: the file cannot be read or changed.
        """
        return self._run(lambda: self._disconnect(dry_run), dry_run)

    def _run(self, attempt: Callable[[], Outcome], dry_run: bool) -> Outcome:
        outcomes: list[Outcome] = []

        def once() -> None:
            outcomes.append(attempt())

        try:
            if dry_run:
                once()
            else:
                with self._records.locked():
                    retry_on_change(once)
        except (NotJson, NotToml) as error:
            line = f":{error.line}" if error.line else ""
            raise BadRequest(f"{self._place.file}{line}: {error}; mend the file first") from error
        except CannotEdit as error:
            raise BadRequest(f"{self._place.file}: {error}") from error
        return outcomes[-1]

    def _connect(self, name: str, entry: JsonObject, move: Sequence[str], dry_run: bool) -> Outcome:
        snapshot = read_snapshot(self._place.file)
        before = _text_of(snapshot)
        entries = self._entries(before or "")
        if name in entries and not is_own_entry(entries[name]):
            raise Conflict(f"{self._place.file} has a server {name!r} that is not this gateway; choose --name")
        text = self._set(before or "", name, entry)
        moved: dict[str, str] = {}
        left: list[str] = []
        for other in [key for key in move if key in entries and key != name]:
            try:
                raw = self._raw(text, other)
                text = self._remove(text, other)
                moved[other] = raw
            except CannotEdit:
                left.append(other)
        if text == before:
            return Outcome(file=snapshot.file, before=before, after=before, left=tuple(left))
        backup = None if dry_run else self._write_connected(snapshot, entries, name, text, moved)
        return Outcome(
            file=snapshot.file, before=before, after=text, backup=backup, moved=tuple(moved), left=tuple(left),
            way="written",
        )  # fmt: skip

    def _write_connected(
        self, snapshot: Snapshot, entries: JsonObject, name: str, text: str, moved: dict[str, str]
    ) -> Path | None:
        """Write *text* and remember how to undo it. A second connect keeps what the first one remembers."""
        earlier = self._records.find(self._key)
        if earlier is not None and not earlier.moved and not any(map(is_own_entry, entries.values())):
            earlier = None  # somebody took our entry out by hand: a new beginning
        data = text.encode("utf-8")
        if earlier is None:
            made = make_directories(snapshot.file.parent)
            backup = back_up(snapshot, self._stamp())
            change = Change(
                names=(name,), backup=str(backup) if backup else None, original=_digest(snapshot.data or b""),
                written=_digest(data), moved=moved, made=tuple(map(str, made)),
            )  # fmt: skip
        else:
            only_we_wrote = snapshot.data is not None and earlier.written == _digest(snapshot.data)
            backup = Path(earlier.backup) if only_we_wrote and earlier.backup else back_up(snapshot, self._stamp())
            change = earlier.model_copy(
                update={
                    "names": tuple(dict.fromkeys((*earlier.names, name))),
                    "moved": {**earlier.moved, **moved},
                    "written": _digest(data) if only_we_wrote else "",
                }
            )
        replace_file(snapshot, data)
        self._records.put(self._key, change)
        return backup

    def _disconnect(self, dry_run: bool) -> Outcome:
        snapshot = read_snapshot(self._place.file)
        before = _text_of(snapshot)
        change = self._records.find(self._key)
        if change is not None and snapshot.data is not None and change.written == _digest(snapshot.data):
            saved = _backup_of(change)
            if saved is not None or change.backup is None:
                return self._restore(snapshot, change, saved, dry_run)
        entries = self._entries(before or "")
        own = [name for name, entry in entries.items() if is_own_entry(entry)]
        if change is not None and set(own) & set(change.names):
            own = [name for name in own if name in change.names]
        if before is None or not own:
            raise NotFound(f"{self._place.file} has no entry of this gateway")
        text = before
        for name in own:
            text = self._remove(text, name)
        back = {name: raw for name, raw in (change.moved if change else {}).items() if name not in entries}
        for name in reversed(back):
            text = self._put_back(text, name, back[name])
        if not dry_run:
            replace_file(snapshot, text.encode("utf-8"))
            self._records.drop(self._key)
        backup = Path(change.backup) if change and change.backup else None
        return Outcome(
            file=snapshot.file, before=before, after=text, moved=tuple(back), backup=backup, way="removed"
        )  # fmt: skip

    def _restore(self, snapshot: Snapshot, change: Change, saved: bytes | None, dry_run: bool) -> Outcome:
        if not dry_run:
            replace_file(snapshot, saved)
            if change.backup:
                Path(change.backup).unlink(missing_ok=True)
            for made in reversed(change.made):
                _remove_if_empty(Path(made))
            self._records.drop(self._key)
        return Outcome(
            file=snapshot.file, before=_text_of(snapshot), after=None if saved is None else saved.decode("utf-8"),
            moved=tuple(change.moved), way="restored",
        )  # fmt: skip

    def _entries(self, text: str) -> JsonObject:
        value: JsonValue = read_toml(text) if self._place.is_toml else read_jsonc(text).value
        for key in self._place.path:
            value = value.get(key) if isinstance(value, dict) else None
        return value if isinstance(value, dict) else {}

    def _set(self, text: str, name: str, entry: JsonObject) -> str:
        if self._place.is_toml:
            return toml_edit.set_table(text, [*self._place.path, name], entry)
        return json_edit.set_member(text, self._place.path, name, entry)

    def _remove(self, text: str, name: str) -> str:
        if self._place.is_toml:
            return toml_edit.remove_table(text, [*self._place.path, name])
        return json_edit.remove_members(text, self._place.path, [name])

    def _raw(self, text: str, name: str) -> str:
        if self._place.is_toml:
            return toml_edit.raw_tables(text, [*self._place.path, name]) or ""
        raw = json_edit.raw_value(text, self._place.path, name)
        return raw.text if raw else ""

    def _put_back(self, text: str, name: str, raw: str) -> str:
        if self._place.is_toml:
            return toml_edit.append_tables(text, raw)
        return json_edit.set_member(text, self._place.path, name, RawValue(raw))


def _text_of(snapshot: Snapshot) -> str | None:
    if snapshot.data is None:
        return None
    try:
        return snapshot.data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRequest(f"{snapshot.file} is not UTF-8 (byte {error.start}); it is left alone") from error


def _backup_of(change: Change) -> bytes | None:
    """Return the backup, if it is there and says what the file said."""
    if change.backup is None:
        return None
    try:
        data = Path(change.backup).read_bytes()
    except OSError:
        return None
    return data if _digest(data) == change.original else None


def _remove_if_empty(directory: Path) -> None:
    try:
        directory.rmdir()
    except OSError:
        return


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
