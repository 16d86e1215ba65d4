"""ApiFace: one request under `/api/`, from its bytes to its answer. Every route takes these steps in this order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args
from urllib.parse import parse_qsl

import structlog
from pydantic import BaseModel, ValidationError

from omni_mcp.contracts.api import MessageKind, NewEvents
from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.errors import BadRequest, Draining, NotForClients, NotFound, OmniError, RateLimited, TooLarge
from omni_mcp.contracts.json import JsonValue, canonical, json_path
from omni_mcp.protocol.frames import BadFrame
from omni_mcp.protocol.rpc import RpcError
from omni_mcp.serving.api.access import Access
from omni_mcp.serving.api.asking import Asking, Handler, answer, answer_problem, problem
from omni_mcp.serving.api.routes import PREFIX, ApiRoute, Table
from omni_mcp.serving.asgi import ClientGone, Exchange, json_bytes
from omni_mcp.serving.edge import Edge
from omni_mcp.serving.gate import Stop
from omni_mcp.serving.parsing import parsed

WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
CONVERSATION: frozenset[str] = frozenset(get_args(MessageKind))
BODY_LIMIT_BYTES = 4 * 1024 * 1024
QUERY_LIMIT_BYTES = 64 * 1024
FAULTS_SHOWN = 5

FORBIDDEN = "calls and their outcomes come from the gateway, and decisions from a person at the command line"
_CODES = {400: "invalid_request", 401: "unauthenticated", 403: "forbidden", 404: "not_found", 413: "too_large",
          500: "internal"}  # fmt: skip


class ApiFace:
    """Serves what the table names and *handlers* answer.

    Args:
        access: None only where no handler needs a decision.
        admit: counts a request, and raises RateLimited where there were too many.
    """

    def __init__(
        self, edge: Edge, handlers: Mapping[str, Handler], *, access: Access | None = None,
        admit: Callable[[Principal], None] = lambda principal: None, table: Table | None = None,
        body_limit_bytes: int = BODY_LIMIT_BYTES,
    ) -> None:  # fmt: skip
        self._edge = edge
        self._handlers = dict(handlers)
        self._access = access
        self._admit = admit
        self._body_limit_bytes = body_limit_bytes
        self.table = table or Table()
        self._logger = structlog.get_logger("omni_mcp.api")

    @property
    def operations(self) -> frozenset[str]:
        """What is served."""
        return frozenset(self._handlers)

    async def serve(self, exchange: Exchange) -> None:
        """Answer one request of somebody who is known."""
        assert exchange.principal is not None  # the gate let it pass
        found, place = self.table.at(exchange.path)
        known = [route for route in found if route.operation in self._handlers]
        route = next((one for one in known if one.method == exchange.method), None)
        try:
            if route is None:
                await self._refuse(exchange, known)
            else:
                await self._answer(exchange, route, place)
        except TooLarge:
            raise  # answered where the connection can be closed, with the rest of the body unread
        except OmniError as error:
            await self._fail(exchange, error)
        except RpcError as fault:
            await self._fail(exchange, BadRequest(fault.message))

    async def _refuse(self, exchange: Exchange, known: list[ApiRoute]) -> None:
        """Writing what is not offered is an attempt at what clients do not do; reading it is a mistake."""
        if exchange.method in WRITES:
            self._edge.rejections.note("http", "forbidden")
            raise NotForClients(FORBIDDEN)
        if known:
            allowed = ", ".join(route.method for route in known)
            await exchange.refuse(405, f"this path takes {allowed}", [(b"allow", allowed.encode())])
            return
        raise NotFound("there is no such resource")

    async def _answer(self, exchange: Exchange, route: ApiRoute, place: dict[str, str]) -> None:
        principal = exchange.principal
        assert principal is not None
        if self._edge.draining:
            raise Draining()
        self._admit(principal)
        with self._edge.room.claim(principal.key) as claim:
            sent: JsonValue = None
            if route.shape is not None:
                claim.grow(exchange.expected_bytes(self._body_limit_bytes))
                sent = await self._json_body(exchange)
                check_kinds(route, sent)
            if route.like is not None:
                assert self._access is not None
                await self._access.check(principal, route.like, method=f"{route.method} {route.path}")
            body = sent
            if route.shape is not None:
                body = validated(route.shape, sent, "body")
            asking = Asking(
                exchange=exchange, principal=principal, claim=claim, place=place, query=query_of(exchange, route),
                body=body,
            )  # fmt: skip
            if route.reads_log:
                assert self._access is not None
                await self._access.note_reading(principal, " ".join([route.operation, *place.values()]))
            shown = await self._handlers[route.operation](asking)
        if exchange.started:
            return
        if shown is None:
            await exchange.start(route.status, [(b"cache-control", b"no-store")])
            await exchange.chunk(b"", more=False)
            return
        await answer(exchange, route.status, shown)

    async def _json_body(self, exchange: Exchange) -> JsonValue:
        kind, _, rest = exchange.headers.get("content-type", "").partition(";")
        if kind.strip().lower() != "application/json" or rest.strip().lower() not in ("", "charset=utf-8"):
            raise BadRequest("send Content-Type: application/json", data={"path": "Content-Type"})
        data = await exchange.body(self._body_limit_bytes)
        try:
            return await parsed(data, limit_bytes=self._body_limit_bytes)
        except BadFrame as fault:
            self._edge.rejections.note("http", fault.reason)
            raise BadRequest(fault.message, data={"reason": fault.reason}) from fault

    async def _fail(self, exchange: Exchange, error: OmniError) -> None:
        if isinstance(error, RateLimited):
            self._edge.rejections.note("http", error.code)
        if exchange.started:
            self._logger.warning("an answer ended early", request_id=exchange.request_id, code=error.code)
            raise ClientGone
        call = error.data.get("call")
        await answer_problem(exchange, error, call=call if isinstance(call, str) else None)


def check_kinds(route: ApiRoute, sent: JsonValue) -> None:
    """Refuse to take an event that only the gateway makes, before anything else is looked at.

    Raises:
        NotForClients: the body names such a kind.
    """
    if route.body is not NewEvents or not isinstance(sent, dict):
        return
    events = sent.get("events")
    kinds = [one.get("kind") for one in (sent, *(events if isinstance(events, list) else ())) if isinstance(one, dict)]
    if any(isinstance(kind, str) and kind not in CONVERSATION for kind in kinds):
        raise NotForClients(FORBIDDEN)


def query_of(exchange: Exchange, route: ApiRoute) -> BaseModel:
    """Return what stands behind the `?`.

    Raises:
        BadRequest: it is unknown, wrong or there twice.
    """
    raw: bytes = exchange.scope.get("query_string") or b""
    if len(raw) > QUERY_LIMIT_BYTES:
        raise BadRequest("the query is too long")
    try:
        pairs = parse_qsl(raw.decode("ascii"), keep_blank_values=True, strict_parsing=bool(raw), errors="strict")
    except (ValueError, UnicodeDecodeError) as fault:
        raise BadRequest("the query cannot be read") from fault
    if len(dict(pairs)) != len(pairs):
        raise BadRequest("a parameter of the query came twice")
    return validated(route.query, dict(pairs), "query")


def validated(model: type[BaseModel], value: Any, what: str) -> BaseModel:
    """Return *value* as *model*. Text is read as a number only in a query, where everything is text.

    Raises:
        BadRequest: it does not fit; `data` names the first places.
    """
    try:
        if what == "body":
            return model.model_validate_json(canonical(value), strict=True)  # JSON's lists are our tuples
        return model.model_validate(value)
    except ValidationError as error:
        faults = [
            f"{json_path(fault['loc'])}: {fault['msg']}" for fault in error.errors(include_url=False)[:FAULTS_SHOWN]
        ]
        raise BadRequest(f"the {what} does not fit: {'; '.join(faults)}", data={"problems": faults}) from error


def stop_body(stop: Stop) -> bytes:
    """Return a refusal by the gate in the form that errors have here."""
    return json_bytes(problem(_CODES.get(stop.status, "invalid_request"), stop.detail))


def is_api(path: str) -> bool:
    """Whether the path is one of ours."""
    return path.startswith(PREFIX + "/")
