"""One request over HTTP by the standard library: an address, a token, JSON in and out."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar
from urllib.parse import urlencode, urlsplit

import orjson
from pydantic import BaseModel, ValidationError

from omni_mcp.client.errors import ApiError, Unreachable
from omni_mcp.contracts.api import ProblemShown
from omni_mcp.contracts.json import JsonObject

M = TypeVar("M", bound=BaseModel)
Body = bytes | Iterable[bytes] | None

ANSWER_LIMIT_BYTES = 64 * 1024 * 1024


class Connection:
    """Where a gateway is and as whom it is asked. Safe to use from several threads: each request has its own socket."""

    def __init__(self, base_url: str, token: str, *, timeout_s: float) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
            raise ValueError(f"{base_url!r} is no address such as http://127.0.0.1:6464")
        self._secure = parts.scheme == "https"
        self._host, self._port = parts.hostname, parts.port or (443 if self._secure else 80)
        self._headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        self._timeout_s = timeout_s

    def send(
        self, method: str, path: str, *, query: Mapping[str, object] | None = None, body: JsonObject | None = None
    ) -> JsonObject:
        """Send one request and return the object that is answered; an empty one for an empty answer.

        Raises:
            ApiError: the answer is an error.
            Unreachable: there is no answer.
        """
        data = None if body is None else orjson.dumps(body)
        headers = {} if data is None else {"Content-Type": "application/json"}
        with self.opened(method, path, query=query, data=data, headers=headers) as answer:
            return _object(_read(answer))

    @contextmanager
    def opened(
        self, method: str, path: str, *, query: Mapping[str, object] | None = None, data: Body = None,
        headers: Mapping[str, str] | None = None, timeout_s: float | None = None,
    ) -> Iterator[http.client.HTTPResponse]:  # fmt: skip
        """Send one request and yield the answer, its body not read yet.

        Raises:
            ApiError: the answer is an error.
            Unreachable: there is no answer.
        """
        wanted = {name: value for name, value in (query or {}).items() if value is not None}
        target = f"{path}?{urlencode(wanted)}" if wanted else path
        connection = self._connection(self._timeout_s if timeout_s is None else timeout_s)
        try:
            try:
                connection.request(method, target, body=data, headers={**self._headers, **(headers or {})})
                answer = connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                raise Unreachable(f"the gateway at {self._host}:{self._port} does not answer: {error}") from error
            if answer.status >= 400 or answer.status == 202:
                raise _error(answer)
            yield answer
        finally:
            connection.close()

    def _connection(self, timeout_s: float) -> http.client.HTTPConnection:
        if self._secure:
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(self._host, self._port, timeout=timeout_s, context=context)
        return http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)


def _error(answer: http.client.HTTPResponse) -> ApiError:
    try:
        problem = ProblemShown.model_validate_json(_read(answer))
    except (ValidationError, Unreachable):
        problem = ProblemShown(detail=f"HTTP {answer.status} {answer.reason}", code="internal")
    return ApiError(answer.status, problem)


def _read(answer: http.client.HTTPResponse) -> bytes:
    try:
        data = answer.read(ANSWER_LIMIT_BYTES + 1)
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(f"the gateway went away: {error}") from error
    if len(data) > ANSWER_LIMIT_BYTES:
        raise Unreachable(f"the answer is over {ANSWER_LIMIT_BYTES} bytes")
    return data


def _object(data: bytes) -> JsonObject:
    if not data:
        return {}
    try:
        found = orjson.loads(data)
    except ValueError as error:
        raise Unreachable("the answer is no JSON: is this an omni-mcp gateway?") from error
    return found if isinstance(found, dict) else {}
