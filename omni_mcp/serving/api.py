"""The JSON routes under `/api/`: they read, and they never record an event or decide anything.

Events come from the chain alone, and approvals are decided by a person at the command line, so whatever else a client
sends here is refused (403) before it is read. The layer in front has authenticated the request and adds
`X-Request-ID`; times are ISO 8601, errors `{"detail": ...}`.
"""

from __future__ import annotations

from collections.abc import Callable

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from omni_mcp.contracts.errors import CATALOGUE
from omni_mcp.contracts.json import JsonObject

PREFIX = "/api"
_WRITES = ["POST", "PUT", "PATCH", "DELETE"]


def api_routes(status: Callable[[], JsonObject]) -> list[Route]:
    """Return the routes; *status* gives the snapshot that `omni-mcp status` prints. Mount none of them as public."""

    async def get_status(request: Request) -> Response:
        return _json(status())

    async def refuse_write(request: Request) -> Response:
        return _problem("forbidden", "events come from calls, and decisions from a person at the command line")

    async def not_found(request: Request) -> Response:
        return _problem("not_found", "there is no such resource")

    return [
        Route(f"{PREFIX}/status", get_status, methods=["GET"]),
        Route(f"{PREFIX}/{{rest:path}}", refuse_write, methods=_WRITES),
        Route(f"{PREFIX}/{{rest:path}}", not_found, methods=["GET"]),
    ]


def _json(body: JsonObject, status_code: int = 200) -> Response:
    return Response(
        orjson.dumps(body),
        status_code=status_code,
        media_type="application/json",
        headers={"Cache-Control": "no-store"},
    )


def _problem(code: str, detail: str) -> Response:
    return _json({"detail": detail, "code": code}, CATALOGUE[code].http_status)
