"""JsonSchemas: right answers on ordinary schemas; hostile ones are refused or answered fast; nothing is fetched."""

from __future__ import annotations

import socket
import time
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_mcp.engines.catalog.preflight import preflight
from omni_mcp.engines.catalog.schemas import MESSAGE_LIMIT, JsonSchemas

BOUND_S = 5.0  # of the processor; what is not bounded takes hours
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "tags": {"type": "array", "items": {"type": "integer"}}},
    "required": ["name"],
    "additionalProperties": False,
}
TREE = {
    "type": "object",
    "properties": {"value": {}, "left": {"$ref": "#"}, "right": {"$ref": "#"}},
    "additionalProperties": False,
}


def deep(schema: Any, depth: int) -> Any:
    for _ in range(depth):
        schema = {"not": schema}
    return schema


def fan_out(width: int, levels: int) -> dict[str, Any]:
    """`width ** levels` alternatives in a small text."""
    definitions = {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * width} for n in range(levels)}
    return {"$ref": "#/$defs/d0", "$defs": {**definitions, f"d{levels}": {"type": "string"}}}


def test_faults_are_named_with_their_path() -> None:
    problems = JsonSchemas().problems(PERSON, {"tags": [1, "x"], "more": 1})
    assert any(p.startswith("$.tags[1]: ") for p in problems)
    assert any(p.startswith("$: ") and "name" in p for p in problems)
    assert any("more" in p for p in problems)
    assert JsonSchemas().problems(PERSON, {"name": "x", "tags": [1]}) == []


def test_a_message_never_repeats_a_value_and_is_short() -> None:
    secret = "hunter2-" + "s" * 5000
    schema = {"properties": {"a": {"type": "integer"}, "b": {"enum": ["x"]}, "c": {"pattern": "^x"}}}
    problems = JsonSchemas().problems(schema, {"a": secret, "b": secret, "c": secret})
    assert len(problems) == 3
    assert "hunter2" not in "".join(problems)
    assert all(len(problem) <= MESSAGE_LIMIT for problem in problems)
    assert all(len(p) <= MESSAGE_LIMIT for p in JsonSchemas().problems({"additionalProperties": False}, {secret: 1}))


def test_at_most_the_asked_number_of_faults_is_returned() -> None:
    assert len(JsonSchemas().problems({"items": {"type": "string"}}, list(range(10_000)), limit=3)) == 3


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "file:///etc/passwd"},
        {"$ref": "other.json"},
        {"properties": {"a": {"$ref": "https://x.test/s"}}},
        {"$ref": "#/nowhere"},
        {"$ref": "#nowhere"},
        {"allOf": [{"$ref": "#"}]},
        {"$ref": "#"},
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        deep({}, 40),
        deep({}, 5000),
        fan_out(10, 9),
        {"anyOf": [{}] * 3000},
        {"type": "strin"},
        {"pattern": "(a"},
        {"$schema": "https://example.test/own-dialect"},
        {"properties": {"a": {"$id": "http://127.0.0.1/x"}}},
        {"properties": []},
        {"items": 5},
        {"pattern": "(?:a{1000}){1000}{100}"},
        {"title": "x" * 2_000_000},
        {"properties": {"a": {"$dynamicRef": "http://127.0.0.1/x"}}},
        {"const": 2**70},
    ],
)
def test_a_hostile_schema_is_refused_fast_and_nothing_fits_it(schema: dict[str, Any]) -> None:
    schemas = JsonSchemas()
    started = time.thread_time()
    assert schemas.refusals(schema)
    assert schemas.problems(schema, {"a": 1})
    assert time.thread_time() - started < BOUND_S


def test_a_reference_opens_no_connection() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        uri = f"http://127.0.0.1:{listener.getsockname()[1]}/schema.json"
        for schema in ({"$ref": uri}, {"$schema": uri}, {"$id": uri, "$ref": "other.json"}, {"$dynamicRef": uri}):
            assert JsonSchemas().problems(schema, 1)
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"pattern": "^(a+)+$"}, "a" * 40 + "!"),
        ({"pattern": "^(?=a)(a|aa|a+)+$"}, "a" * 60 + "!"),
        ({"pattern": r"^(?:(a+)\1?)+$"}, "a" * 60 + "!"),
        ({"pattern": "(?<=a)(.*)*x"}, "a" * 60_000),
        ({"pattern": "(?<=a)(.*)*x"}, "a" * 4_000_000),
        ({"pattern": r"^(?:[ab]{0,200}){0,20}\d"}, "ab" * 2_000_000),
        ({"anyOf": [{"pattern": f"(?<=a)(.*)*x{n}"} for n in range(200)]}, "a" * 60_000),
        ({"uniqueItems": True}, [{"n": n} for n in range(20_000)]),
        (fan_out(10, 4), 5),
        ({"items": {"contains": {"const": 1}}}, [[0] * 1000] * 100),
    ],
)
def test_a_costly_check_is_answered_in_bounded_time(schema: dict[str, Any], value: Any) -> None:
    started = time.thread_time()
    JsonSchemas().problems(schema, value)
    assert time.thread_time() - started < BOUND_S


