"""AcceptanceRecord: which acceptances are on record already, so that each is written down once, whoever made it.

Commands change omni.lock, but only the gateway writes the run log. It tells the log of everything in the lock that it
has not told of before, also of what was accepted while it did not run, and of what a person wrote by hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import orjson

from omni_mcp.contracts.errors import ConfigError, Problem
from omni_mcp.contracts.events import DefinitionAccepted, RiskFlagged
from omni_mcp.contracts.json import digest
from omni_mcp.contracts.lock import AcceptedVersion, Lock
from omni_mcp.engines.catalog.acceptance import risk_id
from omni_mcp.paths import write_private

FILE_NAME = "acceptances.json"


class AcceptanceRecord:
    """A file with the ids of all acceptances that are on record. A crash between log and file tells of them again."""

    def __init__(self, file: Path) -> None:
        """Read *file* if it is there.

        Raises:
            ConfigError: it is not what was written.
        """
        self._file = file
        self._known = _read(file)

    def news(self, lock: Lock) -> list[DefinitionAccepted | RiskFlagged]:
        """Return the payloads of everything in *lock* that is not on record yet."""
        return [
            payload
            for server, item, version, accepted in lock.versions()
            if _id(server, item, version, accepted) not in self._known
            for payload in _payloads(server, item, version, accepted)
        ]

    def keep(self, lock: Lock) -> None:
        """Remember that all of *lock* is on record; call it when the events are durable.

        Raises:
            OSError: it cannot be written; the same news come again.
        """
        now = frozenset(_id(*found) for found in lock.versions())
        if now != self._known:
            write_private(self._file, orjson.dumps({"recorded": 1, "ids": sorted(now)}))
            self._known = now


def _payloads(
    server: str, item: str, version: str, accepted: AcceptedVersion
) -> Iterator[DefinitionAccepted | RiskFlagged]:
    yield DefinitionAccepted(
        server=server, item=item, version=version, definition_digest=accepted.digest, launch_digest=accepted.launch,
        labels=accepted.labels.model_dump(), by=accepted.accepted_by, accepted_at=accepted.accepted_at,
    )  # fmt: skip
    for risk, flag in sorted(accepted.risks.items()):
        yield RiskFlagged(
            flag=risk_id(server, item, version, risk), server=server, item=item, version=version, risk=risk,
            definition_digest=accepted.digest, why=flag.why,
        )  # fmt: skip


def _id(server: str, item: str, version: str, accepted: AcceptedVersion) -> str:
    """What makes one acceptance another: closing a risk of it does not."""
    facts = [accepted.digest, accepted.launch, accepted.labels.model_dump(), accepted.accepted_by, accepted.accepted_at]
    return digest([server, item, version, *facts, sorted(accepted.risks)])[7:39]


def _read(file: Path) -> frozenset[str]:
    try:
        found = orjson.loads(file.read_bytes())
        return frozenset(map(str, found["ids"]))
    except FileNotFoundError:
        return frozenset()
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = f"cannot be read ({error}); remove it, and every acceptance is recorded again"
        raise ConfigError([Problem(file=str(file), line=0, path="", message=message)]) from error
