"""Bytes become one JSON-RPC frame, or a refusal that says why; what two parsers could read differently is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import orjson

from omni_mcp.contracts.json import JsonObject, JsonValue
from omni_mcp.protocol.rpc import INVALID_PARAMS, INVALID_REQUEST, PARSE_ERROR

FRAME_LIMIT_BYTES = 4 * 1024 * 1024  # the largest message a client may send; what the other implementations take too
DEPTH_LIMIT = 64
VALUES_LIMIT = 100_000  # of one message, containers included: 4 MiB of small values would be a million objects
LARGE_BYTES = 256 * 1024  # from here on parsing is work for a thread
METHOD_LIMIT = 128
ID_LIMIT = 256
ECHO_LIMIT = 1024  # of an id that is sent back, also where it is too long to be taken
INT_MIN, INT_MAX = -(2**63), 2**64 - 1  # what orjson keeps exactly; a wider integer would silently become a float

RequestId: TypeAlias = int | str


class BadFrame(Exception):
    """Bytes that are no frame.

    Args:
        code: the JSON-RPC error code.
        reason: one word of a closed list, for counting and for the record.
        message: for the client.
        id: the id of the request, where one could be read.
    """

    def __init__(self, code: int, reason: str, message: str, *, id: RequestId | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.id = id


@dataclass(slots=True)  # frames are not frozen, which takes three times as long to make
class Request:
    """Something that is owed an answer."""

    id: RequestId
    method: str
    params: JsonObject = field(default_factory=dict)


@dataclass(slots=True)
class Notification:
    """Something that is not answered."""

    method: str
    params: JsonObject = field(default_factory=dict)


@dataclass(slots=True)
class Response:
    """The peer's answer to a request of ours; exactly one of `result` and `error` is set."""

    id: RequestId
    result: JsonObject | None = None
    error: JsonObject | None = None


Frame: TypeAlias = Request | Notification | Response


def parse(data: bytes, *, limit_bytes: int = FRAME_LIMIT_BYTES) -> JsonValue:
    """Parse one message strictly.

    orjson refuses bad UTF-8, a byte order mark, lone surrogates, NaN and infinities. What it lets pass is checked
    here: duplicate keys (it keeps the last), integers that it would round, depth, and the number of values.

    Raises:
        BadFrame: with code -32700.
    """
    if len(data) > limit_bytes:
        raise BadFrame(PARSE_ERROR, "too_large", f"the message is over {limit_bytes} bytes")
    if len(data) > LARGE_BYTES and _least_values(data) > VALUES_LIMIT:
        raise _too_many_values()
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise BadFrame(PARSE_ERROR, "not_json", "the message is not valid JSON in UTF-8") from None
    if _reads_back(value, data):
        return value
    colons, wide = _survey(value)
    if colons != data.count(b":") + _escaped_colons(data):
        raise BadFrame(PARSE_ERROR, "duplicate_key", "an object in the message has the same key twice")
    if wide:
        _check_integers(data)
    return value


def _reads_back(value: JsonValue, data: bytes) -> bool:
    """Whether *value* is written exactly as *data*, and can be neither too deep nor too much.

    Then no member was dropped and no number rounded, and nothing has to be walked through: so it is with nearly all
    that programs send.
    """
    if len(data) > VALUES_LIMIT or data.count(b"{") + data.count(b"[") > DEPTH_LIMIT:
        return False
    return orjson.dumps(value) == data


