"""JSON-RPC 2.0 errors and replies: the codes, their HTTP status, and how a reply is encoded."""

from __future__ import annotations

from dataclasses import dataclass

import orjson

from omni_mcp.contracts.json import JsonObject, JsonValue

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
NOT_DONE = -32000  # a call that is no tool call was refused or failed; `data` holds our code
RESOURCE_NOT_FOUND = -32002  # handshake era only; the modern era uses -32602
HEADER_MISMATCH = -32020
MISSING_CAPABILITY = -32021
UNSUPPORTED_VERSION = -32022
PAGE_REQUIRED = -32042  # 2025-11-25 only: `data.elicitations` names pages that a person has to open first
REQUEST_CANCELLED = -32800

# Status of an HTTP answer that carries the error (MCP 2026-07-28, basic/transports); every other code is a 200.
HTTP_STATUS = {
    PARSE_ERROR: 400,
    INVALID_REQUEST: 400,
    INVALID_PARAMS: 400,
    HEADER_MISMATCH: 400,
    MISSING_CAPABILITY: 400,
    UNSUPPORTED_VERSION: 400,
    METHOD_NOT_FOUND: 404,
}


class RpcError(Exception):
    """A request that gets a JSON-RPC error for its answer.

    `recorded`: the run log already holds why; an error without it is counted as a rejected request.
    """

    def __init__(self, code: int, message: str, data: JsonValue = None, *, recorded: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data
        self.recorded = recorded


@dataclass(slots=True)
class Reply:
    """One encoded JSON-RPC answer; `code` is set if it is an error."""

    body: bytes
    code: int | None = None

    @property
    def http_status(self) -> int:
        """The status of an HTTP answer in the modern era that holds this reply and nothing else."""
        return 200 if self.code is None else HTTP_STATUS.get(self.code, 200)


def result_reply(request_id: int | str, result: JsonObject | bytes) -> Reply:
    """Wrap a result, encoded already or not.

    Raises:
        TypeError: *result* holds something that JSON cannot say.
    """
    body = result if isinstance(result, bytes) else orjson.dumps(result)
    return Reply(b'{"jsonrpc":"2.0","id":%s,"result":%s}' % (orjson.dumps(request_id), body))


def error_reply(request_id: int | str | None, code: int, message: str, data: JsonValue = None) -> Reply:
    """Wrap an error; *request_id* is None where the request's id could not be read."""
    error: JsonObject = {"code": code, "message": message}
    if data is not None:
        error["data"] = data
    return Reply(orjson.dumps({"jsonrpc": "2.0", "id": request_id, "error": error}), code)


def notification(method: str, params: JsonObject) -> bytes:
    """Encode a notification."""
    return orjson.dumps({"jsonrpc": "2.0", "method": method, "params": params})


def request(request_id: int | str, method: str, params: JsonObject) -> bytes:
    """Encode a request of ours."""
    return orjson.dumps({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params})
