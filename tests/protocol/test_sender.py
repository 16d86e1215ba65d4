"""Who waits for an answer to a refused message is found out where it can be, and never guessed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from omni_mcp.protocol.sender import HEAD_BYTES, TAIL_BYTES, Sender, sender_of

LONG = b"x" * (2 * HEAD_BYTES)
LAST = b'{"method":"m","params":{"text":"%s","id":1},"jsonrpc":"2.0","id":%s}'


@pytest.mark.parametrize("id", [0, 7, -3, 2**63, "seven", "", "é", 'with "quotes"', "x" * 1024])
@pytest.mark.parametrize("size", [0, HEAD_BYTES * 2])
def test_the_id_of_a_request_is_found_before_and_behind_what_is_wrong_with_it(id: Any, size: int) -> None:
    params = {"id": "inner", "list": [{"id": 5}], "text": "x" * size, "wide": 10**30}
    for message in (
        {"jsonrpc": "2.0", "id": id, "method": "m", "params": params},
        {"method": "m", "params": params, "id": id, "jsonrpc": "2.0"},
        {"method": "m", "params": params, "jsonrpc": "2.0", "id": id},
    ):
        for separators in ((",", ":"), (" , ", " : ")):
            found = sender_of(json.dumps(message, separators=separators, ensure_ascii=False).encode()).id
            behind = size > 0 and next(iter(message)) == "method"
            assert found == (None if behind and id == 'with "quotes"' else id)


@pytest.mark.parametrize(
    "text",
    [
        b'{"method":"m","id":1,"id":2}', b'{"method":"m","id":1,"id":1}', b'{"method":"m","id":1,"\\u0069d":2}',
        b'{"method":"m","id":null}', b'{"method":"m","id":true}', b'{"method":"m","id":1.0}', b'{"method":"m","id":01}',
        b'{"method":"m","id":{"id":1}}', b'{"method":"m","id":[1]}', b'{"method":"m","id":100000000000000000000}',
        b'{"method":"m","params":{"id":1}}', b'{"method":"m","params":"\\"id\\":1"}', b'{"id":1}',
        b'[{"method":"m","id":1}]', b'"id"', b"", b"{", b"\xff", b'{"method":"m","id":1', b'{"method":"m","id":"1',
        b'{"method":"m","id":"\\ud83d"}', b'{"method":"m","id":"%s"}' % (b"x" * 1025), b"[" * 100_000,
        b'{"method":"m","params":"%s","id":1' % LONG, b'{"method":"m","params":{"a":"%s","id":1}}' % LONG,
        b'{"id":1,"method":"m","params":"%s","id":2}' % LONG,
        b'{"method":"m","params":{"a":1,"id":7}', b'{"method":"m","params":{"a":[1,2,"id":7}',
        b'{"method":"m","params":{"a":[1},"id":7}', b'{"method":"m","params":{"a":{"b":1]},"id":7},"id":1}',
        b'{"method":"m","params":{},"id":4}{"method":"m","id":5}', b'{"method":"m","id":1}}',
        b'{"method":"m","params":{"text":"say "},"id":5,"x":"no"},"id":7}', b'{"method":"m","id":1 2}',
        b'{"method":"m","id":"a" 1}',
    ],
)  # fmt: skip
def test_nobody_is_named_where_it_is_not_certain(text: bytes) -> None:
    assert sender_of(text).id is None


def test_what_is_cut_out_of_the_middle_of_a_message_takes_nothing_from_it() -> None:
    whole = LAST % (LONG, b"7")

    assert sender_of(whole[:HEAD_BYTES], whole[-TAIL_BYTES:]) == Sender(7)


@pytest.mark.parametrize("id", [b"1234567", b'"1234567"', b"1234567 "])
def test_an_id_that_the_cut_goes_through_is_not_half_of_it(id: bytes) -> None:
    before = b'{"params":"%s","id":' % (b"x" * (HEAD_BYTES - 27))
    whole = before + id + b',"method":"m","more":"%s"}' % LONG
    for cut in range(len(before) - 3, len(before) + len(id) + 3):
        found = sender_of(whole[:cut], whole[-TAIL_BYTES:]).id
        assert found in (None, 1234567, "1234567")


def test_an_answer_is_told_from_a_request() -> None:
    assert sender_of(b'{"jsonrpc":"2.0","id":"ask-1","result":{"n":1e999}}') == Sender("ask-1", True)
    assert sender_of(b'{"jsonrpc":"2.0","id":"ask-1","error":{"id":3}}') == Sender("ask-1", True)
