"""The json, text, sql and kv tools: right answers, and every cap reached."""

from __future__ import annotations

import base64
import gzip
import sqlite3
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from failure import ToolFailure
from hypothesis import given, settings
from hypothesis import strategies as st
from sql import query as query_database

from tests.tools.tool_rooms import function_of

json_query, json_validate = function_of("json_tools:json_query"), function_of("json_tools:json_validate")
text_hash, text_encode = function_of("text:text_hash"), function_of("text:text_encode")
sql, kv_get, kv_set = function_of("sql:sql_query"), function_of("kv:kv_get"), function_of("kv:kv_set")

STORE: dict[str, Any] = {  # after the example of RFC 9535, figure 1
    "store": {
        "book": [
            {"category": "reference", "author": "A", "title": "S", "price": 8.95},
            {"category": "fiction", "author": "B", "title": "W", "price": 12.99},
            {"category": "fiction", "author": "C", "title": "M", "isbn": "0-553", "price": 8.99},
            {"category": "fiction", "author": "D", "title": "L", "isbn": "0-395", "price": 22.99},
        ],
        "bicycle": {"color": "red", "price": 399},
    }
}


@pytest.mark.parametrize(
    ("query", "values"),
    [
        ("$.store.book[*].author", ["A", "B", "C", "D"]),
        ("$..author", ["A", "B", "C", "D"]),
        ("$.store..price", [8.95, 12.99, 8.99, 22.99, 399]),
        ("$..book[2].title", ["M"]),
        ("$..book[-1].title", ["L"]),
        ("$..book[0,1].title", ["S", "W"]),
        ("$..book[:2].title", ["S", "W"]),
        ("$..book[::-2].title", ["L", "W"]),
        ("$..book[1:1].title", []),
        ("$..book[::0].title", []),
        ("$..book[?@.isbn].title", ["M", "L"]),
        ("$..book[?!@.isbn].title", ["S", "W"]),
        ("$..book[?@.price<10].title", ["S", "M"]),
        ("$..book[?@.price >= 12.99 && @.category == 'fiction'].title", ["W", "L"]),
        ("$..book[?(@.author == 'A' || @['author'] == \"D\")].title", ["S", "L"]),
        ("$..book[?@.price == $.store.book[0].price].title", ["S"]),
        ("$..book[?@.missing == @.gone].title", ["S", "W", "M", "L"]),
        ("$['store']['bicycle'].color", ["red"]),
        ("$.store.bicycle[?@ == 'red']", ["red"]),
        ("$", [STORE]),
        ("$.nothing", []),
    ],
)
def test_a_query_selects_what_rfc_9535_says(query: str, values: list[Any]) -> None:
    result = json_query({"document": STORE, "query": query, "limit": 100})
    assert [match["value"] for match in result["matches"]] == values


def test_true_is_not_one_and_paths_are_normalized() -> None:
    document = {"it's": [True, 1, "1", None, [1], {"a": 1}]}
    result = json_query({"document": document, "query": '$["it\'s"][?@ == 1]'})
    assert result["matches"] == [{"path": "$['it\\'s'][1]", "value": 1}]
    assert json_query({"document": document, "query": "$.*[?@ == null]"})["count"] == 1


@pytest.mark.parametrize(
    "query",
    [
        "", "store", "$.", "$[", "$['a]", "$[?]", "$[?@.a ==]", "$[?length(@.a) > 1]", "$.a.length()", "$[01]",
        "$[?@..a == 1]",
        "$[-0]", "$.a b", "$[?1]", "$[?@.a == [1]]", "$" + "[?@" * 200, "$" + "." * 2000, "$[?" + "(" * 100, "$['\\x']",
        "$[99999999999999999999]",
    ],
)  # fmt: skip
def test_a_query_that_is_not_understood_is_refused_with_a_reason(query: str) -> None:
    with pytest.raises(ToolFailure):
        json_query({"document": STORE, "query": query})


