"""HTTP: every route behind one gate. A route is denied without a token unless it is marked public, and only one is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import structlog
from starlette.applications import Starlette
from starlette.routing import BaseRoute

from omni_mcp import __version__
from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.errors import Overloaded, RateLimited, TooLarge
from omni_mcp.contracts.ids import new_id
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.ports import Identities
from omni_mcp.protocol.eras import HANDSHAKE_VERSIONS, META_VERSION
from omni_mcp.protocol.frames import BadFrame, frame_of
from omni_mcp.protocol.rpc import INVALID_REQUEST
from omni_mcp.serving.api.asking import NO_STORE
from omni_mcp.serving.api.face import ApiFace, is_api, stop_body
from omni_mcp.serving.api.lookups import about_handlers
from omni_mcp.serving.asgi import (
    AsgiApp,
    ClientGone,
    DoubleHeader,
    Exchange,
    Receive,
    Scope,
    Send,
    headers_of,
    json_bytes,
    refuse_room,
)
from omni_mcp.serving.conversation import whom_to_tell
from omni_mcp.serving.edge import Edge
from omni_mcp.serving.gate import NO_TOKEN, Gate, Stop, local_hosts, local_origins
from omni_mcp.serving.handshake_http import HandshakeHttp
from omni_mcp.serving.modern_http import ModernHttp
from omni_mcp.serving.parsing import parsed
from omni_mcp.serving.sse import MESSAGES_PATH, SseHttp
from omni_mcp.serving.web_server import serve_http

__all__ = ["HttpFace", "HttpSettings", "Route", "build_http", "serve_http"]

DEFAULT_PROFILE = "default"
METRICS_TYPE = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
NOT_OPERATOR = Stop(
    403, "metrics count everybody's calls; they are for a key of `omni-mcp keys create NAME --operator`", "not_operator"
)  # fmt: skip


class HttpSettings(Protocol):
    """What the operator decides about HTTP."""

    @property
    def hosts(self) -> tuple[str, ...]: ...
    @property
    def origins(self) -> tuple[str, ...]: ...
    @property
    def request_limit_bytes(self) -> int: ...
    @property
    def sessions(self) -> int: ...
    @property
    def session_idle_s(self) -> float: ...


Serve = Callable[[Exchange, str], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Route:
    """One path, the methods it has, and whether it may be asked without a token.

    `profiled`: `/path/NAME` is the same route for the profile NAME. `operators`: only a key of an operator may ask.
    """

    path: str
    methods: Mapping[str, Serve]
    public: bool = False
    profiled: bool = False
    operators: bool = False


class HttpFace:
    """The ASGI application."""

    def __init__(
        self,
        edge: Edge,
        identities: Identities,
        settings: HttpSettings,
        *,
        status: Callable[[], JsonObject],
        api: ApiFace,
        mounted: Sequence[BaseRoute],
    ) -> None:
        self._edge = edge
        self.api = api
        self._settings = settings
        self._identities = identities
        self._status = status
        self._gates: dict[int, Gate] = {}
        self._logger = structlog.get_logger("omni_mcp.http")
        self._modern = ModernHttp(edge)
        self._handshake = HandshakeHttp(edge, sessions_limit=settings.sessions, idle_s=settings.session_idle_s)
        self._sse = SseHttp(edge, sessions_limit=settings.sessions, frame_limit_bytes=settings.request_limit_bytes)
        self._side: AsgiApp = Starlette(routes=list(mounted))
        self._prefixes = tuple(sorted({f"/{str(getattr(r, 'path', '')).split('/')[1]}/" for r in mounted} - {"//"}))
        self.routes: tuple[Route, ...] = (
            Route("/mcp", {"POST": self._post_mcp, "GET": self._get_mcp, "DELETE": self._delete_mcp}, profiled=True),
            Route("/sse", {"GET": self._sse.get}, profiled=True),
            Route(MESSAGES_PATH, {"POST": self._post_message}),
            Route("/healthz", {"GET": self._healthz}, public=True),
            Route("/readyz", {"GET": self._readyz}),
            Route("/metrics", {"GET": self._metrics}, operators=True),
        )
        self._by_path = {route.path: route for route in self.routes}
        edge.metrics.watch("omni_http_sessions", "Open handshake sessions over HTTP.", lambda: self._handshake.sessions)
        edge.metrics.watch("omni_sse_sessions", "Open HTTP+SSE sessions.", lambda: self._sse.sessions)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            return  # no WebSocket is offered, so the server refuses the upgrade itself
        exchange = Exchange(scope, receive, send, {}, new_id())
        try:
            exchange.headers = headers_of(scope)
            led = self._lead(exchange)
            stop = led if isinstance(led, Stop) else await led
        except DoubleHeader as twice:
            stop = Stop(400, f"the header {twice} was sent more than once", "double_header")
        except ClientGone:
            return
        except TooLarge as error:
            stop = Stop(413, error.message, "too_large", ((b"connection", b"close"),))
        except Exception:
            self._logger.exception("an HTTP request failed inside the gateway", request_id=exchange.request_id)
            stop = None if exchange.started else Stop(500, "the gateway failed; its log names this request", "internal")
        if stop is not None:
            self._edge.rejections.note("http", stop.reason)
            if is_api(exchange.path):
                await exchange.answer_json(stop.status, stop_body(stop), [*stop.headers, NO_STORE])
                return
            await exchange.refuse(stop.status, stop.detail, stop.headers)

    def _lead(self, exchange: Exchange) -> Stop | Awaitable[Stop | None]:
        """Gate first, then the route: returns what serves the request, or why nothing does."""
        gate = self._gate(exchange.scope)
        if (stop := gate.check_sender(exchange.headers)) is not None:
            return stop
        route, profile = self._find(exchange.path)
        if route is None or not route.public:
            exchange.principal = gate.principal_of(exchange.headers)
            if exchange.principal is None:
                return NO_TOKEN
            exchange.still_valid = partial(_same_principal, gate, exchange.headers, exchange.principal)
        if route is None and is_api(exchange.path):
            return self.api.serve(exchange)
        if route is None:
            return self._mounted(exchange)
        if exchange.principal is not None and route.profiled and not self._edge.has_profile(profile):
            return Stop(404, "there is no such profile", "unknown_profile")
        serve = route.methods.get(exchange.method)
        if serve is None:
            allowed = ", ".join(route.methods)
            return Stop(405, f"this path takes {allowed}", "bad_http_method", ((b"allow", allowed.encode()),))
        if route.operators and not (exchange.principal is not None and exchange.principal.is_operator):
            return NOT_OPERATOR
        if exchange.method == "POST" and not _is_json(exchange.headers):
            return Stop(415, "send Content-Type: application/json", "content_type")
        return serve(exchange, profile)

    def _gate(self, scope: Scope) -> Gate:
        """The gate for the port that the request came in on: one for each that is listened on, whatever clients do."""
        server = scope.get("server")
        port = (server[1] if server else None) or 0
        gate = self._gates.get(port)
        if gate is None:
            gate = self._gates[port] = Gate(
                self._identities,
                hosts=(*local_hosts(port), *self._settings.hosts),
                origins=(*local_origins(port), *self._settings.origins),
            )
        return gate

    def _find(self, path: str) -> tuple[Route | None, str]:
        route = self._by_path.get(path)
        if route is not None:
            return route, DEFAULT_PROFILE
        head, _, name = path.rpartition("/")
        route = self._by_path.get(head)
        return (route, name) if route is not None and route.profiled and name else (None, "")

    async def _mounted(self, exchange: Exchange) -> Stop | None:
        """Serve a route that somebody else brought; it is behind the same gate and gets the same header."""
        if not exchange.path.startswith(self._prefixes or ("\0",)):
            return Stop(404, "there is no such path", "unknown_path")

        async def send(message: dict[str, object]) -> None:
            if message["type"] == "http.response.start":
                exchange.started = True
                headers = message.get("headers")
                ours = (b"x-request-id", exchange.request_id.encode())
                message = {**message, "headers": [*(headers if isinstance(headers, list) else []), ours]}
            await exchange.send(message)

        exchange.scope["omni.principal"] = exchange.principal
        await self._side(exchange.scope, exchange.receive, send)  # type: ignore[arg-type]
        return None

    async def _post_mcp(self, exchange: Exchange, profile: str) -> None:
        assert exchange.principal is not None  # the gate let it pass
        limit_bytes = self._settings.request_limit_bytes
        with self._edge.room.claim(exchange.principal.key) as claim:
            try:
                claim.grow(exchange.expected_bytes(limit_bytes))
            except (RateLimited, Overloaded) as error:
                self._edge.rejections.note("http", "no_room")
                await refuse_room(exchange, error)
                return
            try:
                data = await exchange.body(limit_bytes)
                claim.shrink_to(len(data))  # what it is smaller than it could have been
                try:
                    value = await parsed(data, limit_bytes=limit_bytes)
                except BadFrame as fault:
                    await self._refuse_bytes(exchange, fault, data)
                    return
                del data
                if _is_modern(exchange.headers, value):
                    if isinstance(value, list):
                        raise BadFrame(INVALID_REQUEST, "batch", "send one message at a time")
                    await self._modern.serve(exchange, profile, frame_of(value))
                else:
                    await self._handshake.post(exchange, profile, value)
            except BadFrame as fault:
                await exchange.answer_json(400, self._edge.reject("http", fault).body)

    async def _refuse_bytes(self, exchange: Exchange, fault: BadFrame, data: bytes) -> None:
        """Answer a body that is no message. Handshake clients take an HTTP error for the end of everything."""
        handshake = _handshake_header(exchange.headers)
        fault.id = whom_to_tell(self._handshake.session_of(exchange) if handshake else None, fault, data)
        status = 200 if handshake and fault.id is not None else 400
        await exchange.answer_json(status, self._edge.reject("http", fault).body)

    async def _get_mcp(self, exchange: Exchange, profile: str) -> None:
        if not _handshake_header(exchange.headers):
            await exchange.refuse(405, "this version has subscriptions/listen for that", [(b"allow", b"POST")])
            return
        await self._handshake.get(exchange, profile)

    async def _delete_mcp(self, exchange: Exchange, profile: str) -> None:
        if not _handshake_header(exchange.headers):
            await exchange.refuse(405, "this version has no sessions", [(b"allow", b"POST")])
            return
        await self._handshake.delete(exchange, profile)

    async def _post_message(self, exchange: Exchange, profile: str) -> None:
        await self._sse.post(exchange)

    async def _healthz(self, exchange: Exchange, profile: str) -> None:
        await exchange.answer_json(200, b'{"status":"ok"}')

    async def _readyz(self, exchange: Exchange, profile: str) -> None:
        """Ready: the run log can be written and the gateway is not stopping. Without the log nothing would run."""
        log = self._status().get("log")
        healthy = bool(log.get("healthy", True)) if isinstance(log, dict) else True
        ready = healthy and self._edge.takes_calls
        body = {"ready": ready, "log": "ok" if healthy else "unavailable", "draining": not self._edge.takes_calls}
        await exchange.answer_json(200 if ready else 503, json_bytes(body))

    async def _metrics(self, exchange: Exchange, profile: str) -> None:
        await exchange.answer(200, self._edge.metrics.render(), [METRICS_TYPE])

    def close(self) -> None:
        """Stop what runs in the background; the edge ends the sessions."""
        self._handshake.close()


def build_http(
    edge: Edge,
    identities: Identities,
    settings: HttpSettings,
    *,
    status: Callable[[], JsonObject],
    api: ApiFace | None = None,
    routes: Sequence[BaseRoute] = (),
) -> HttpFace:
    """Return the ASGI application.

    Args:
        status: the snapshot behind `/readyz` and `/api/status`.
        api: what is under `/api/`; without one, only what needs no engine.
        routes: further routes, served behind the same gate.
    """
    about = about_handlers(status, version=__version__, is_draining=lambda: not edge.takes_calls)
    served = api or ApiFace(edge, about)
    return HttpFace(edge, identities, settings, status=status, api=served, mounted=routes)


def _same_principal(gate: Gate, headers: dict[str, str], principal: Principal) -> bool:
    return gate.principal_of(headers) == principal


def _is_json(headers: dict[str, str]) -> bool:
    """Exactly JSON: what a web page can send without asking first (text/plain, forms) is refused."""
    value = headers.get("content-type", "")
    if value == "application/json":
        return True
    kind, _, rest = value.partition(";")
    return kind.strip().lower() == "application/json" and rest.strip().lower() in ("", "charset=utf-8")


def _handshake_header(headers: dict[str, str]) -> bool:
    version = headers.get("mcp-protocol-version")
    return version is None or version in HANDSHAKE_VERSIONS


def _is_modern(headers: dict[str, str], value: object) -> bool:
    """The header decides; without one, a body that names a modern version is held to the modern rules."""
    if not _handshake_header(headers):
        return True
    params = value.get("params") if isinstance(value, dict) else None
    meta = params.get("_meta") if isinstance(params, dict) else None
    return isinstance(meta, dict) and META_VERSION in meta


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
