"""What is sealed beside the events of a call, so that it can be run again and its answer given again.

Nothing is where nobody witnesses: the project keeps no bodies, or the call reads the log itself.
"""

from __future__ import annotations

from omni_mcp.chain.witness import Witness
from omni_mcp.contracts.call import Call
from omni_mcp.contracts.errors import OmniError
from omni_mcp.contracts.json import JsonObject, JsonValue, verbatim


def asked_body(call: Call, witness: Witness | None) -> bytes | None:
    """Return the body of a `tool_call`: all that the call was made of and that its event does not show."""
    if witness is None:
        return None
    who = call.principal
    told = {
        "arguments": call.arguments, "meta": call.meta, "capabilities": call.client.capabilities,
        "principal": {
            "kind": who.kind, "id": who.id, "project": who.project, "owner": who.owner, "roles": who.roles
        },
    }  # fmt: skip
    return _encoded(told)


def answered_body(body: JsonObject, witness: Witness | None) -> bytes | None:
    """Return the body of a `tool_result`: the result that its client was given."""
    return _body("result", body, witness)


def failed_body(error: OmniError, witness: Witness | None) -> bytes | None:
    """Return the body of a `tool_error`: what its client was told."""
    return _body("error", {"code": error.code, "message": error.message, "data": error.data}, witness)


def round_asked_body(requests: JsonObject, witness: Witness | None) -> bytes | None:
    """Return the body of a `round_asked`: what the caller was asked for."""
    return _body("requests", requests, witness)


def round_answered_body(responses: JsonObject, witness: Witness | None) -> bytes | None:
    """Return the body of a `round_answered`: what the caller came back with."""
    return _body("responses", responses, witness)


def _body(name: str, value: JsonValue, witness: Witness | None) -> bytes | None:
    encoded = _encoded(value) if witness is not None else None
    if encoded is None or witness is None:
        return None
    return b'{"%s":%s%s}' % (name.encode(), encoded, witness.notes())


def _encoded(value: JsonValue) -> bytes | None:
    """None for what no JSON can say: its event holds what can be said of it, and no body stands beside it."""
    try:
        return verbatim(value)
    except (TypeError, ValueError, RecursionError):
        return None