def test_a_query_that_explodes_is_stopped() -> None:
    document: Any = 1
    for _ in range(12):
        document = [document, document, document]
    with pytest.raises(ToolFailure, match="visits more than"):
        json_query({"document": document, "query": "$..[*]..[*]..[*]..nothing"})


def test_more_matches_than_the_limit_are_cut() -> None:
    result = json_query({"document": list(range(10)), "query": "$[*]", "limit": 3})
    assert (result["count"], result["truncated"]) == (3, True)


def test_validation_lists_each_fault_and_fetches_nothing() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["b"]}
    result = json_validate({"schema": schema, "document": {"a": "x"}})
    assert sorted(error["path"] for error in result["errors"]) == ["$", "$['a']"]
    assert json_validate({"schema": schema, "document": {"b": 1}}) == {"valid": True, "errors": [], "truncated": False}
    assert json_validate({"schema": {"items": False}, "document": [1] * 50, "limit": 2})["truncated"]
    for reference in ("http://127.0.0.1:9/x", "file:///etc/passwd"):
        with pytest.raises(ToolFailure, match="cannot be used"):
            json_validate({"schema": {"$ref": reference}, "document": 1})
    with pytest.raises(ToolFailure, match="cannot be used"):
        json_validate({"schema": {"type": "nonsense"}, "document": 1})


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=300), form=st.sampled_from(["base64", "base64url", "hex", "url", "gzip"]))
def test_what_is_encoded_decodes_to_itself(data: bytes, form: str) -> None:
    encoded = text_encode({"form": form, "base64": base64.b64encode(data).decode()})["text"]
    decoded = text_encode({"form": form, "direction": "decode", "text": encoded})
    assert (decoded["text"].encode() if "text" in decoded else base64.b64decode(decoded["base64"])) == data


def test_a_gzip_bomb_is_stopped_at_the_limit() -> None:
    bomb = base64.b64encode(gzip.compress(b"\0" * 50_000_000)).decode()
    tracemalloc.start()
    try:
        with pytest.raises(ToolFailure, match="larger than"):
            text_encode({"form": "gzip", "direction": "decode", "text": bomb})
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("form", "text"),
    [("base64", "a"), ("hex", "xyz"), ("gzip", "AAAA"), ("base64url", "***"), ("url", "é"),
     ("gzip", base64.b64encode(gzip.compress(b"abc", mtime=0)[:-3]).decode())],
)  # fmt: skip
def test_what_cannot_be_decoded_is_refused(form: str, text: str) -> None:
    with pytest.raises(ToolFailure, match=f"not {form}"):
        text_encode({"form": form, "direction": "decode", "text": text})


def test_exactly_one_input_is_taken() -> None:
    for arguments in ({}, {"text": "a", "base64": "YQ=="}):
        with pytest.raises(ToolFailure, match="exactly one"):
            text_hash(arguments)


@pytest.fixture
def shop(workspace: Path) -> Path:
    database = sqlite3.connect(workspace / "shop.db")
    database.execute("CREATE TABLE item (name TEXT, price REAL, picture BLOB)")
    database.executemany("INSERT INTO item VALUES (?, ?, ?)", [("pen", 1.5, b"\xff"), ("ink", 9.0, None)])
    database.commit()
    database.close()
    return workspace


def test_a_select_returns_rows_and_blobs_as_base64(shop: Path) -> None:
    result = sql({"path": "shop.db", "sql": "SELECT * FROM item WHERE price < :p", "parameters": {"p": 5}})
    assert result["rows"] == [["pen", 1.5, {"base64": "/w=="}]]
    assert sql({"path": "shop.db", "sql": "SELECT name FROM item", "max_rows": 1})["truncated"]


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM item", "INSERT INTO item VALUES (1,2,3)", "DROP TABLE item", "CREATE TABLE x (a)", "VACUUM",
        "ATTACH 'other.db' AS o", "PRAGMA journal_mode=WAL", "PRAGMA writable_schema=1", "SELECT load_extension('x')",
        "BEGIN", "SELECT 1; DROP TABLE item", "CREATE TEMP TABLE t AS SELECT 1", "nonsense", "VACUUM INTO 'copy.db'",
        "PRAGMA database_list", "SELECT file FROM pragma_database_list",
    ],
)  # fmt: skip
def test_whatever_is_not_a_select_is_refused_and_changes_nothing(shop: Path, statement: str) -> None:
    before = (shop / "shop.db").read_bytes()
    with pytest.raises(ToolFailure):
        sql({"path": "shop.db", "sql": statement})
    assert (shop / "shop.db").read_bytes() == before
    assert [path.name for path in shop.iterdir()] == ["shop.db"]


