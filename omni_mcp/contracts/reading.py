"""RunEvents from JSON: brought to this version's shape, then held against the closed schema of their kind and code."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from omni_mcp.contracts.errors import BadRequest
from omni_mcp.contracts.events import CODES, PAYLOADS, RunEvent
from omni_mcp.contracts.json import JsonObject, json_path
from omni_mcp.contracts.manifest import Closed
from omni_mcp.contracts.migrate import upgrade

T = TypeVar("T", bound=BaseModel)


def read_event(data: JsonObject) -> tuple[RunEvent, Closed | None]:
    """Return the envelope and the typed payload, None where it is erased.

    Raises:
        BadRequest: an unknown kind or code, an unknown or missing field, a wrong type. The message names every place;
            `data` holds the first JSON path.
        LogCorrupt: a newer version wrote it.
    """
    event = _checked(RunEvent.model_validate, upgrade(data), ())
    if event.payload is None:
        return event, None
    model = PAYLOADS.get(event.kind)
    if event.kind == "system_event":
        model = CODES.get(event.code or "")
        if model is None:
            raise BadRequest(f"$.code: {event.code!r} is not a code of system_event", data={"path": "$.code"})
    elif event.code is not None:
        raise BadRequest("$.code: only a system_event has a code", data={"path": "$.code"})
    assert model is not None  # every other kind has its payload, a test counts them
    return event, _checked(model.model_validate, event.payload, ("payload",))


def _checked(validate: Callable[[JsonObject], T], data: JsonObject, place: tuple[str, ...]) -> T:
    try:
        return validate(data)
    except ValidationError as error:
        faults = [(json_path((*place, *fault["loc"])), fault["msg"]) for fault in error.errors(include_url=False)]
        raise BadRequest(
            "\n".join(f"{path}: {message}" for path, message in faults[:20]), data={"path": faults[0][0]}
        ) from error
