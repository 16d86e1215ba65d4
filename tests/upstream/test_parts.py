"""The small parts: lines and events out of chunks of any size, header values, backoff and breaker."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from omni_mcp.contracts.errors import UpstreamUnavailable
from omni_mcp.engines.upstream.envelope import encode_value, forwarded_capabilities
from omni_mcp.engines.upstream.health import Health, Patience
from omni_mcp.engines.upstream.parking import Parked, Parking
from omni_mcp.engines.upstream.wire.events import EventParser
from omni_mcp.engines.upstream.wire.reading import claimed_id
from omni_mcp.engines.upstream.wire.splitting import LineSplitter, TooLong
from omni_mcp.protocol.headers import decode_value


def in_chunks(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


@given(some.binary(max_size=200), some.lists(some.integers(0, 1000), max_size=10))
def test_lines_do_not_depend_on_how_they_are_cut(data: bytes, cuts: list[int]) -> None:
    splitter = LineSplitter(1000)
    found = [line for chunk in in_chunks(data, cuts) for line in splitter.feed(chunk)]
    rest = splitter.rest()

    expected = data.split(b"\n")
    assert found + ([rest] if rest is not None else []) == (expected if expected[-1] else expected[:-1])


@given(some.integers(1, 60), some.lists(some.integers(0, 1000), max_size=10))
def test_a_line_over_the_limit_costs_only_itself_and_keeps_its_ends(limit: int, cuts: list[int]) -> None:
    data = b"ok\n" + b"H" + b"x" * 500 + b"T\nok\n"
    splitter = LineSplitter(limit)
    most = 0
    found = []
    for chunk in in_chunks(data, cuts):
        found += splitter.feed(chunk)
        most = max(most, splitter.held_bytes)

    assert isinstance(found[1], TooLong) or limit >= 502
    if limit >= 2:
        assert found[0] == found[2] == b"ok"
    assert isinstance(found[1], TooLong) and found[1].head.startswith(b"H") and found[1].tail.endswith(b"T")
    assert most <= limit + 512


STREAM = (
    b"\xef\xbb\xbf: hi\r\nid: 7\rretry: 20\nevent: e\ndata: one\ndata:two\n\ndata: \xe2\x82\xac\r\n\r\ndata\n\nid\n\n"
)


@given(some.lists(some.integers(0, 1000), max_size=12))
def test_events_do_not_depend_on_how_they_are_cut(cuts: list[int]) -> None:
    parser = EventParser(10_000)
    found = [event for chunk in in_chunks(STREAM, cuts) for event in parser.feed(chunk)]

    assert [(event.name, event.data) for event in found] == [
        ("e", b"one\ntwo"), ("message", "€".encode()), ("message", b"")
    ]  # fmt: skip
    assert parser.retry_s == 0.02 and parser.last_id == ""


def test_an_event_over_the_limit_is_dropped_with_its_ends_kept() -> None:
    parser = EventParser(100)
    events = parser.feed(b'data: {"jsonrpc":"2.0","id":4,' + b"x" * 1000 + b"\n\ndata: next\n\n")

    assert events[0].data is None and claimed_id(events[0].head, events[0].tail) == 4
    assert events[1].data == b"next"


@pytest.mark.parametrize(
    ("head", "tail", "id"),
    [
        (b'{"jsonrpc":"2.0","id":12,"result":{', b"}}", 12),
        (b' {"id": 3, "jsonrpc"', b"}", 3),
        (b'{"result":{"x":1', b'},"jsonrpc":"2.0","id":9}', 9),
        (b'{"result":{"x":1', b'},"id":9,"jsonrpc":"2.0"}', 9),
        (b'{"result":{"id":1', b'},"x":2}', None),
        (b'{"method":"x","id":5', b"}", None),
    ],
)
def test_the_request_that_junk_claims_to_answer_is_read_from_its_ends(head: bytes, tail: bytes, id: int | None) -> None:
    assert claimed_id(head, tail) == id


@given(some.text(max_size=40).filter(lambda text: text.isprintable()))
def test_a_header_value_says_what_the_body_says(text: str) -> None:
    encoded = encode_value(text)

    assert decode_value(encoded) == text
    assert encoded.isascii() and encoded == encoded.strip()


def test_capabilities_of_a_caller_are_forwarded_without_what_we_cannot_relay() -> None:
    declared = {
        "elicitation": {"url": {}}, "roots": {"listChanged": True}, "sampling": "yes", "experimental": {"x": {}},
        "extensions": {"io.modelcontextprotocol/tasks": {}, "vendor/ui": {}},
    }  # fmt: skip

    assert forwarded_capabilities(declared) == {
        "elicitation": {"url": {}},
        "roots": {},
        "extensions": {"vendor/ui": {}},
    }


async def test_a_parked_call_is_taken_by_its_own_caller_once() -> None:
    parking = Parking(per_principal=1)
    nothing: Any = None
    key = parking.park(
        Parked(
            call="c", principal="ann", server="up", connection=nothing, talk=nothing, exchange=nothing, questions={},
            let_go=lambda: None,
        )
    )  # fmt: skip

    assert parking.has_room("bob") and not parking.has_room("ann")
    assert parking.take(key, call="c", principal="bob") is None
    assert parking.take(key, call="other", principal="ann") is None
    assert parking.take(["no key"], call="c", principal="ann") is None
    assert parking.take(key, call="c", principal="ann") is not None
    assert parking.take(key, call="c", principal="ann") is None


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def health(clock: Clock, **patience: float) -> Health:
    return Health("up", Patience(**patience), now_s=clock, chance=lambda: 1.0)  # type: ignore[arg-type]


def test_the_breaker_opens_after_failures_in_a_row_and_lets_one_call_through_at_a_time() -> None:
    clock = Clock()
    it = health(clock, failures_to_open=3, open_s=10.0)
    for _ in range(3):
        it.admit()
        it.call_failed("gone")
    with pytest.raises(UpstreamUnavailable) as refused:
        it.admit()
    assert refused.value.data == {"retry_after_s": 10.0} and "gone" in refused.value.detail

    clock.now_s += 10
    it.admit()
    with pytest.raises(UpstreamUnavailable):
        it.admit()
    it.call_failed("still gone")
    clock.now_s += 19
    with pytest.raises(UpstreamUnavailable):
        it.admit()
    clock.now_s += 1
    it.admit()
    it.answered(5.0)
    it.admit()
    it.admit()


def test_a_server_that_dies_soon_after_each_start_is_started_ever_more_slowly() -> None:
    clock = Clock()
    it = health(clock, backoff_s=1.0, backoff_limit_s=8.0, steady_s=10.0)
    waits = []
    for _ in range(5):
        it.connecting()
        it.connected()
        clock.now_s += 1
        it.disconnected("crash")
        waits.append(it.delay_s())
        clock.now_s += it.delay_s()
    assert waits == [1, 2, 4, 8, 8]

    it.connected()
    clock.now_s += 60
    it.disconnected("crash")
    assert it.delay_s() == 1


def test_starts_have_a_budget() -> None:
    clock = Clock()
    it = health(clock, starts_per_window=3, window_s=100.0)
    for _ in range(3):
        it.connecting()
        clock.now_s += 1
    assert it.delay_s() == 97
