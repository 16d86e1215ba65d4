"""One call of an operation of an OpenAPI document: the request that its plan and the arguments make, and its answer.

The plan is the gateway's, made from the operator's document; the arguments are the caller's, and stay where the plan
puts them. A credential is added on the way out; none is here.
"""

from __future__ import annotations

import dataclasses
import time

import http_proxy
import openapi_answer
import openapi_request
from failure import ToolFailure
from http_proxy import Asked, Response, Unreachable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

BODY_LIMIT = 8 * 1024 * 1024
REDIRECTS = 3
_REDIRECTING = frozenset({301, 302, 303, 307, 308})


def openapi_call(arguments: dict[str, Any]) -> dict[str, Any]:
    """Send the request and return what came back; an answer that is no success is a failure with its body."""
    plan = arguments["plan"]
    asked = openapi_request.build(plan, arguments["arguments"])
    until = time.monotonic() + plan["timeout_s"]
    response = _exchange(asked, until)
    for _ in range(REDIRECTS):
        to = _redirect_of(response, asked, plan)
        if to is None:
            break
        asked = dataclasses.replace(asked, url=to)
        response = _exchange(asked, until)
    return openapi_answer.told(response, plan["result"])


def _exchange(asked: Asked, until: float) -> Response:
    try:
        response = http_proxy.exchange(asked, until=until, body_limit=BODY_LIMIT)
    except Unreachable as failure:
        raise ToolFailure(f"{asked.method} {asked.url[:500]}: {failure}", passing=failure.passing) from failure
    if response.denied:
        raise ToolFailure(f"the gateway did not let this through: {response.denied}")
    if response.failed:
        passing = response.failed not in http_proxy.PERMANENT
        raise ToolFailure(f"{asked.method} {asked.url[:500]}: {response.failed}", passing=passing)
    return response


def _redirect_of(response: Response, asked: Asked, plan: dict[str, Any]) -> str | None:
    """Return where a reading request is sent on to, if that is below the same origin and path prefix; else None."""
    location = response.headers.get("location")
    if response.status not in _REDIRECTING or location is None or asked.method not in ("GET", "HEAD"):
        return None
    try:
        to = http_proxy.plain_url(http_proxy.joined(asked.url, location))
        openapi_request.check_stays(to, plan)
    except (ToolFailure, ValueError):
        return None
    return to
