"""What `connect` did to which file, so that `disconnect` can undo exactly that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field, ValidationError

from omni_mcp.clients.client_file import one_at_a_time
from omni_mcp.contracts.errors import BadRequest
from omni_mcp.contracts.manifest import Closed
from omni_mcp.paths import make_private_dir, write_private

FILE_NAME = "connected.json"


class Change(Closed):
    """What stands in a file because of us.

    `original` and `written` are digests of the file before and after; `written` is empty where somebody else changed
    the file between two changes of ours, so that no backup is what it was. `moved` are entries that were taken out, as
    they stood; `made` are directories that were made, outermost first.
    """

    names: tuple[str, ...]
    backup: str | None
    original: str
    written: str
    moved: dict[str, str] = Field({}, repr=False)
    made: tuple[str, ...] = ()


class _Stored(Closed):
    version: int = 1
    changes: dict[str, Change] = {}


class Records:
    """The changes of all files, kept in one file of the gateway's data directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file = directory / FILE_NAME

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other commands of ours out.

        Raises:
            BadRequest: the data directory is not private, or cannot be made.
        """
        try:
            make_private_dir(self._directory)
        except OSError as error:
            raise BadRequest(str(error)) from error
        with one_at_a_time(self._directory / f".{FILE_NAME}.lock"):
            yield

    def find(self, key: str) -> Change | None:
        """Return what was done at *key* (a file and the place in it)."""
        return self._changes().get(key)

    def put(self, key: str, change: Change) -> None:
        """Remember *change*."""
        self._write({**self._changes(), key: change})

    def drop(self, key: str) -> None:
        """Forget what was done at *key*."""
        self._write({name: change for name, change in self._changes().items() if name != key})

    def _changes(self) -> Mapping[str, Change]:
        """A record that is lost or broken costs the exact restoring, not the command."""
        try:
            return _Stored.model_validate_json(self._file.read_bytes()).changes
        except (OSError, ValidationError):
            return {}

    def _write(self, changes: Mapping[str, Change]) -> None:
        stored = _Stored(changes=dict(changes))
        try:
            write_private(self._file, stored.model_dump_json(indent=2).encode() + b"\n")
        except OSError as error:
            raise BadRequest(f"{self._file} cannot be written: {error.strerror}") from error
