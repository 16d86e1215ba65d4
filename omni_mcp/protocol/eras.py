"""The two eras of the protocol: which versions they hold, and what a request of each brings with it."""

from __future__ import annotations

from omni_mcp.contracts.call import Era
from omni_mcp.contracts.json import JsonObject
from omni_mcp.protocol.rpc import INVALID_PARAMS, UNSUPPORTED_VERSION, RpcError

HANDSHAKE_VERSIONS = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
MODERN_VERSIONS = ("2026-07-28",)
KNOWN_VERSIONS = (*HANDSHAKE_VERSIONS, *MODERN_VERSIONS)
LATEST_HANDSHAKE = HANDSHAKE_VERSIONS[-1]
ASSUMED_VERSION = "2025-03-26"  # of an HTTP request without a version header (MCP 2025-11-25, basic/transports)
PAGES_SINCE = "2025-11-25"  # elicitation by a page (mode `url`) and the error -32042
BATCH_VERSION = "2025-03-26"  # the only version that has JSON-RPC batches

META_VERSION = "io.modelcontextprotocol/protocolVersion"
META_CAPABILITIES = "io.modelcontextprotocol/clientCapabilities"
META_CLIENT = "io.modelcontextprotocol/clientInfo"
META_LOG_LEVEL = "io.modelcontextprotocol/logLevel"
META_SUBSCRIPTION = "io.modelcontextprotocol/subscriptionId"
META_SERVER = "io.modelcontextprotocol/serverInfo"
META_ERROR = "io.omni-mcp/error"

LOG_LEVELS = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")

# What a server may ask a client, the capability that the client must have declared, and the version that brought it.
ASKS = {
    "roots/list": ("roots", "2024-11-05"),
    "sampling/createMessage": ("sampling", "2024-11-05"),
    "elicitation/create": ("elicitation", "2025-06-18"),
}


def negotiate(version: object) -> str:
    """Return the version in which an `initialize` is answered: the one asked for, or our newest of that era."""
    return version if isinstance(version, str) and version in HANDSHAKE_VERSIONS else LATEST_HANDSHAKE


def at_least(version: str, wanted: str) -> bool:
    """Whether the known *version* is *wanted* or newer; False for an unknown one."""
    return version in KNOWN_VERSIONS and KNOWN_VERSIONS.index(version) >= KNOWN_VERSIONS.index(wanted)


def era_of(method: str, params: JsonObject) -> Era:
    """Tell the era of a request that comes without headers: both may share one connection."""
    meta = params.get("_meta")
    if method in ("server/discover", "subscriptions/listen") or (isinstance(meta, dict) and META_VERSION in meta):
        return "modern"
    return "handshake"


def meta_of(params: JsonObject) -> JsonObject:
    """Return `params._meta`, or an empty object.

    Raises:
        RpcError: it is there but is no object.
    """
    meta = params.get("_meta", {})
    if not isinstance(meta, dict):
        raise RpcError(INVALID_PARAMS, "params._meta must be an object")
    return meta


def check_envelope(params: JsonObject) -> JsonObject:
    """Return the `_meta` of a modern request, whose version is not judged yet.

    Raises:
        RpcError: -32602, a required member is missing or of the wrong type.
    """
    meta = params.get("_meta")
    if not isinstance(meta, dict):
        raise RpcError(INVALID_PARAMS, f"params._meta must be an object with {META_VERSION} and {META_CAPABILITIES}")
    if META_VERSION not in meta or META_CAPABILITIES not in meta:
        missing = [key for key in (META_VERSION, META_CAPABILITIES) if key not in meta]
        raise RpcError(INVALID_PARAMS, f"params._meta lacks {' and '.join(missing)}")
    if not isinstance(meta[META_VERSION], str):
        raise RpcError(INVALID_PARAMS, f"params._meta[{META_VERSION!r}] must be a string")
    if not isinstance(meta[META_CAPABILITIES], dict):
        raise RpcError(INVALID_PARAMS, f"params._meta[{META_CAPABILITIES!r}] must be an object")
    level = meta.get(META_LOG_LEVEL)
    if level is not None and level not in LOG_LEVELS:
        raise RpcError(INVALID_PARAMS, f"params._meta[{META_LOG_LEVEL!r}] must be one of {', '.join(LOG_LEVELS)}")
    return meta


def check_version(version: str) -> None:
    """Refuse a version that no modern request is served in.

    Raises:
        RpcError: -32022 with what is served.
    """
    if version not in MODERN_VERSIONS:
        data = {"supported": list(MODERN_VERSIONS), "requested": version[:64]}
        raise RpcError(UNSUPPORTED_VERSION, "Unsupported protocol version", data)


def short_text(value: object, limit: int = 128) -> str:
    """A client's own words about itself, cut to what the record keeps."""
    return value[:limit] if isinstance(value, str) else ""


def may_ask(method: str, capabilities: JsonObject) -> bool:
    """Whether a client with *capabilities* declared that it answers *method*."""
    known = ASKS.get(method)
    return known is not None and isinstance(capabilities.get(known[0]), dict)
