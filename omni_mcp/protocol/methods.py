"""The one table of methods: every method of every version, what its parameters are, and what the policy is asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from omni_mcp.contracts.call import Era
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.policy import Action
from omni_mcp.protocol.rpc import INVALID_PARAMS, RpcError

NAME_LIMIT = 512
URI_LIMIT = 8192
CURSOR_LIMIT = 1024

# What stands in the run log of it: a whole call, only its refusal, or nothing (it is counted in the metrics).
Recorded = Literal["call", "refusal", "counted"]

BOTH: tuple[Era, ...] = ("handshake", "modern")
HANDSHAKE: tuple[Era, ...] = ("handshake",)
MODERN: tuple[Era, ...] = ("modern",)


@dataclass(frozen=True, slots=True)
class Param:
    """One member of `params`. `limit` caps the length of a string."""

    name: str
    type: type
    required: bool = True
    limit: int = NAME_LIMIT


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One method of the protocol.

    `handler` names what serves it; None is a method that the specification has and this gateway answers with
    "method not found". `action` is what the policy is asked about its target.
    """

    name: str
    direction: Literal["request", "notification"] = "request"
    eras: tuple[Era, ...]
    since: str = "2024-11-05"
    params: tuple[Param, ...] = ()
    handler: str | None
    action: tuple[Action, ...] = ()
    recorded: Recorded = "counted"
    rated: bool = field(init=False)  # each counts against a rate: it leaves a record, and the chain never sees it

    def __post_init__(self) -> None:
        object.__setattr__(self, "rated", self.recorded == "refusal" or self.name == "initialize")


_CURSOR = Param("cursor", str, required=False, limit=CURSOR_LIMIT)
_STATE = (Param("requestState", str, required=False, limit=1024 * 1024), Param("inputResponses", dict, required=False))
_URI = Param("uri", str, limit=URI_LIMIT)


def _listing(name: str) -> Method:
    return Method(name=name, eras=BOTH, params=(_CURSOR,), handler="list")


def _task(name: str, since: str = "2025-11-25") -> Method:
    return Method(name=name, eras=BOTH, since=since, handler=None)


_ALL = (
    Method(name="initialize", eras=HANDSHAKE, handler="initialize",
           params=(Param("protocolVersion", str), Param("capabilities", dict, required=False),
                   Param("clientInfo", dict, required=False))),
    Method(name="ping", eras=HANDSHAKE, handler="ping"),
    Method(name="server/discover", eras=MODERN, since="2026-07-28", handler="discover"),
    _listing("tools/list"),
    Method(name="tools/call", eras=BOTH, handler="call", action=("call_tool",), recorded="call",
           params=(Param("name", str), Param("arguments", dict, required=False), *_STATE)),
    _listing("resources/list"),
    _listing("resources/templates/list"),
    Method(name="resources/read", eras=BOTH, handler="call", action=("read_resource",), recorded="call",
           params=(_URI, *_STATE)),
    Method(name="resources/subscribe", eras=HANDSHAKE, handler="subscribe", action=("read_resource",),
           recorded="refusal", params=(_URI,)),
    Method(name="resources/unsubscribe", eras=HANDSHAKE, handler="unsubscribe", params=(_URI,)),
    _listing("prompts/list"),
    Method(name="prompts/get", eras=BOTH, handler="call", action=("get_prompt",), recorded="call",
           params=(Param("name", str), Param("arguments", dict, required=False), *_STATE)),
    Method(name="completion/complete", eras=BOTH, handler="complete", action=("get_prompt", "read_resource"),
           recorded="refusal",
           params=(Param("ref", dict), Param("argument", dict), Param("context", dict, required=False))),
    Method(name="logging/setLevel", eras=HANDSHAKE, handler="set_level", params=(Param("level", str),)),
    Method(name="subscriptions/listen", eras=MODERN, since="2026-07-28", handler="listen", action=("read_resource",),
           recorded="refusal", params=(Param("notifications", dict),)),
    _task("tasks/get"),
    _task("tasks/result"),
    _task("tasks/list"),
    _task("tasks/cancel"),
    _task("tasks/update", "2026-07-28"),
    Method(name="notifications/initialized", direction="notification", eras=HANDSHAKE, handler="initialized"),
    Method(name="notifications/cancelled", direction="notification", eras=BOTH, handler="cancelled"),
    Method(name="notifications/progress", direction="notification", eras=HANDSHAKE, handler="ignore"),
    Method(name="notifications/roots/list_changed", direction="notification", eras=HANDSHAKE, handler="ignore"),
    Method(name="notifications/tasks/status", direction="notification", eras=HANDSHAKE, since="2025-11-25",
           handler="ignore"),
)  # fmt: skip

METHODS: dict[str, Method] = {method.name: method for method in _ALL}
REQUESTS: dict[str, Method] = {method.name: method for method in _ALL if method.direction == "request"}

_TYPE_NAMES = {str: "a string", dict: "an object", list: "an array", bool: "a boolean", int: "an integer"}


def check_params(method: Method, params: JsonObject) -> None:
    """Refuse parameters whose members are missing, of the wrong type, or too long. Unknown members are let pass.

    Raises:
        RpcError: -32602 with the path in `data`.
    """
    for param in method.params:
        value = params.get(param.name)
        if value is None:
            if param.required:
                raise _bad(param, "is missing")
            continue
        if not isinstance(value, param.type):
            raise _bad(param, f"must be {_TYPE_NAMES[param.type]}")
        if isinstance(value, str) and len(value) > param.limit:
            raise _bad(param, f"is longer than {param.limit} characters")


def _bad(param: Param, fault: str) -> RpcError:
    return RpcError(INVALID_PARAMS, f"params.{param.name} {fault}", {"path": f"$.params.{param.name}"})


def string_at(value: Any, *, path: str, limit: int = NAME_LIMIT) -> str:
    """Return *value* if it is a string within *limit*.

    Raises:
        RpcError: -32602 with *path*.
    """
    if not isinstance(value, str):
        raise RpcError(INVALID_PARAMS, f"{path} must be a string", {"path": f"$.{path}"})
    if len(value) > limit:
        raise RpcError(INVALID_PARAMS, f"{path} is longer than {limit} characters", {"path": f"$.{path}"})
    return value
