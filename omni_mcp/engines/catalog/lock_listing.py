"""KeptListing: what a server offered when the gateway asked it last, in a file, so that commands need no gateway."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import orjson
from pydantic import Field, ValidationError

from omni_mcp.contracts.errors import ConfigError, NotFound, Problem
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.lock import NAME_FIELDS, Digest, PartName
from omni_mcp.contracts.manifest import Closed, ServerName
from omni_mcp.contracts.tool import EntryKind
from omni_mcp.engines.catalog.names import is_server_name
from omni_mcp.paths import make_private_dir, ownership_fault, write_private

DIRECTORY = "listings"
SIZE_LIMIT_BYTES = 160 * 1024 * 1024  # four lists of 32 MiB, and their envelope


class KeptListing(Closed):
    """All that a server offered, verbatim, by kind; `launch` is what launched it then (`launch_parts`).

    `seen_at` is ISO 8601, UTC. `problems` says in words what was left out.
    """

    listing: Literal[1] = 1
    server: ServerName
    seen_at: str
    launch: dict[PartName, Digest] = {}
    items: dict[EntryKind, list[JsonObject]] = {}
    problems: tuple[str, ...] = Field((), max_length=1000)
    asks_roots: bool = False  # it takes its directories from its client

    def definitions(self) -> Iterator[tuple[EntryKind, str, JsonObject]]:
        """Yield (kind, name, definition) of every item that has a name."""
        for kind, field in NAME_FIELDS.items():
            for definition in self.items.get(kind, ()):
                name = definition.get(field)
                if isinstance(name, str) and name:
                    yield kind, name, definition


def listings_dir(data: Path) -> Path:
    """Return where listings are kept below the data directory."""
    return data / DIRECTORY


def keep_listing(directory: Path, listing: KeptListing) -> None:
    """Write or replace the listing of its server; makes the directory.

    Raises:
        OSError: it cannot be written.
    """
    make_private_dir(directory)
    write_private(directory / f"{listing.server}.json", orjson.dumps(listing.model_dump(mode="json")))


def forget_listing(directory: Path, server: str) -> None:
    """Remove the listing of a server that is gone."""
    if is_server_name(server):
        (directory / f"{server}.json").unlink(missing_ok=True)


def get_listing(directory: Path, server: str) -> KeptListing:
    """Return the listing of one server.

    Raises:
        NotFound: the gateway has not seen its lists.
        ConfigError: the file is not what the gateway writes.
    """
    file = directory / f"{server}.json"
    if not is_server_name(server) or not file.exists():
        raise NotFound(f"the gateway has not seen what {server!r} offers; start it with the server enabled, then retry")
    return _read(file)


def load_listings(directory: Path) -> dict[str, KeptListing]:
    """Return all kept listings by server.

    Raises:
        ConfigError: a file is not what the gateway writes.
    """
    files = sorted(file for file in directory.glob("*.json") if is_server_name(file.stem)) if directory.is_dir() else []
    return {file.stem: _read(file) for file in files}


def names_by_server(listings: Mapping[str, KeptListing]) -> dict[str, frozenset[str]]:
    """Return the names of all tools that each server offers."""
    return {
        server: frozenset(name for kind, name, _ in listing.definitions() if kind == "tool")
        for server, listing in listings.items()
    }


def _read(file: Path) -> KeptListing:
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            facts = os.fstat(descriptor)
            fault = ownership_fault(facts, file) or ("" if stat.S_ISREG(facts.st_mode) else "is no regular file")
            data = b"" if fault else stream.read(SIZE_LIMIT_BYTES + 1)
        if fault or len(data) > SIZE_LIMIT_BYTES:
            raise _refused(file, fault or "is too large")
        found = KeptListing.model_validate(orjson.loads(data))
    except OSError as error:
        raise _refused(file, f"cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise _refused(file, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except orjson.JSONDecodeError as error:
        raise _refused(file, f"not JSON: {error.msg}") from error
    if found.server != file.stem:
        raise _refused(file, f"is the listing of {found.server!r}")
    return found


def _refused(file: Path, message: str) -> ConfigError:
    return ConfigError([Problem(file=str(file), line=0, path="", message=message)])
