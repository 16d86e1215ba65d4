"""Brings recorded events of an older contract version into the shape of this one, one version at a time.

Only the shape changes. `v`, `salt` and all digests stay as they were recorded: `v` says how the header was hashed, so
that the chain of an old run still verifies against what was written then.

Version 0 was the shape before the first release: the time was ISO 8601 text (`ts`), the call's id was `call_id`, a
`system_event` named itself in `payload.event` alone, and masked paths were not listed.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from omni_mcp.contracts.errors import BadRequest, LogCorrupt
from omni_mcp.contracts.events import CONTRACT_VERSION
from omni_mcp.contracts.json import JsonObject

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def upgrade(event: JsonObject) -> JsonObject:
    """Return *event* in the shape of `CONTRACT_VERSION`; the input is not changed.

    Raises:
        BadRequest: it says no version, or lacks what its version always had; `data` holds the JSON path.
        LogCorrupt: it was written by a newer version than this one.
    """
    version = event.get("v")
    if not isinstance(version, int) or isinstance(version, bool) or version < 0:
        raise BadRequest("$.v: must be a contract version", data={"path": "$.v"})
    if version > CONTRACT_VERSION:
        raise LogCorrupt(
            "the log was written by a newer version of omni-mcp; use that version, or a newer one",
            detail=f"event of contract version {version}, this is {CONTRACT_VERSION}",
        )
    shaped = dict(event)
    for step in _STEPS[version:]:
        try:
            shaped = step(shaped)
        except (KeyError, TypeError, ValueError) as error:
            name = error.args[0] if isinstance(error, KeyError) else "ts"
            raise BadRequest(
                f"$.{name}: is missing or not what version {version} had", data={"path": f"$.{name}"}
            ) from error
    return shaped


def _from_0(event: JsonObject) -> JsonObject:
    shaped = {key: value for key, value in event.items() if key not in ("ts", "call_id")}
    since = datetime.fromisoformat(event["ts"]) - _EPOCH
    shaped["at_ns"] = (since.days * 86_400 + since.seconds) * 1_000_000_000 + since.microseconds * 1_000
    shaped["call"] = event["call_id"]
    shaped["privacy"] = []
    if event["kind"] == "system_event" and event["payload"] is not None:
        payload = dict(event["payload"])
        shaped["code"] = payload["code"] = payload.pop("event")
        shaped["payload"] = payload
    return shaped


_STEPS: tuple[Callable[[JsonObject], JsonObject], ...] = (_from_0,)  # step n leads from version n to n + 1
