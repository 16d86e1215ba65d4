"""How a call ended, in the protocol's words: the only place where our errors become the protocol's."""

from __future__ import annotations

from omni_mcp.contracts.call import Answer, Era
from omni_mcp.contracts.errors import (
    CATALOGUE,
    BadRequest,
    CapabilityMissing,
    Failed,
    NotAllowed,
    NotFound,
    OmniError,
    Refused,
    TooLarge,
    UpstreamRefused,
)
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.tool import CallKind
from omni_mcp.protocol.eras import META_ERROR
from omni_mcp.protocol.rpc import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    INVALID_REQUEST,
    MISSING_CAPABILITY,
    NOT_DONE,
    RESOURCE_NOT_FOUND,
    RpcError,
)

MODERN_MEMBERS = ("resultType", "ttlMs", "cacheScope")


def error_facts(error: OmniError, call: str | None) -> JsonObject:
    """Return what a client may know of *error*, under stable names. `retryable`: sending it again can help."""
    known = CATALOGUE.get(error.code, CATALOGUE["internal"])
    facts: JsonObject = {"code": error.code, "retryable": known.retry in ("same", "later"), "retry": known.retry}
    if call is not None:
        facts["call"] = call
    if error.data:
        facts["data"] = error.data
    return facts


def failed_tool_call(error: OmniError, call: str | None) -> JsonObject:
    """Return the tool result of a refused or failed call: text that the model reads, facts for the program."""
    recovery = CATALOGUE.get(error.code, CATALOGUE["internal"]).recovery
    if call is not None:
        recovery = recovery.replace(" CALL`", f" {call}`")
    if isinstance(approval := error.data.get("approval"), str):
        recovery = recovery.replace(" ID`", f" {approval}`")
    text = f"{error.message} ({error.code}). {recovery}"
    return {
        "content": [{"type": "text", "text": text}],
        "isError": True,
        "_meta": {META_ERROR: error_facts(error, call)},
    }


def failed_call(
    kind: CallKind, name: str, error: OmniError, *, call: str | None, era: Era, stamp: JsonObject
) -> JsonObject:
    """Return the result of a failed `tools/call`.

    Raises:
        RpcError: for resources and prompts, whose results cannot say that they failed, for errors that are no
            outcome of a call, and for a server's refusals that are meant for the client's program and not for the
            model. What is unknown and what is forbidden get the same answer.
    """
    if isinstance(error, UpstreamRefused):
        raise _in_the_servers_words(error, call)
    if era == "modern" and isinstance(error, CapabilityMissing):
        data = {"requiredCapabilities": error.data.get("required", {}), META_ERROR: error_facts(error, call)}
        raise RpcError(MISSING_CAPABILITY, error.message, data, recorded=True)
    if kind == "tool" and isinstance(error, Refused | Failed):
        return answered(kind, Answer(body=failed_tool_call(error, call), is_error=True), era=era, stamp=stamp)
    facts = {META_ERROR: error_facts(error, call)}
    if kind != "tool" and isinstance(error, NotAllowed | NotFound):
        raise unknown_target(kind, name, era=era, facts=facts)
    raise rpc_error(error, call)


def _in_the_servers_words(error: UpstreamRefused, call: str | None) -> RpcError:
    """The server's code, message and data, beside what we know of the call under our own name."""
    said = error.data.get("upstream_error")
    words: JsonObject = said if isinstance(said, dict) else {}
    given = words.get("data")
    kept = {key: value for key, value in given.items() if key != META_ERROR} if isinstance(given, dict) else {}
    facts = error_facts(error, call)
    return RpcError(int(words.get("code", INVALID_PARAMS)), error.message, {**kept, META_ERROR: facts}, recorded=True)


def unknown_target(kind: CallKind, name: str, *, era: Era, facts: JsonObject | None = None) -> RpcError:
    """Return the one answer for a resource or prompt that is not there, or not there for this caller."""
    if kind == "resource":
        code = INVALID_PARAMS if era == "modern" else RESOURCE_NOT_FOUND
        return RpcError(code, "Resource not found", {"uri": name, **(facts or {})}, recorded=True)
    return RpcError(INVALID_PARAMS, f"Unknown prompt: {name}", facts, recorded=True)


def rpc_error(error: OmniError, call: str | None = None) -> RpcError:
    """Return the JSON-RPC error for *error*."""
    data = {META_ERROR: error_facts(error, call)}
    if error.code == "internal":
        return RpcError(INTERNAL_ERROR, "Internal error", data, recorded=True)
    if error.code == "invalid_arguments":
        return RpcError(INVALID_PARAMS, error.message, data, recorded=True)
    if isinstance(error, BadRequest | TooLarge):
        return RpcError(INVALID_REQUEST, error.message, data, recorded=True)
    return RpcError(NOT_DONE, error.message, data, recorded=True)


def answered(kind: CallKind, answer: Answer, *, era: Era, stamp: JsonObject) -> JsonObject:
    """Return the result of a call that the tool answered: its own body, with only what the era demands or forbids."""
    body = dict(answer.body)
    if answer.is_error:
        body["isError"] = True
    if era == "handshake":
        for member in MODERN_MEMBERS:
            body.pop(member, None)
        return body
    body["resultType"] = "complete"
    if kind == "resource":
        ttl_ms = body.get("ttlMs")
        body["ttlMs"] = ttl_ms if isinstance(ttl_ms, int) and ttl_ms >= 0 else 0
        body["cacheScope"] = "private"
    meta = body.get("_meta")
    body["_meta"] = {**(meta if isinstance(meta, dict) else {}), **stamp}
    return body
