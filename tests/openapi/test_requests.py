"""Each argument is written as the style of its parameter says, and each body as its media type says.

Sources: OpenAPI 3.1.1, 4.8.12.4 (examples of styles); RFC 6570, 3.2; RFC 7578.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from tests.openapi.world import PETSTORE, source_of
from tests.openapi.written import plan_with, plans_of, write

LIST = ["blue", "black", "brown"]
MAP = {"R": 100, "G": 200, "B": 150}

STYLES: list[tuple[str, str, bool | None, Any, str]] = [
    ("path", "simple", None, "blue", "/x/blue"),
    ("path", "simple", False, LIST, "/x/blue,black,brown"),
    ("path", "simple", True, LIST, "/x/blue,black,brown"),
    ("path", "simple", False, MAP, "/x/R,100,G,200,B,150"),
    ("path", "simple", True, MAP, "/x/R=100,G=200,B=150"),
    ("path", "label", None, "blue", "/x/.blue"),
    ("path", "label", False, LIST, "/x/.blue,black,brown"),
    ("path", "label", True, LIST, "/x/.blue.black.brown"),
    ("path", "label", False, MAP, "/x/.R,100,G,200,B,150"),
    ("path", "label", True, MAP, "/x/.R=100.G=200.B=150"),
    ("path", "matrix", None, "blue", "/x/;color=blue"),
    ("path", "matrix", False, "", "/x/;color"),
    ("path", "matrix", False, LIST, "/x/;color=blue,black,brown"),
    ("path", "matrix", True, LIST, "/x/;color=blue;color=black;color=brown"),
    ("path", "matrix", False, MAP, "/x/;color=R,100,G,200,B,150"),
    ("path", "matrix", True, MAP, "/x/;R=100;G=200;B=150"),
    ("query", "form", None, "blue", "/x?color=blue"),
    ("query", "form", None, "", "/x?color="),
    ("query", "form", None, LIST, "/x?color=blue&color=black&color=brown"),
    ("query", "form", False, LIST, "/x?color=blue,black,brown"),
    ("query", "form", None, MAP, "/x?R=100&G=200&B=150"),
    ("query", "form", False, MAP, "/x?color=R,100,G,200,B,150"),
    ("query", "form", None, [], "/x"),
    ("query", "form", None, None, "/x"),
    ("query", "spaceDelimited", None, LIST, "/x?color=blue%20black%20brown"),
    ("query", "spaceDelimited", False, MAP, "/x?color=R%20100%20G%20200%20B%20150"),
    ("query", "pipeDelimited", None, LIST, "/x?color=blue%7Cblack%7Cbrown"),
    ("query", "pipeDelimited", False, MAP, "/x?color=R%7C100%7CG%7C200%7CB%7C150"),
    ("query", "deepObject", None, MAP, "/x?color%5BR%5D=100&color%5BG%5D=200&color%5BB%5D=150"),
    ("query", "deepObject", True, {"a": {"b": 1}, "c": [1, 2]},
     "/x?color%5Ba%5D%5Bb%5D=1&color%5Bc%5D=1&color%5Bc%5D=2"),
    ("query", "form", None, True, "/x?color=true"),
    ("query", "form", None, 1.5, "/x?color=1.5"),
    ("query", "form", None, "a b&c=d#e/f?g+h%i", "/x?color=a%20b%26c%3Dd%23e%2Ff%3Fg%2Bh%25i"),
    ("query", "form", None, "ünï", "/x?color=%C3%BCn%C3%AF"),
]  # fmt: skip


def parameter(where: str, style: str, explode: bool | None, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"name": "color", "in": where, "style": style, "schema": {}, **more}
    return (
        found | ({"explode": explode} if explode is not None else {}) | ({"required": True} if where == "path" else {})
    )


def test_every_style_of_a_path_or_query_is_written_as_the_specification_shows(tmp_path: Path) -> None:
    cases = [
        (plan_with(tmp_path, parameter(where, style, explode), path="/x/{color}" if where == "path" else "/x"),
         {"color": value})
        for where, style, explode, value, _ in STYLES
    ]  # fmt: skip
    found = [one.error or one.target for one in write(cases)]
    assert found == [f"/v1{target}" for *_, target in STYLES]


@pytest.mark.parametrize(
    ("style", "explode", "value", "header"),
    [
        ("simple", None, "blue", "blue"), ("simple", None, 5, "5"), ("simple", None, LIST, "blue,black,brown"),
        ("simple", False, MAP, "R,100,G,200,B,150"), ("simple", True, MAP, "R=100,G=200,B=150"),
        ("simple", None, 'W/"a b"', 'W/"a b"'),
    ],
)  # fmt: skip
def test_headers_are_written_as_they_are(
    tmp_path: Path, style: str, explode: bool | None, value: Any, header: str
) -> None:
    plan = plan_with(tmp_path, parameter("header", style, explode))
    (found,) = write([(plan, {"color": value})])
    assert (found.headers.get("color"), found.error) == (header, "")


@pytest.mark.parametrize(
    ("explode", "value", "cookie"),
    [
        (None, "blue", "color=blue"), (False, LIST, "color=blue,black,brown"),
        (None, LIST, "color=blue; color=black; color=brown"), (False, {"a": 1}, "color=a,1"),
        (None, "a; admin=1\r\nX: y", "color=a%3B%20admin%3D1%0D%0AX%3A%20y"),
    ],
)  # fmt: skip
def test_cookies_are_percent_encoded_and_join_in_one_header(
    tmp_path: Path, explode: bool | None, value: Any, cookie: str
) -> None:
    session = {"name": "session", "in": "cookie", "schema": {}}
    plan = plan_with(tmp_path, parameter("cookie", "form", explode), session)
    (found,) = write([(plan, {"color": value, "session": 7})])
    assert found.headers["cookie"] == f"{cookie}; session=7"


def test_a_parameter_with_content_is_written_as_json(tmp_path: Path) -> None:
    content = {"application/json": {"schema": {"type": "object"}}}
    plan = plan_with(tmp_path, {"name": "filter", "in": "query", "content": content})
    (found,) = write([(plan, {"filter": {"a": [1, "x&y"]}})])
    assert found.target == "/v1/x?filter=%7B%22a%22%3A%5B1%2C%22x%26y%22%5D%7D"


def test_reserved_characters_stay_where_the_document_allows_them_but_none_ends_the_value(tmp_path: Path) -> None:
    plan = plan_with(tmp_path, parameter("query", "form", None, allowReserved=True))
    (found,) = write([(plan, {"color": "a/b:c?d,e;f@g&h=i#j[k]l+m"})])
    assert found.target == "/v1/x?color=a/b:c?d,e;f@g%26h%3Di%23j%5Bk%5Dl%2Bm"


def test_arguments_of_odd_or_equal_names_find_the_way_to_their_parameters(tmp_path: Path) -> None:
    plan = plan_with(
        tmp_path, {"name": "id", "in": "path", "required": True, "schema": {}},
        {"name": "id", "in": "query", "schema": {}},
        {"name": "filter[name]", "in": "query", "schema": {}}, {"name": "$top", "in": "query", "schema": {}},
        path="/x/{id}",
    )  # fmt: skip
    (found,) = write([(plan, {"id_path": 1, "id_query": 2, "filter_name": "n", "top": 3})])
    assert found.target == "/v1/x/1?id=2&filter%5Bname%5D=n&%24top=3"


@pytest.mark.parametrize(
    ("media", "schema", "value", "sent"),
    [
        ("application/json", {}, {"a": ["ü", None]}, '{"a":["ü",null]}'),
        ("application/vnd.x+json; charset=utf-8", {}, [1], "[1]"),
        ("*/*", {}, "x", '"x"'),
        ("text/plain", {"type": "string"}, "two\nlines", "two\nlines"),
        ("application/xml", {}, "<a/>", "<a/>"),
        ("application/octet-stream", {}, base64.b64encode(b"\x00\xff").decode(), "\x00\xff"),
    ],
)
def test_a_body_is_sent_as_its_media_type(tmp_path: Path, media: str, schema: Any, value: Any, sent: str) -> None:
    plan = plan_with(tmp_path, method="post", requestBody={"content": {media: {"schema": schema}}})
    (found,) = write([(plan, {"body": value})])
    assert found.headers["content-type"] == (media if media != "*/*" else "application/json")
    assert found.body.encode("latin-1") == (sent.encode("latin-1") if "octet" in media else sent.encode())


def test_a_form_is_percent_encoded_and_its_lists_repeat(tmp_path: Path) -> None:
    properties = {"a": {}, "list": {"type": "array"}, "packed": {"type": "array"}, "deep": {"type": "object"}}
    encoding = {"packed": {"explode": False}, "deep": {"style": "deepObject"}}
    content = {"application/x-www-form-urlencoded": {"schema": {"properties": properties}, "encoding": encoding}}
    plan = plan_with(tmp_path, method="post", requestBody={"content": content})
    given = {"a": "x&y=z +", "list": [1, 2], "packed": ["p", "q"], "deep": {"k": "v"}, "other": {"j": 1}, "none": None}
    (found,) = write([(plan, {"body": given})])
    assert found.headers["content-type"] == "application/x-www-form-urlencoded"
    assert found.body == "a=x%26y%3Dz+%2B&list=1&list=2&packed=p,q&deep%5Bk%5D=v&other=%7B%22j%22%3A1%7D"


def test_a_multipart_form_has_a_part_for_each_value_and_bytes_as_a_file(tmp_path: Path) -> None:
    source = source_of(tmp_path, PETSTORE)
    entry = next(entry for entry in source.load() if entry.name == "addPhoto")
    body = {
        "caption": "a\r\nb",
        "file": base64.b64encode(b"\x89PNG").decode(),
        "tags": ["x", "y"],
        'odd"\r\n': {"j": 1},
    }
    (found,) = write([(source.plan_of(entry) or {}, {"petId": "1", "body": body})])
    boundary = found.headers["content-type"].removeprefix("multipart/form-data; boundary=")
    first, *parts, last = found.body.split(f"--{boundary}")
    assert (first, last) == ("", "--\r\n")
    assert [part.removesuffix("\r\n").removeprefix("\r\nContent-Disposition: form-data; ") for part in parts] == [
        'name="caption"\r\n\r\na\r\nb',
        'name="file"; filename="file"\r\nContent-Type: image/png\r\n\r\n\x89PNG',
        'name="tags"\r\n\r\nx', 'name="tags"\r\n\r\ny',
        'name="odd%22%0D%0A"\r\nContent-Type: application/json\r\n\r\n{"j":1}',
    ]  # fmt: skip


def test_json_is_chosen_where_several_media_types_are_taken(tmp_path: Path) -> None:
    content: dict[str, Any] = {
        "application/xml": {},
        "multipart/form-data": {"schema": {"properties": {}}},
        "application/json": {},
    }
    plans = plans_of(tmp_path, {"/x": {"post": {"requestBody": {"content": content}}}})
    assert [plan["body"]["media"] for plan in plans.values()] == ["application/json"]


def test_what_cannot_be_written_is_said_and_not_guessed(tmp_path: Path) -> None:
    path, query = parameter("path", "simple", None), parameter("query", "form", None)
    tries: list[tuple[Any, Any, str]] = [
        (plan_with(tmp_path, path, path="/x/{color}"), {}, "is missing"),
        (plan_with(tmp_path, path, path="/x/{color}"), {"color": None}, "is missing"),
        (plan_with(tmp_path, query), {"color": [[1]]}, "list or object"),
        (plan_with(tmp_path, query), {"color": {"a": {"b": 1}}}, "list or object"),
        (plan_with(tmp_path, query), {"color": [None]}, "null"),
        (plan_with(tmp_path, query), {"color": "\ud800"}, "surrogate"),
        (plan_with(tmp_path, query), {"color": "x" * 5000}, "4096"),
        (plan_with(tmp_path, parameter("query", "deepObject", None)), {"color": {"a][b": 1}}, "brackets"),
        (plan_with(tmp_path, parameter("cookie", "form", True)), {"color": {"a": 1}}, "cookies"),
        (plan_with(tmp_path, method="post", requestBody={"content": {"image/png": {}}}), {"body": "%%"}, "base64"),
        (plan_with(tmp_path, method="post", requestBody={"content": {"text/plain": {}}}), {"body": {}}, "text"),
    ]
    found = write([(plan, json.loads(json.dumps(arguments))) for plan, arguments, _ in tries])
    assert [(word in one.error, one.url) for one, (*_, word) in zip(found, tries, strict=True)] == [(True, "")] * len(
        tries
    )
