"""What goes with a request to a server: the modern envelope, trace context, progress token, and the mirrored headers.

Everything here is ours or the operator's, apart from the caller's capabilities and trace: a caller's credentials,
vendor metadata and identity stay behind.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field

from omni_mcp.contracts.call import Call, CallerLink, Era
from omni_mcp.contracts.json import JsonObject, JsonValue
from omni_mcp.protocol.eras import (
    LOG_LEVELS,
    META_CAPABILITIES,
    META_CLIENT,
    META_LOG_LEVEL,
    META_VERSION,
    MODERN_VERSIONS,
)
from omni_mcp.protocol.headers import METHOD_HEADER, MIRRORED, NAME_HEADER, PARAM_PREFIX, VERSION_HEADER

TRACE_KEYS = ("traceparent", "tracestate", "baggage")
TRACE_LIMIT = 8192
FORWARDED = ("sampling", "elicitation")
TASKS = "io.modelcontextprotocol/tasks"  # we cannot relay what a server would then answer
LOWEST_LEVEL = "debug"  # of handshake servers and callers: the caller's own link drops what it does not want

# What a handshake server is told once for all callers. Whoever cannot answer is found out when it asks.
DECLARED: JsonObject = {
    "roots": {},
    "sampling": {"tools": {}, "context": {}},
    "elicitation": {"form": {}, "url": {}},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientInfo:
    """Who the gateway says it is."""

    name: str = "omni-mcp"
    version: str = "0"

    def wire(self) -> JsonObject:
        """The `clientInfo` object."""
        return {"name": self.name, "version": self.version}


@dataclass(slots=True, kw_only=True)  # not frozen, which takes longer to make: each call has one
class Caller:
    """What a server may know of the one for whom a request is made."""

    link: CallerLink | None = None  # stays here: its client decides whom a question without an address may reach
    principal: str = ""  # stays here, too
    capabilities: JsonObject = field(default_factory=dict)
    trace: JsonObject = field(default_factory=dict)
    log_level: str | None = None
    wants_progress: bool = False


NOBODY = Caller()


def caller_of(call: Call) -> Caller:
    """Return what may be told of the caller of *call*."""
    meta = call.meta
    level = meta.get(META_LOG_LEVEL) if call.client.era == "modern" else LOWEST_LEVEL
    return Caller(
        link=call.link,
        principal=call.principal.key,
        capabilities=forwarded_capabilities(call.client.capabilities),
        trace=_own_trace(call) if _TRACED.isdisjoint(meta) else _trace_of(meta),
        log_level=level if level in LOG_LEVELS else None,
        wants_progress="progressToken" in meta,
    )


_TRACED = frozenset(TRACE_KEYS)


def _trace_of(meta: JsonObject) -> JsonObject:
    given = ((key, meta.get(key)) for key in TRACE_KEYS)
    return {key: value for key, value in given if isinstance(value, str) and 0 < len(value) <= TRACE_LIMIT}


def _own_trace(call: Call) -> JsonObject:
    """Begin a trace where the client brought none: a run is one, and a call is a span of it (W3C Trace Context)."""
    return {"traceparent": f"00-{call.run.replace('-', '')}-{call.id[19:23]}{call.id[24:]}-01"}


def forwarded_capabilities(declared: JsonObject) -> JsonObject:
    """Return the capabilities of a client in the form that a modern server reads."""
    if not declared:
        return {}
    found: JsonObject = {name: declared[name] for name in FORWARDED if isinstance(declared.get(name), dict)}
    if isinstance(declared.get("roots"), dict):
        found["roots"] = {}
    extensions = declared.get("extensions")
    if isinstance(extensions, dict) and (kept := {k: v for k, v in extensions.items() if k != TASKS}):
        found["extensions"] = kept
    return found


def enveloped(params: JsonObject, *, era: Era, caller: Caller, info: ClientInfo, id: int) -> JsonObject:
    """Return *params* with the `_meta` that the era wants."""
    meta: JsonObject = dict(caller.trace)
    if caller.wants_progress:
        meta["progressToken"] = id
    if era == "modern":
        meta[META_VERSION] = MODERN_VERSIONS[-1]
        meta[META_CLIENT] = info.wire()
        meta[META_CAPABILITIES] = caller.capabilities
        if caller.log_level is not None:
            meta[META_LOG_LEVEL] = caller.log_level
    return {**params, "_meta": meta} if meta else params


def mirrored_headers(
    method: str, params: JsonObject, declared: tuple[tuple[tuple[str, ...], str, str], ...] = ()
) -> dict[str, str]:
    """Return the headers of a modern request that say what its body says.

    Args:
        declared: of the tool's input schema, from `protocol.headers.declared_headers`.
    """
    headers = {VERSION_HEADER: MODERN_VERSIONS[-1], METHOD_HEADER: method}
    key = MIRRORED.get(method)
    if key is not None and isinstance(params.get(key), str):
        headers[NAME_HEADER] = encode_value(params[key])
    for path, token, _ in declared:
        text = _rendered(_at(params.get("arguments"), path))
        if text is not None:
            headers[PARAM_PREFIX + token.lower()] = encode_value(text)
    return headers


def encode_value(value: str) -> str:
    """Write a header value; what a header cannot carry, or would be read as encoded, goes as base64."""
    plain = value.isascii() and value.isprintable() and value == value.strip() and not value.startswith("=?base64?")
    return value if plain else f"=?base64?{base64.b64encode(value.encode('utf-8', 'replace')).decode()}?="


def _at(node: JsonValue, path: tuple[str, ...]) -> JsonValue:
    for key in path:
        if not isinstance(node, dict):
            return None
        node = node.get(key)
    return node


def _rendered(value: JsonValue) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, str | int | float) else None
