"""A memory whose vectors come from an endpoint: what is asked of it, and what happens while it is away."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from sqlite3 import connect
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from omni_mcp.contracts.errors import ConfigError
from omni_mcp.contracts.memory import MemorySettings, NoVectors
from omni_mcp.engines.memory.embedder_endpoint import LEFT_ALONE_S, TEXTS_AT_ONCE, EndpointEmbedder
from omni_mcp.engines.memory.embedders import embedder_of
from omni_mcp.engines.memory.renewing import SLOW_VECTORS_AT_ONCE
from tests.memory.conftest import Place, item, recalled, texts

DIMENSIONS = 8
TOKEN = "sk-unmistakable"
ALIKE = {"feline": 0, "cat": 0, "tax": 1, "levy": 1}


def vector_of(text: str) -> list[float]:
    """Words of one kind point the same way; every other text has a way of its own."""
    found = [float(number) for word, number in ALIKE.items() if word in text]
    row = [0.0] * DIMENSIONS
    row[int(found[0]) if found else 7] = 2.0
    return row


def usual(request: Any) -> Any:
    rows = [{"index": at, "embedding": vector_of(text)} for at, text in enumerate(request["input"])]
    return {"data": rows[::-1]}  # their order is not promised


@dataclass
class Endpoint:
    """A server on loopback; `answer` makes what it says of what it was asked, `status` goes with it."""

    port: int = 0
    status: int = 200
    answer: Callable[[Any], Any] = usual
    requests: list[Any] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    drips: bool = False
    stopped: Event = field(default_factory=Event)

    @property
    def asked(self) -> list[str]:
        return [text for request in self.requests for text in request["input"]]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/embeddings"


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    here = Endpoint()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            here.requests.append(request)
            here.tokens.append(self.headers["Authorization"])
            answer = here.answer(request)
            body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(here.status)
            self.send_header("Content-Length", str(len(body)))
            if here.status == 302:
                self.send_header("Location", here.url)
            self.end_headers()
            if here.drips:
                while not here.stopped.wait(0.01):
                    try:
                        self.wfile.write(b" ")
                        self.wfile.flush()
                    except OSError:
                        return
            else:
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    here.port = server.server_address[1]
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield here
    finally:
        here.stopped.set()
        server.shutdown()
        server.server_close()


@dataclass
class Steady:
    """A clock that only the test moves."""

    now_s: float = 100.0

    def __call__(self) -> float:
        return self.now_s


def embedder(endpoint: Endpoint, **more: Any) -> EndpointEmbedder:
    facts: dict[str, Any] = {
        "url": endpoint.url, "model": "small", "dimensions": DIMENSIONS, "secret": lambda: TOKEN, "timeout_s": 5.0
    }  # fmt: skip
    return EndpointEmbedder(**(facts | more))


def test_rows_are_in_the_order_of_the_texts_and_of_length_one(endpoint: Endpoint) -> None:
    rows = embedder(endpoint).embed(["a cat", "a tax", "", "  ", "a feline"])

    assert np.allclose(np.linalg.norm(rows, axis=1), [1, 1, 0, 0, 1])
    assert rows[0, 0] == rows[4, 0] == rows[1, 1] == 1
    assert endpoint.asked == ["a cat", "a tax", "a feline"]  # blank texts are refused by such servers
    assert endpoint.requests[0]["model"] == "small"
    assert endpoint.tokens == [f"Bearer {TOKEN}"]


def test_many_texts_go_in_several_requests(endpoint: Endpoint) -> None:
    rows = embedder(endpoint).embed([f"cat {number}" for number in range(2 * TEXTS_AT_ONCE + 1)])

    assert [len(request["input"]) for request in endpoint.requests] == [TEXTS_AT_ONCE, TEXTS_AT_ONCE, 1]
    assert (rows[:, 0] == 1).all()


def test_half_a_surrogate_and_no_secret_are_no_error(endpoint: Endpoint) -> None:
    assert embedder(endpoint, secret=lambda: None).embed(["\ud800 cat"]).shape == (1, DIMENSIONS)
    assert endpoint.tokens == [None]


WRONG: dict[str, Callable[[Any], Any]] = {
    "no JSON": lambda _: b"<html>",
    "another form": lambda _: {"vectors": []},
    "a list": lambda _: [1],
    "too few": lambda _: {"data": []},
    "other dimensions": lambda request: {
        "data": [{"index": at, "embedding": [1.0]} for at, _ in enumerate(request["input"])]
    },
    "a number that is none": lambda request: {
        "data": [{"index": at, "embedding": [float("nan")] * DIMENSIONS} for at, _ in enumerate(request["input"])]
    },
    "a number without an end": lambda _: {"data": [{"index": 0, "embedding": [1e300] * DIMENSIONS}]},
    "words": lambda request: {"data": [{"index": 0, "embedding": ["x"] * DIMENSIONS}]},
    "an integer that is too large": lambda request: {"data": [{"index": 0, "embedding": [10**400] * DIMENSIONS}]},
    "too deep": lambda _: b"[" * 100_000,
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_answer_is_no_vector_and_no_other_error(endpoint: Endpoint, what: str) -> None:
    endpoint.answer = WRONG[what]

    with pytest.raises(NoVectors):
        embedder(endpoint).embed(["a cat"])


@pytest.mark.parametrize("status", [302, 401, 429, 500])
def test_a_refusal_names_its_status_and_nothing_is_followed(endpoint: Endpoint, status: int) -> None:
    endpoint.status = status

    with pytest.raises(NoVectors, match=str(status)) as refused:
        embedder(endpoint).embed(["a cat"])

    assert len(endpoint.requests) == 1
    assert TOKEN not in str(refused.value)


def test_a_server_that_never_ends_its_answer_is_cut_off(endpoint: Endpoint) -> None:
    """Each byte comes in time, so only a limit on the whole ends this."""
    endpoint.drips = True
    endpoint.answer = lambda _: b" " * 1_000_000

    with pytest.raises(NoVectors):
        embedder(endpoint, timeout_s=0.2).embed(["a cat"])


def test_who_failed_is_left_alone_for_a_while(endpoint: Endpoint) -> None:
    clock = Steady()
    asking = embedder(endpoint, now_s=clock)
    endpoint.status = 500
    for _ in range(3):
        with pytest.raises(NoVectors):
            asking.embed(["a cat"])
    assert len(endpoint.requests) == 1

    endpoint.status = 200
    clock.now_s += LEFT_ALONE_S
    assert asking.embed(["a cat"])[0, 0] == 1


async def test_what_means_the_same_is_found_in_other_words(place: Place, endpoint: Endpoint) -> None:
    async with place.open(embedder=lambda: embedder(endpoint)) as store:
        await store.put_many([item("the levy is due"), item("our feline sleeps")])
        found = await recalled(store, "cat")

    assert found[0].item.text == "our feline sleeps"
    assert found.words_only is None


async def test_while_it_is_away_writes_succeed_and_words_are_found_and_the_answer_says_so(
    place: Place, endpoint: Endpoint
) -> None:
    clock = Steady()
    endpoint.status = 503
    async with place.open(embedder=lambda: embedder(endpoint, now_s=clock)) as store:
        await store.put(item("the levy is due"))
        await store.put(item("our feline sleeps"))
        found = await recalled(store, "levy")
        assert [hit.item.text for hit in found] == ["the levy is due"]
        assert found.words_only is not None
        assert (await recalled(store, "cat")) == []

        endpoint.status = 200
        clock.now_s += LEFT_ALONE_S
        found = await recalled(store, "cat")
        assert found[0].item.text == "our feline sleeps"
        assert found[0].parts["meaning"] > 0
        assert found.words_only is None


async def test_while_it_is_away_what_comes_later_is_found_too_and_a_recall_writes_nothing(
    place: Place, endpoint: Endpoint
) -> None:
    endpoint.status = 503
    async with place.open(embedder=lambda: embedder(endpoint)) as store:
        await store.put(item("an okapi"))
        assert await texts(store, "okapi") == ["an okapi"]
        await store.put(item("a quagga"))
        before = changes_of(place)
        assert await texts(store, "quagga") == ["a quagga"]
        assert changes_of(place) == before


def changes_of(place: Place) -> int:
    """How often something was written."""
    with closing(connect(place.file)) as connection:
        return int(connection.execute("SELECT change FROM state").fetchone()[0])


async def test_what_waits_for_its_vector_can_be_revised_listed_and_forgotten(place: Place, endpoint: Endpoint) -> None:
    endpoint.status = 503
    async with place.open(embedder=lambda: embedder(endpoint)) as store:
        stored = await store.put(item("an okapi", key="animal"))
        await store.put(item("a quagga", key="animal"))
        assert await texts(store, "okapi") == []
        assert await texts(store, "quagga") == ["a quagga"]
        await store.forget_item(stored.id)
        assert await texts(store, "quagga") == []
        await store.settle()
    assert place.files_with("quagga") == []


async def test_another_setting_embeds_anew_by_itself_and_back(place: Place, endpoint: Endpoint) -> None:
    async with place.open() as store:
        await store.put_many([item("the levy is due"), item("our feline sleeps")])
        before = await recalled(store, "cat")
    async with place.open(embedder=lambda: embedder(endpoint)) as store:
        assert (await texts(store, "cat"))[0] == "our feline sleeps"
        assert endpoint.asked.count("our feline sleeps") == 1
        await texts(store, "cat")
        assert endpoint.asked.count("our feline sleeps") == 1
    async with place.open() as store:
        again = await recalled(store, "cat")
        assert [(hit.item, hit.score) for hit in again] == [(hit.item, hit.score) for hit in before]


async def test_another_model_at_the_same_endpoint_does_not_meet_the_first_ones_vectors(
    place: Place, endpoint: Endpoint
) -> None:
    for model in ("small", "large"):
        async with place.open(embedder=lambda model=model: embedder(endpoint, model=model)) as store:
            await store.put(item("our feline sleeps", key="cat"))
            await texts(store, "cat")
    async with place.open(embedder=lambda: embedder(endpoint, model="small")) as store:
        await texts(store, "cat")
    assert [request["model"] for request in endpoint.requests if "our feline sleeps" in request["input"]] == [
        "small", "large", "small",
    ]  # fmt: skip


async def test_of_much_that_is_new_to_it_a_recall_waits_for_some_and_words_find_the_rest(
    place: Place, endpoint: Endpoint
) -> None:
    async with place.open() as store:
        await store.put_many([item(f"levy {number}") for number in range(SLOW_VECTORS_AT_ONCE + 100)])
    async with place.open(embedder=lambda: embedder(endpoint)) as store:
        assert len(await recalled(store, "levy", k=1000)) == 1000
        first = len(endpoint.asked)
        assert SLOW_VECTORS_AT_ONCE <= first < SLOW_VECTORS_AT_ONCE + 100
        await recalled(store, "levy")
        assert len(endpoint.asked) == SLOW_VECTORS_AT_ONCE + 100 + 2


async def test_nothing_is_asked_before_the_memory_is_used(place: Place, endpoint: Endpoint) -> None:
    settings = MemorySettings(embedder="openai", url=endpoint.url, model="small", dimensions=DIMENSIONS)
    async with place.open(embedder=embedder_of(settings, lambda: None)) as store:
        assert endpoint.requests == []
        await store.put(item("our feline sleeps"))
        assert endpoint.asked == ["our feline sleeps"]


def test_nobody_listening_is_no_vector() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(NoVectors):
        embedder(Endpoint(port=port)).embed(["a cat"])


@pytest.mark.parametrize(
    "values",
    [
        {"embedder": "openai"},
        {"embedder": "onnx"},
        {"embedder": "openai", "url": "https://a.example/v1/embeddings", "model": "m"},
        {"url": "http://a.example/v1/embeddings"},
        {"url": "http://localhost.example/v1"},
        {"url": "https://user:word@a.example/v1"},
        {"url": "ftp://a.example"},
        {"dimensions": 12},
        {"dimensions": 0},
    ],
)
def test_settings_that_cannot_be_meant_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        MemorySettings(**values)


def test_a_model_that_is_not_there_or_not_installed_is_named(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="onnx"):
        embedder_of(MemorySettings(embedder="onnx", model=str(tmp_path)), lambda: None)
