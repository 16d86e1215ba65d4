"""A golden file: what a run did, without what no second run can repeat, signed; later runs are held against it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from omni_mcp.contracts.errors import LogCorrupt
from omni_mcp.contracts.events import RunEvent
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.manifest import Closed
from omni_mcp.engines.runlog.difference import Difference, comparable, first_difference
from omni_mcp.engines.runlog.signing import Signature, SigningKey, signed_document
from omni_mcp.engines.runlog.trust import distrust, read_document

SIGNED_AS = "golden run"
LIMIT_BYTES = 256 * 1024 * 1024


class Golden(Closed):
    """A run as `comparable` gives it. `run` is where it came from, and no part of the comparison."""

    format: Literal["omni-mcp golden run"] = "omni-mcp golden run"
    version: Literal[1] = 1
    run: str
    events: list[JsonObject] = Field(min_length=1)


def golden_of(run: str, events: Iterable[RunEvent]) -> Golden:
    """Return the golden form of a run.

    Raises:
        LogCorrupt: its texts, or some of them, were erased: there is nothing to hold another run against.
    """
    found = comparable(events)
    gone = next((event for event in found if event["payload"] is None), None)
    if gone is not None:
        raise LogCorrupt("an erased run is no golden one", detail=f"run {run} event {gone['seq']} was erased")
    return Golden(run=run, events=found)


def golden_file(golden: Golden, key: SigningKey) -> bytes:
    """Return what is written of it: one signed line."""
    return signed_document(key, SIGNED_AS, golden.model_dump())


def read_golden(file: Path, *, wanted: str | None, own: str | None) -> tuple[Golden, Signature]:
    """Return the golden run in *file*, and by whom it is signed.

    Args:
        wanted, own: as for `distrust`.

    Raises:
        LogCorrupt: it is none, was edited, or is signed by another.
        OSError: it cannot be read.
    """
    with file.open("rb") as source:
        document, signature = read_document(source.read(LIMIT_BYTES), SIGNED_AS, name=str(file))
    try:
        golden = Golden.model_validate(document)
    except ValidationError as error:
        raise LogCorrupt("the file is not a golden run that can be read", detail=str(file)) from error
    if reason := distrust(signature, wanted=wanted, own=own):
        raise LogCorrupt("the golden file counts for nothing", detail=f"{file}: {reason}")
    return golden, signature


def difference_to(golden: Golden, events: Iterable[RunEvent]) -> Difference | None:
    """Return where a run first differs from *golden* (left), or None."""
    return first_difference(golden.events, comparable(events))
