"""Message ids are found in passing lines however they are cut, and a long line is never kept."""

from __future__ import annotations

import json
import sys
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from omni_mcp.cli.linetap import HEAD_BYTES, LineTap

IDS = st.one_of(st.integers(-(2**53), 2**53), st.text(max_size=30))
LONG = "x" * (HEAD_BYTES + 10)


def seen(*chunks: bytes) -> list[Any]:
    tap = LineTap()
    return [message for chunk in chunks for message in tap.feed(chunk)]


@given(st.lists(st.tuples(IDS, st.text(max_size=50)), max_size=8), st.integers(1, 40))
def test_every_message_is_seen_once_however_the_bytes_are_cut(messages: list[tuple[Any, str]], size: int) -> None:
    sent = [
        {"jsonrpc": "2.0", "id": name, "method": "x", "params": {"id": "inner", "text": text}}
        for name, text in messages
    ]
    data = b"".join(json.dumps(message).encode() + b"\n" for message in sent)
    assert seen(*(data[at : at + size] for at in range(0, len(data), size))) == sent


@given(IDS, st.sampled_from(["head", "tail"]), st.booleans(), st.integers(1000, 70000))
def test_the_id_of_a_long_line_is_found_at_either_end(name: Any, place: str, ascii_only: bool, size: int) -> None:
    params = {"text": LONG, "id": "inner"}
    message = (
        {"jsonrpc": "2.0", "id": name, "method": "tools/call", "params": params}
        if place == "head"
        else {"method": "tools/call", "params": params, "jsonrpc": "2.0", "id": name}
    )
    data = json.dumps(message, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass") + b"\n"
    (found,) = seen(*(data[at : at + size] for at in range(0, len(data), size)))
    assert found == {"id": name, "method": "tools/call"}


def test_an_inner_id_of_a_long_line_is_never_taken_for_the_outer_one() -> None:
    inner_last = {"method": "x", "jsonrpc": "2.0", "params": {"text": LONG, "id": 5}}
    quoted = {"method": "x", "params": {"text": LONG + ',"id":5}'}}
    for message in (inner_last, quoted):
        assert seen(json.dumps(message).encode() + b"\n") == []


def test_a_long_answer_is_no_request() -> None:
    answer = {"jsonrpc": "2.0", "id": 3, "result": {"method": "x", "text": LONG}}
    assert seen(json.dumps(answer).encode() + b"\n") == [{"id": 3}]


def test_what_is_not_json_yields_nothing_and_costs_only_itself() -> None:
    assert seen(b"\xff\xfe\n{\n" + b"[" * 5000 + b"\n\n" + b'{"id": 1}\n') == [{"id": 1}]


def test_a_line_of_many_megabytes_is_not_kept() -> None:
    tap = LineTap()
    for _ in range(200):
        assert list(tap.feed(b"x" * 65536)) == []
    assert tap.in_the_middle
    kept = sum(sys.getsizeof(value) for value in vars(tap).values())
    assert kept < 4 * HEAD_BYTES
    assert list(tap.feed(b"\n")) == [] and not tap.in_the_middle
