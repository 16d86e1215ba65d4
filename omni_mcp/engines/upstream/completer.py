"""UpstreamCompleter asks a server to complete an argument of its own prompts and resource templates."""

from __future__ import annotations

from collections.abc import Callable

from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.errors import BadRequest, UpstreamProtocol, UpstreamUnavailable
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.upstream.connection import Connection
from omni_mcp.engines.upstream.faults import Garbled, RemoteError
from omni_mcp.engines.upstream.wire.seam import WireFault

TIMEOUT_S = 10.0
VALUES_LIMIT = 100  # MCP 2025-11-25, server/utilities/completion
VALUE_CHARACTERS = 4096


class UpstreamCompleter:
    """Port `Completer` for one server."""

    def __init__(self, connection_of: Callable[[str, str], Connection]) -> None:
        self._connection_of = connection_of

    async def complete(
        self, principal: Principal, entry: Entry, argument: JsonObject, context: JsonObject
    ) -> JsonObject:
        """As the port.

        Raises:
            UpstreamUnavailable, UpstreamProtocol: the server cannot be asked, or broke the protocol.
            BadRequest: it refused.
        """
        talk = await self._connection_of(entry.server, principal.key).talk()
        if talk.peer.capabilities.get("completions") is None and talk.peer.version >= "2025-03-26":
            return {"values": [], "hasMore": False}
        params: JsonObject = {"ref": _ref(entry), "argument": {"name": argument["name"], "value": argument["value"]}}
        if context and talk.peer.version >= "2025-06-18":
            params["context"] = context
        try:
            result = await talk.request("completion/complete", params, timeout_s=TIMEOUT_S)
        except RemoteError as error:
            raise BadRequest("the server behind it refused", detail=f"{entry.server}: {error}") from error
        except Garbled as error:
            raise UpstreamProtocol("the server behind it answered with junk", detail=error.reason) from error
        except (WireFault, TimeoutError) as error:
            raise UpstreamUnavailable("the server behind it cannot be reached", detail=str(error)) from error
        return _checked(result.get("completion"), entry.server)


def _ref(entry: Entry) -> JsonObject:
    if entry.kind == "prompt":
        return {"type": "ref/prompt", "name": entry.name}
    return {"type": "ref/resource", "uri": entry.definition.get("uriTemplate") or entry.definition.get("uri")}


def _checked(completion: object, server: str) -> JsonObject:
    values = completion.get("values") if isinstance(completion, dict) else None
    if not isinstance(completion, dict) or not isinstance(values, list):
        raise UpstreamProtocol("the server behind it answered with no completion", detail=f"{server}: no values")
    fit = [value for value in values if isinstance(value, str) and len(value) <= VALUE_CHARACTERS]
    found: JsonObject = {"values": fit[:VALUES_LIMIT], "hasMore": completion.get("hasMore") is True}
    if type(completion.get("total")) is int:
        found["total"] = completion["total"]
    if len(fit) > VALUES_LIMIT:
        found["hasMore"] = True
    return found
