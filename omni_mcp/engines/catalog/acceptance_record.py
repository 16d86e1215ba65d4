"""AcceptanceRecord: which acceptances and pins are on record already, so that each is written down once.

Commands change omni.lock, but only the gateway writes the run log. It tells the log of everything in the lock that it
has not told of before, also of what was accepted while it did not run, and of what a person wrote by hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import orjson

from omni_mcp.contracts.errors import ConfigError, Problem
from omni_mcp.contracts.events import DefinitionAccepted, PinFact, PinsChanged, RiskFlagged
from omni_mcp.contracts.json import digest
from omni_mcp.contracts.lock import AcceptedVersion, Lock
from omni_mcp.engines.catalog.acceptance import risk_id
from omni_mcp.paths import write_private

FILE_NAME = "acceptances.json"


class AcceptanceRecord:
    """A file with what is on record: ids of acceptances, and pins. A crash between log and file tells of them again."""

    def __init__(self, file: Path) -> None:
        """Read *file* if it is there.

        Raises:
            ConfigError: it is not what was written.
        """
        self._file = file
        self._known, self._pins = _read(file)
        self._ids: tuple[Lock, list[str]] = Lock(), []  # those of the lock that was asked about last

    def news(self, lock: Lock) -> list[DefinitionAccepted | RiskFlagged | PinsChanged]:
        """Return the payloads of everything in *lock* that is not on record yet."""
        accepted: list[DefinitionAccepted | RiskFlagged | PinsChanged] = [
            payload
            for (server, item, version, accepted), known_as in zip(lock.versions(), self._ids_of(lock), strict=True)
            if known_as not in self._known
            for payload in _payloads(server, item, version, accepted)
        ]
        now = _pins_of(lock)
        if now == self._pins:
            return accepted
        makers = {(project, item): pin.by for project, found in lock.pins.items() for item, pin in found.items()}
        changed = PinsChanged(
            now=tuple(
                PinFact(project=project, item=item, version=version, by=makers[project, item])
                for (project, item), version in sorted(now.items())
                if self._pins.get((project, item)) != version
            ),
            gone=tuple(
                PinFact(project=project, item=item, version=version)
                for (project, item), version in sorted(self._pins.items())
                if (project, item) not in now
            ),
        )
        return [*accepted, changed]

    def keep(self, lock: Lock) -> None:
        """Remember that all of *lock* is on record; call it when the events are durable.

        Raises:
            OSError: it cannot be written; the same news come again after the next start.
        """
        now, pins = frozenset(self._ids_of(lock)), _pins_of(lock)
        if (now, pins) != (self._known, self._pins):
            self._known, self._pins = now, pins
            listed = [[*place, version] for place, version in sorted(pins.items())]
            write_private(self._file, orjson.dumps({"recorded": 1, "ids": sorted(now), "pins": listed}))

    def _ids_of(self, lock: Lock) -> list[str]:
        if self._ids[0] is not lock:
            self._ids = lock, [_id(*found) for found in lock.versions()]
        return self._ids[1]


def _pins_of(lock: Lock) -> dict[tuple[str, str], str]:
    return {(project, item): pin.version for project, found in lock.pins.items() for item, pin in found.items()}


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


def _read(file: Path) -> tuple[frozenset[str], dict[tuple[str, str], str]]:
    try:
        found = orjson.loads(file.read_bytes())
        pins = {(project, item): version for project, item, version in found.get("pins", [])}
        return frozenset(map(str, found["ids"])), pins
    except FileNotFoundError:
        return frozenset(), {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = f"cannot be read ({error}); remove it, and every acceptance is recorded again"
        raise ConfigError([Problem(file=str(file), line=0, path="", message=message)]) from error