def test_a_recursive_schema_works_and_its_doubling_twin_is_refused_where_it_would_explode() -> None:
    schemas = JsonSchemas()
    value: dict[str, Any] = {"value": 1}
    for _ in range(30):
        value = {"left": value, "right": {"value": 2}}
    assert schemas.problems(TREE, value) == []

    branch = {"type": "object", "properties": {"next": {"$ref": "#"}}}
    doubling = {"anyOf": [branch, {**branch, "required": ["next"]}]}
    shallow: dict[str, Any] = {}
    for _ in range(5):
        shallow = {"next": shallow}
    assert schemas.problems(doubling, shallow) == []
    bottom: dict[str, Any] = {"next": 5}
    for _ in range(50):
        bottom = {"next": bottom}
    started = time.thread_time()
    assert "too long" in schemas.problems(doubling, bottom)[0]
    assert time.thread_time() - started < BOUND_S


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        (r"^(?=.*[A-Z])(?=.*\d).{8,}$", "Abcdefg1", "abcdefg1"),
        (r"^\p{L}{1,100}$", "Änne", "4nne"),
        (r"^(?!\.)[a-z.]{1,200}$", "a.b", ".b"),
        (r"^[^\s]{1,255}$", "x" * 255, "x" * 256),
    ],
)
def test_ordinary_patterns_with_look_around_or_large_counts_work(pattern: str, good: str, bad: str) -> None:
    assert JsonSchemas().problems({"pattern": pattern}, good) == []
    assert JsonSchemas().problems({"pattern": pattern}, bad)


def test_a_flood_of_schemas_is_forgotten_again_and_still_answered() -> None:
    schemas = JsonSchemas(keep=4)
    for n in range(20):
        assert schemas.problems({"const": n}, n) == []
    assert schemas.problems({"const": 0}, 1)


def test_a_compiled_schema_is_checked_in_microseconds() -> None:
    schemas, value = JsonSchemas(), {"name": "x", "tags": [1, 2]}
    schemas.problems(PERSON, value)
    best = min(_timed(schemas, value) for _ in range(200))
    assert best < 0.0005


def _timed(schemas: JsonSchemas, value: object) -> float:
    started = time.perf_counter()
    schemas.problems(PERSON, value)
    return time.perf_counter() - started


simple = st.recursive(
    st.one_of(
        st.just({}),
        st.sampled_from([{"type": t} for t in ("string", "integer", "object", "array", "null")]),
        st.builds(lambda n: {"minimum": n}, st.integers(-3, 3)),
        st.builds(lambda n: {"minLength": n}, st.integers(0, 3)),
        st.just({"enum": [1, "a", None]}),
    ),
    lambda inner: st.one_of(
        st.builds(lambda a, b: {"anyOf": [a, b]}, inner, inner),
        st.builds(lambda a: {"not": a}, inner),
        st.builds(lambda a: {"items": a}, inner),
        st.builds(lambda a: {"properties": {"k": a}, "required": ["k"]}, inner),
    ),
    max_leaves=6,
)
values = st.recursive(
    st.one_of(st.none(), st.integers(-4, 4), st.text("ab", max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("kj"), inner, max_size=2)),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(schema=simple, value=values)
def test_a_second_validator_agrees(schema: dict[str, Any], value: Any) -> None:
    fits = jsonschema.Draft202012Validator(schema).is_valid(value)
    assert (JsonSchemas().problems(schema, value) == []) == fits


@pytest.mark.long
@settings(max_examples=100, deadline=None)
@given(
    schema=st.recursive(
        values,
        lambda inner: st.dictionaries(
            st.sampled_from(
                ["$ref", "anyOf", "properties", "items", "$defs", "not", "pattern", "type", "$schema", "$id"]
            ),
            inner,
        ),
        max_leaves=10,
    )
)
def test_no_object_makes_the_checker_raise(schema: Any) -> None:
    preflight(schema)
    if isinstance(schema, dict):
        JsonSchemas().problems(schema, {"k": 1})


def test_the_patterns_of_the_bundled_tools_take_values_as_large_as_a_request_may_be() -> None:
    schema = {"properties": {"text": {"type": "string"}, "if_sha256": {"pattern": "^[0-9a-f]{64}$"}}}
    assert JsonSchemas().problems(schema, {"text": "x" * (4 * 1024 * 1024), "if_sha256": "0" * 64}) == []
