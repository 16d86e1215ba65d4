"""EndpointEmbedder asks a server that speaks like OpenAI's for vectors: each text that is kept or asked for goes there.

Nothing waits long for it. Who does not answer in time, or wrongly, is left alone for a while, and is not asked again
before: the memory goes on by words, and what was kept meanwhile gets its vectors later.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from threading import Timer
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import orjson
from numpy import float32
from numpy.typing import NDArray

from omni_mcp.contracts.memory import NoVectors

TEXTS_AT_ONCE = 64  # in a request
TEXT_LIMIT_CHARS = 8192
ANSWER_LIMIT_BYTES = 16 * 1024 * 1024
LEFT_ALONE_S = 30.0  # after a failure


class EndpointEmbedder:
    """Vectors from `POST url` with `{"model", "input"}` (port `Embedder`). Safe for several threads.

    Args:
        secret: returns the token to send; None for none. Asked at each request, raises `NoVectors` if it is missing.
        timeout_s: for all requests that one call of `embed` makes, each.
        now_s: a clock that never goes back.
    """

    def __init__(
        self, *, url: str, model: str, dimensions: int, secret: Callable[[], str | None], timeout_s: float,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._url = urlsplit(url)
        self._model = model
        self._dimensions = dimensions
        self._secret = secret
        self._timeout_s = timeout_s
        self._now_s = now_s
        self._again_at_s = 0.0
        self._reason = ""
        self._name = f"endpoint {url} {model}"

    @property
    def name(self) -> str:
        return self._name

    @property
    def dimensions(self) -> int:
        return self._dimensions

    def embed(self, texts: Sequence[str]) -> NDArray[float32]:
        """Return one row of length 1 for each text, all zeros for a blank one.

        Raises:
            NoVectors: the server could not be asked, or gave no vectors.
        """
        rows = np.zeros((len(texts), self._dimensions), dtype=float32)
        asked = [place for place, text in enumerate(texts) if text.strip()]
        if not asked:
            return rows
        if self._now_s() < self._again_at_s:
            raise NoVectors(self._reason)
        try:
            with closing(self._connection()) as connection:
                for begin in range(0, len(asked), TEXTS_AT_ONCE):
                    some = asked[begin : begin + TEXTS_AT_ONCE]
                    rows[some] = self._vectors(connection, [texts[place][:TEXT_LIMIT_CHARS] for place in some])
        except (OSError, HTTPException, ValueError, NoVectors) as error:
            self._again_at_s = self._now_s() + LEFT_ALONE_S
            self._reason = str(error) if isinstance(error, NoVectors) else f"the endpoint: {type(error).__name__}"
            raise NoVectors(self._reason) from error
        return rows

    def _connection(self) -> HTTPConnection:
        host = self._url.hostname or ""
        if self._url.scheme == "http":
            return HTTPConnection(host, self._url.port, timeout=self._timeout_s)
        context = ssl.create_default_context()
        return HTTPSConnection(host, self._url.port, timeout=self._timeout_s, context=context)

    def _vectors(self, connection: HTTPConnection, texts: Sequence[str]) -> NDArray[float32]:
        """Ask for the vectors of a few texts."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if token := self._secret():
            headers["Authorization"] = f"Bearer {token}"
        body = orjson.dumps({"model": self._model, "input": [_plain(text) for text in texts]})
        path = self._url.path or "/"
        with _no_longer_than(self._timeout_s, connection):
            connection.request("POST", f"{path}?{self._url.query}" if self._url.query else path, body, headers)
            response = connection.getresponse()
            content = response.read(ANSWER_LIMIT_BYTES + 1)
        if response.status != 200:
            raise NoVectors(f"the endpoint answered with status {response.status}")
        if len(content) > ANSWER_LIMIT_BYTES:
            raise NoVectors("the endpoint's answer is too long")
        return unit_rows(_rows(orjson.loads(content), len(texts), self._dimensions))


def unit_rows(vectors: NDArray[float32]) -> NDArray[float32]:
    """Return *vectors*, each of length 1; zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    found: NDArray[float32] = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return found


def _rows(answer: Any, count: int, dimensions: int) -> NDArray[float32]:
    """Read `{"data": [{"index", "embedding"}]}`, in any order.

    Raises:
        NoVectors: it has another form.
    """
    try:
        by_place = {int(one["index"]): one["embedding"] for one in answer["data"]}
        with np.errstate(over="ignore"):
            rows = np.array([by_place[place] for place in range(count)], dtype=float32)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise NoVectors("the endpoint's answer has another form than OpenAI's") from error
    if rows.shape != (count, dimensions) or not np.isfinite(rows).all():
        raise NoVectors(f"the endpoint's vectors are not {count} of {dimensions} finite numbers")
    return rows


@contextmanager
def _no_longer_than(timeout_s: float, connection: HTTPConnection) -> Iterator[None]:
    """Cut the connection when the time is over: its own timeout begins anew with each byte."""

    def cut() -> None:
        with suppress(OSError, AttributeError):
            connection.sock.shutdown(socket.SHUT_RDWR)

    timer = Timer(timeout_s, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _plain(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