def test_rows_are_cut_at_their_size(shop: Path) -> None:
    result = sql({
        "path": "shop.db", "max_rows": 10_000,
        "sql": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i, hex(zeroblob(500)) FROM n",
    })  # fmt: skip
    assert result["truncated"]
    assert len(str(result["rows"])) < 600 * 1024


def test_a_query_without_end_is_stopped(shop: Path) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT sum(i) FROM n"
    with pytest.raises(ToolFailure, match=r"longer than 0\.2 s"):
        query_database("shop.db", endless, [], max_rows=1, deadline_s=0.2)


def test_a_file_that_is_no_database_or_is_a_link_is_refused(shop: Path) -> None:
    (shop / "text.db").write_text("hello")
    (shop / "link.db").symlink_to(shop / "shop.db")
    for path in ("text.db", "link.db", "../outside.txt", "missing.db", "."):
        with pytest.raises(ToolFailure):
            sql({"path": path, "sql": "SELECT 1"})


def test_a_value_survives_the_call_and_namespaces_do_not_mix(workspace: Path) -> None:
    assert kv_get({"key": "k"}) == {"found": False, "version": 0}
    assert kv_set({"key": "k", "value": {"a": [1, None]}}) == {"stored": True, "version": 1}
    assert kv_get({"key": "k"}) == {"found": True, "value": {"a": [1, None]}, "version": 1}
    assert not kv_get({"key": "k", "namespace": "other"})["found"]


def test_compare_and_set_lets_one_of_many_win(workspace: Path) -> None:
    wins: list[bool] = []

    def race() -> None:
        wins.append(kv_set({"key": "k", "value": 1, "if_version": 0})["stored"])

    racers = [threading.Thread(target=race) for _ in range(8)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert sorted(wins) == [False] * 7 + [True]
    assert kv_set({"key": "k", "value": 2, "if_version": 7}) == {"stored": False, "version": 1}


def test_an_expired_value_is_gone_and_a_deleted_one_too(workspace: Path) -> None:
    kv_set({"key": "short", "value": 1, "ttl_s": 1e-9})
    assert not kv_get({"key": "short"})["found"]
    kv_set({"key": "long", "value": 1, "ttl_s": 100})
    assert 90 < kv_get({"key": "long"})["expires_in_s"] <= 100
    assert kv_set({"key": "long", "delete": True})["stored"]
    assert kv_set({"key": "long", "delete": True})["stored"] is False
    assert not kv_get({"key": "long"})["found"]


def test_values_keys_and_the_whole_store_have_limits(workspace: Path) -> None:
    with pytest.raises(ToolFailure, match="at most 65536"):
        kv_set({"key": "k", "value": "x" * 65536})
    with pytest.raises(ToolFailure, match="value, or delete"):
        kv_set({"key": "k"})
    kv_set({"key": "k", "value": 1})
    database = sqlite3.connect(workspace / "kv.sqlite")
    database.executemany("INSERT INTO kv VALUES ('n', ?, '1', 1, NULL)", [(str(n),) for n in range(9_999)])
    database.commit()
    database.close()
    with pytest.raises(ToolFailure, match="full"):
        kv_set({"key": "one more", "value": 1})
    kv_set({"key": "k", "value": 2})  # replacing one is still possible
