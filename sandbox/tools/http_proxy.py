"""One HTTP exchange through the gateway's proxy, the only way out of a cell. The proxy does TLS; nothing here does."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import socket
import time
import urllib.parse
from dataclasses import dataclass, field

from failure import ToolFailure

CHUNK = 64 * 1024
URL_CHARS = 4096
USER_AGENT = "omni-mcp"
_URL = re.compile(r"https?://[A-Za-z0-9._:\[\]-]+(?:[/?][!-\[\]-~]*)?", re.IGNORECASE | re.ASCII)
_ERROR_BYTES = 4096

TRANSIENT = frozenset({502, 503, 504})  # statuses after which another try may help
PERMANENT = frozenset({"tls_failed", "bad_response", "limit"})  # reasons of the gateway for which no try helps


class Unreachable(Exception):
    """There is no whole answer. `passing` says whether another try may help."""

    def __init__(self, text: str, *, passing: bool = True) -> None:
        super().__init__(text)
        self.passing = passing


class BrokenOff(Unreachable):
    """The answer began and did not end."""


@dataclass(frozen=True)
class Asked:
    """One request, its header names in lower case."""

    method: str
    url: str
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True)
class Response:
    """One answer. `cut` says that the body goes on; `denied` and `failed` are the gateway's own words, not a server's.

    Header names are in lower case; a header that came several times is one line.
    """

    status: int
    headers: dict[str, str]
    body: bytes = b""
    cut: bool = False
    denied: str = ""
    failed: str = ""


def plain_url(url: str) -> str:
    """Return *url* without its fragment, with a path.

    Raises:
        ToolFailure: it is no http or https URL in ASCII, or too long.
    """
    bare = url.partition("#")[0]
    if len(bare) > URL_CHARS or not _URL.fullmatch(bare):
        raise ToolFailure(f"{url[:200]!r} is no http or https URL in ASCII of at most {URL_CHARS} characters")
    parts = urllib.parse.urlsplit(bare)
    return urllib.parse.urlunsplit((parts.scheme.lower(), parts.netloc.lower(), parts.path or "/", parts.query, ""))


def joined(url: str, location: str) -> str:
    """Return where a `Location` points to, its bytes beyond ASCII written as `%XX` (RFC 9110, 10.2.2)."""
    return urllib.parse.urljoin(url, urllib.parse.quote(location.encode("latin-1"), safe="!#$%&'()*+,/:;=?@[]~"))


def exchange(asked: Asked, *, until: float, body_limit: int) -> Response:
    """Send one request and read its answer, until *until* (monotonic seconds) at the latest.

    Raises:
        Unreachable: there is no whole answer.
        ToolFailure: the cell has no way out.
    """
    try:
        with _connected(until) as connection:
            connection.settimeout(_left(until))
            connection.sendall(_request(asked))
            timed = _Timed(connection, until)
            response = http.client.HTTPResponse(timed, method=asked.method)  # type: ignore[arg-type]  # uses makefile
            response.begin()
            return _answer(response, until, body_limit)
    except TimeoutError as error:
        raise Unreachable("no answer in time", passing=False) from error
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(f"the connection failed ({type(error).__name__})") from error


def _answer(response: http.client.HTTPResponse, until: float, body_limit: int) -> Response:
    word = response.headers.get("X-Omni-Error", "")
    if word:
        reason = _reason(response.read(_ERROR_BYTES))
        denied = response.status in (400, 403)
        return Response(response.status, {}, denied=reason if denied else "", failed="" if denied else reason)
    headers: dict[str, str] = {}
    for name, value in response.headers.items():
        headers[name.lower()] = f"{headers[name.lower()]}, {value}" if name.lower() in headers else value
    body, cut = _body(response, body_limit)
    return Response(response.status, headers, body, cut)


def _body(response: http.client.HTTPResponse, limit: int) -> tuple[bytes, bool]:
    """Return the body and whether it goes on. What came before the time was over counts."""
    parts: list[bytes] = []
    size = 0
    try:
        while size <= limit and (part := response.read1(CHUNK)):
            parts.append(part)
            size += len(part)
    except TimeoutError:
        if not parts:
            raise
        return b"".join(parts)[:limit], True
    if size <= limit and response.length:
        raise BrokenOff("the answer ended too early")
    return b"".join(parts)[:limit], size > limit


def _reason(body: bytes) -> str:
    """Return why the gateway refused or failed, as one of its short codes."""
    try:
        found = json.loads(body)["reason"]
    except (ValueError, KeyError, TypeError):
        return "refused"
    return str(found)[:64]


def _request(asked: Asked) -> bytes:
    """Return the request in the form that a proxy takes, also for https: the whole URL in its first line."""
    headers = {
        "host": urllib.parse.urlsplit(asked.url).netloc, "user-agent": USER_AGENT, "accept": "*/*",
        "accept-encoding": "identity", "connection": "close", **asked.headers,
    }  # fmt: skip
    if asked.body or asked.method in ("POST", "PUT", "PATCH"):
        headers["content-length"] = str(len(asked.body))
    lines = [f"{asked.method} {asked.url} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + asked.body


def _connected(until: float) -> socket.socket:
    proxy = urllib.parse.urlsplit(os.environ.get("http_proxy", ""))
    if not proxy.hostname or not proxy.port:
        raise ToolFailure("this call has no way out: no host was granted to it")
    return socket.create_connection((proxy.hostname, proxy.port), timeout=_left(until))


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class _Timed:
    """What `HTTPResponse` reads from: a socket of which each read gets only the time that is left for all."""

    def __init__(self, connection: socket.socket, until: float) -> None:
        self._connection = connection
        self._until = until

    def makefile(self, mode: str) -> io.BufferedReader:
        """As `socket.makefile`, for reading."""
        return io.BufferedReader(_Reads(self._connection, self._until), CHUNK)


class _Reads(io.RawIOBase):
    def __init__(self, connection: socket.socket, until: float) -> None:
        self._connection = connection
        self._until = until

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self._connection.settimeout(_left(self._until))
        return self._connection.recv_into(buffer)