def _least_values(data: bytes) -> int:
    """Return how many values the text must hold, if it is JSON, without parsing it: a parser would stall everybody.

    A string is a value or the key of one, every container is a value, and a comma outside of strings parts two.
    """
    if data.count(b",") + data.count(b"[") + data.count(b"{") <= VALUES_LIMIT:
        return 0
    plain = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    strings = plain.count(b'"') // 2
    if strings > 2 * VALUES_LIMIT:
        return strings // 2
    outside = b"".join(plain.split(b'"')[::2])
    return max(strings // 2, outside.count(b",") + 1, outside.count(b"[") + outside.count(b"{"))


def _escaped_colons(data: bytes) -> int:
    """Return how many colons valid JSON text writes as an escape. An escaped backslash before `u003a` is none."""
    if b"\\u003" not in data:
        return 0
    plain = data.replace(b"\\\\", b"")  # from the left, as a parser pairs them
    return plain.count(b"\\u003a") + plain.count(b"\\u003A")


def _survey(root: JsonValue) -> tuple[int, bool]:
    """Walk the parsed value once: (colons that its text must hold, whether a number may have been rounded).

    Every member costs one colon and so does every colon inside a string, escaped or not. If the text holds more,
    a member with a repeated key was dropped; it cannot hold fewer.

    Raises:
        BadFrame: deeper than DEPTH_LIMIT, or more than VALUES_LIMIT values.
    """
    colons, wide, depth, values = 0, False, 0, 1
    layer: list[Any] = [root]
    while layer:
        inner: list[Any] = []
        nested = False
        for item in layer:
            kind = type(item)
            if kind is dict:
                nested = True
                colons += len(item)
                for key in item:
                    if ":" in key:
                        colons += key.count(":")
                inner.extend(item.values())
            elif kind is list:
                nested = True
                inner.extend(item)
            elif kind is str:
                colons += item.count(":")
            elif kind is float and not -1e18 < item < 1e18:
                wide = True
            if values + len(inner) > VALUES_LIMIT:
                raise _too_many_values()
        values += len(inner)
        depth += nested
        if depth > DEPTH_LIMIT:
            raise BadFrame(PARSE_ERROR, "too_deep", f"the message is nested deeper than {DEPTH_LIMIT} levels")
        layer = inner
    return colons, wide


def _too_many_values() -> BadFrame:
    return BadFrame(PARSE_ERROR, "too_many_values", f"the message holds more than {VALUES_LIMIT} values")


def _check_integers(data: bytes) -> None:
    """The slow pass, only where the survey found a number that may have been an integer. Size and depth are known."""
    json.loads(data, parse_int=_exact_int)


def _exact_int(text: str) -> int:
    if len(text) > 20 or not INT_MIN <= int(text) <= INT_MAX:
        raise BadFrame(PARSE_ERROR, "number_range", "an integer in the message does not fit into 64 bits")
    return 0


def frame_of(value: JsonValue) -> Frame:
    """Check the JSON-RPC 2.0 envelope. Unknown members are dropped.

    Raises:
        BadFrame: with code -32600, or -32602 where `params` is no object.
    """
    if not isinstance(value, dict):
        raise BadFrame(INVALID_REQUEST, "not_an_object", "a message is one JSON object")
    request_id = _id_of(value)
    if value.get("jsonrpc") != "2.0":
        raise BadFrame(INVALID_REQUEST, "no_version", 'the member "jsonrpc" must be "2.0"', id=request_id)
    if "method" in value:
        return _question(value, request_id)
    return _response(value, request_id)


def _id_of(value: JsonObject) -> RequestId | None:
    """Return the id; None if there is none.

    Raises:
        BadFrame: the id is null, a boolean, a fraction, an object, or too long.
    """
    if "id" not in value:
        return None
    found = value["id"]
    if type(found) is int or (type(found) is str and len(found) <= ID_LIMIT):
        return found
    if "method" not in value and found is None and "error" in value:
        return None  # an error for a message that the peer could not read
    told = found if type(found) is str and len(found) <= ECHO_LIMIT else None
    raise BadFrame(
        INVALID_REQUEST, "bad_id", f"an id is a string of at most {ID_LIMIT} characters or an integer", id=told
    )


def _question(value: JsonObject, request_id: RequestId | None) -> Request | Notification:
    method = value["method"]
    if not isinstance(method, str) or not 0 < len(method) <= METHOD_LIMIT:
        raise BadFrame(INVALID_REQUEST, "bad_method", 'the member "method" must be a short string', id=request_id)
    if "result" in value or "error" in value:
        raise BadFrame(INVALID_REQUEST, "mixed", "a message is a question or an answer, not both", id=request_id)
    params = value.get("params", {})
    if not isinstance(params, dict):
        raise BadFrame(INVALID_PARAMS, "bad_params", 'the member "params" must be an object', id=request_id)
    return Notification(method, params) if request_id is None else Request(request_id, method, params)


def _response(value: JsonObject, request_id: RequestId | None) -> Response:
    if ("result" in value) == ("error" in value):
        raise BadFrame(INVALID_REQUEST, "no_method", "a message has a method, a result or an error", id=request_id)
    body = value.get("result", value.get("error"))
    if not isinstance(body, dict):
        raise BadFrame(INVALID_REQUEST, "bad_answer", "a result or an error is an object", id=request_id)
    if request_id is None:
        if "error" in value:
            return Response("", error=body)  # names no request of ours, so nobody waits for it
        raise BadFrame(INVALID_REQUEST, "bad_id", "an answer names the request that it belongs to")
    return Response(request_id, error=body) if "error" in value else Response(request_id, result=body)
