"""What can go wrong between us and a server, before it becomes an error of the failure catalogue."""

from __future__ import annotations

from omni_mcp.contracts.json import JsonObject, JsonValue


class RemoteError(Exception):
    """The server answered with a JSON-RPC error."""

    def __init__(self, code: int, message: str, data: JsonValue = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.data = data


class Garbled(Exception):
    """The server answered with something that is no valid message. `reason` is the word of `BadFrame`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    @property
    def why(self) -> str:
        """The reason in words."""
        return WORDS.get(self.reason, self.reason.replace("_", " "))


WORDS = {
    "number_range": "it holds an integer that does not fit into 64 bits",
    "too_deep": "it is nested too deeply",
    "too_many_values": "it holds too many values",
    "too_large": "it is too large",
    "duplicate_key": "an object in it has the same key twice",
    "not_json": "it is not valid JSON in UTF-8, or holds a lone surrogate",
}


class GreetingFailed(Exception):
    """The server is there, but no version could be agreed on. `status` is set if HTTP said so."""

    def __init__(self, reason: str, *, status: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status


class DiedOnProbe(Exception):
    """The server ended when it was asked `server/discover`; started again, it must not be asked that."""


PASSING_STATUSES = (502, 503, 504)  # after which another attempt at once may help
MESSAGE_LIMIT = 2000
DATA_LIMIT = 64 * 1024  # of `data`: it goes to the client and on record
VALUES_LIMIT = 4096


def may_have_acted(status: int) -> bool:
    """Return whether a request that was answered with this HTTP status, no success, may have taken effect.

    503 and 408 are said by servers that did nothing, and by proxies that lost a server at work: nobody can tell.
    """
    return status >= 500 or status == 408


def remote_error_of(error: JsonObject) -> RemoteError:
    """Return what the member `error` of an answer says; a server may send anything in it.

    A message is cut, and `data` that is too large is left out.
    """
    code, message = error.get("code"), error.get("message")
    fit = isinstance(code, int) and not isinstance(code, bool)
    text = message if isinstance(message, str) else "the server gave no reason"
    data = _bounded(error.get("data"))
    return RemoteError(code if fit and isinstance(code, int) else -32603, text[:MESSAGE_LIMIT], data)


def _bounded(data: JsonValue) -> JsonValue:
    """Return *data*, or None where it is too large; stops looking once it is."""
    room, values, todo = DATA_LIMIT, 0, [data]
    while todo:
        value = todo.pop()
        values += 1
        if isinstance(value, str):
            room -= len(value)
        elif isinstance(value, dict):
            room -= sum(map(len, value))
            todo += value.values()
        elif isinstance(value, list):
            todo += value
        if room < 0 or values + len(todo) > VALUES_LIMIT:
            return None
    return data
