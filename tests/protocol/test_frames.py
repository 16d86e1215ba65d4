"""Bytes that two parsers could read differently are refused; everything else is read exactly."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_mcp.protocol.frames import (
    LARGE_BYTES,
    VALUES_LIMIT,
    BadFrame,
    Notification,
    Request,
    Response,
    frame_of,
    parse,
)

GOOD = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'


def code_of(data: bytes) -> tuple[int, str]:
    with pytest.raises(BadFrame) as refused:
        frame_of(parse(data))
    return refused.value.code, refused.value.reason


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not_json"),
        (b"{", "not_json"),
        (b'{"a":1,}', "not_json"),
        (b"NaN", "not_json"),
        (b'{"a":Infinity}', "not_json"),
        (b'{"a":1e400}', "not_json"),
        (b'{"a":' + b"9" * 5000 + b"}", "not_json"),
        (b'"\\ud800"', "not_json"),
        (b'"\xff"', "not_json"),
        (b'"\xed\xa0\x80"', "not_json"),
        (b"\xef\xbb\xbf" + GOOD, "not_json"),
        (GOOD.decode().encode("utf-16"), "not_json"),
        (b'{"a":1} {"a":2}', "not_json"),
        (b'{"a":1,"a":2}', "duplicate_key"),
        (b'{"a":1,"\\u0061":2}', "duplicate_key"),
        (b'{"x":{"a":":","a":":"}}', "duplicate_key"),
        (b'[{"b":"\\u003a","b":1}]', "duplicate_key"),
        (b'{"a:b":1,"a\\u003ab":2}', "duplicate_key"),
        (b'{"":1,"":2}', "duplicate_key"),
        (b'{"a":1,"a":2,"pad":"\\u003a"}', "duplicate_key"),
        (b'{"a":{"b":1},"a":2,"pad":"\\u003A\\u003a"}', "duplicate_key"),
        (b'{"a":1,"a":2,"pad":"\\\\\\u003a"}', "duplicate_key"),
        (b'{"a":"x:y","a":2,"pad":"\\u003a\\u003a"}', "duplicate_key"),
        (b'{"a":18446744073709551616}', "number_range"),
        (b'{"a":-9223372036854775809}', "number_range"),
        (b"[" * 65 + b"]" * 65, "too_deep"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "too_deep"),
        (b"[" * 200_000, "not_json"),
        (b'[{"":' * 50_000, "not_json"),
        (b" " * (4 * 1024 * 1024 + 1), "too_large"),
    ],
)  # fmt: skip
def test_bytes_that_are_no_unambiguous_json_are_a_parse_error(data: bytes, reason: str) -> None:
    assert code_of(data) == (-32700, reason)


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":"::","b":{"c:d":":"}}',
        b'{"a":"\\u003a\\u003A"}',
        b'{"a":"\\\\u003a","b\\u003a":"\\\\\\u003a"}',
        b'{"a":18446744073709551615,"b":-9223372036854775808,"c":1e300,"d":1e19}',
        b"[" * 64 + b"1" + b"]" * 64,
        b"[" * 64 + b"]" * 64,
        b'{"a":[{"a":1},{"a":2}]}',
        '{"ä:ö":"\U0001f600:"}'.encode(),
    ],
)
def test_what_is_odd_but_unambiguous_is_taken(data: bytes) -> None:
    assert parse(data) == json.loads(data)


@given(st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(alphabet=st.characters(codec="utf-8"))
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: (st.lists(inner, max_size=4)
                   | st.dictionaries(st.text(alphabet="a:\\\"é", max_size=3), inner, max_size=4)),
    max_leaves=20,
), st.booleans())  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_every_json_value_is_read_as_the_standard_library_reads_it(value: Any, escaped: bool) -> None:
    assert parse(json.dumps(value, ensure_ascii=escaped).encode()) == value


@given(
    st.dictionaries(st.text(alphabet='ab:\\"', max_size=3), st.text(":x", max_size=3), min_size=1, max_size=4),
    st.data(),
)
@settings(max_examples=200, deadline=None)
def test_a_repeated_key_is_found_wherever_it_stands(members: dict[str, str], data: st.DataObject) -> None:
    again = data.draw(st.sampled_from(sorted(members)))
    pairs = [*members.items(), (again, "other")]
    text = ",".join(f"{json.dumps(key)}:{json.dumps(value)}" for key, value in pairs)
    with pytest.raises(BadFrame) as refused:
        parse(b'[{"k":[{' + text.encode() + b"}]}]")
    assert refused.value.reason == "duplicate_key"


CHARACTERS = {"a": ["a", "\\u0061"], ":": [":", "\\u003a", "\\u003A"], '"': ['\\"', "\\u0022"],
              "\\": ["\\\\", "\\u005c"], ",": [","], "{": ["{"], "u003a": ["u003a"]}  # fmt: skip
WRITTEN = st.lists(st.sampled_from([way for ways in CHARACTERS.values() for way in ways]), max_size=3).map(
    lambda ways: f'"{"".join(ways)}"'
)
TEXTS = st.recursive(
    WRITTEN | st.sampled_from(["1", "true", "1e19"]),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda found: "[" + " ,".join(found) + "]")
        | st.lists(st.tuples(WRITTEN, inner), max_size=4).map(
            lambda found: "{" + ",".join(f"{key} :{value}" for key, value in found) + "}"
        )
    ),
    max_leaves=12,
)


class Repeated(Exception):
    """What the exact reading below says."""


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise Repeated
    return dict(pairs)


@given(TEXTS)
@settings(max_examples=600, deadline=None)
def test_a_key_counts_as_repeated_exactly_where_an_exact_reading_says_so(text: str) -> None:
    """Escaped colons, quotes and backslashes in keys and values, at any depth, beside any repetition."""
    try:
        wanted = json.loads(text, object_pairs_hook=unique)
    except Repeated:
        assert code_of(text.encode()) == (-32700, "duplicate_key")
    else:
        assert parse(text.encode()) == wanted


@given(TEXTS, st.integers(1, 6))
@settings(max_examples=300, deadline=None)
def test_no_number_of_escaped_colons_hides_a_repeated_key(text: str, colons: int) -> None:
    padded = f'{{"k":{text},"k":1,"pad":"{chr(92)}{"u003a" + (chr(92) + "u003A") * (colons - 1)}"}}'
    assert code_of(padded.encode()) == (-32700, "duplicate_key")


def small(values: int, one: bytes) -> bytes:
    """A list, which is a value too, that makes *values* of them in all."""
    return b"[" + b",".join([one] * (values - 1)) + b"]"


@pytest.mark.parametrize("one", [b"0", b"{}", b"[]", b'""', b'",[{"', b'"\\","'])
def test_a_message_holds_as_many_values_as_the_limit_and_not_one_more(one: bytes) -> None:
    assert len(parse(small(VALUES_LIMIT, one))) == VALUES_LIMIT - 1
    assert code_of(small(VALUES_LIMIT + 1, one)) == (-32700, "too_many_values")


@pytest.mark.parametrize(
    "data",
    [small(1_900_000, b"0"), small(1_300_000, b"{}"), small(470_000, b'{"a":0}'), small(1_000_000, b'""'),
     b'{"a":' + small(1_000_000, b"0") + b',"a":1}', b'{"a":[' + b",".join([b'"\\u003a"'] * 300_000) + b']}'],
    ids=["numbers", "objects", "members", "strings", "hidden", "escapes"],
)  # fmt: skip
def test_a_large_message_of_small_values_is_refused_before_it_is_parsed(data: bytes) -> None:
    """Cutting off its end would make it no JSON, which only a parser can tell: so nothing was parsed."""
    assert code_of(data) == (-32700, "too_many_values")
    assert code_of(data[:-1]) == (-32700, "too_many_values")


def test_a_large_text_full_of_punctuation_is_one_value() -> None:
    text = ',[{":' * 200_000
    assert len(text) > LARGE_BYTES
    assert parse(json.dumps({"csv": text}).encode()) == {"csv": text}


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ([], "not_an_object"),
        (1, "not_an_object"),
        ({"id": 1, "method": "ping"}, "no_version"),
        ({"jsonrpc": 2.0, "id": 1, "method": "ping"}, "no_version"),
        ({"jsonrpc": "1.0", "id": 1, "method": "ping"}, "no_version"),
        ({"jsonrpc": "2.0", "id": None, "method": "ping"}, "bad_id"),
        ({"jsonrpc": "2.0", "id": True, "method": "ping"}, "bad_id"),
        ({"jsonrpc": "2.0", "id": 1.5, "method": "ping"}, "bad_id"),
        ({"jsonrpc": "2.0", "id": {}, "method": "ping"}, "bad_id"),
        ({"jsonrpc": "2.0", "id": "x" * 257, "method": "ping"}, "bad_id"),
        ({"jsonrpc": "2.0", "id": 1}, "no_method"),
        ({"jsonrpc": "2.0", "id": 1, "method": None}, "bad_method"),
        ({"jsonrpc": "2.0", "id": 1, "method": ""}, "bad_method"),
        ({"jsonrpc": "2.0", "id": 1, "method": "m" * 129}, "bad_method"),
        ({"jsonrpc": "2.0", "id": 1, "method": "ping", "result": {}}, "mixed"),
        ({"jsonrpc": "2.0", "id": 1, "result": {}, "error": {}}, "no_method"),
        ({"jsonrpc": "2.0", "id": 1, "result": 5}, "bad_answer"),
        ({"jsonrpc": "2.0", "result": {}}, "bad_id"),
        ({"jsonrpc": "2.0", "id": None, "result": {}}, "bad_id"),
    ],
)
def test_an_envelope_that_is_not_json_rpc_is_an_invalid_request(message: Any, reason: str) -> None:
    assert code_of(json.dumps(message).encode()) == (-32600, reason)


@pytest.mark.parametrize("params", [[], "x", None, 1])
def test_params_that_are_no_object_are_invalid_params_with_the_id(params: Any) -> None:
    with pytest.raises(BadFrame) as refused:
        frame_of({"jsonrpc": "2.0", "id": 7, "method": "ping", "params": params})
    assert (refused.value.code, refused.value.id) == (-32602, 7)


def read(data: bytes) -> Request | Notification | Response:
    return frame_of(parse(data))


def test_requests_notifications_and_answers_are_told_apart() -> None:
    assert read(b'{"jsonrpc":"2.0","id":"a","method":"m","params":{"x":1},"other":1}') == Request("a", "m", {"x": 1})
    assert read(b'{"jsonrpc":"2.0","method":"m"}') == Notification("m", {})
    assert read(b'{"jsonrpc":"2.0","id":0,"result":{}}') == Response(0, result={})
    assert read(b'{"jsonrpc":"2.0","id":null,"error":{"code":1}}') == Response("", error={"code": 1})
