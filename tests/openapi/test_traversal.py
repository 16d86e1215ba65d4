"""No argument leaves its place: not its path segment, not its query value, not its header, not its cookie.

What a server might make of a path is judged here by a reading of the tests, not by the code under test.
"""

from __future__ import annotations

import itertools
import unicodedata
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from omni_mcp.contracts.json import JsonObject
from tests.openapi.written import plan_with, write

STEPS = [
    "..",
    ".",
    "",
    " ",
    "..;",
    "..;x=1",
    ";",
    "\u2025",
    "\uff0e\uff0e",
    "%2e%2e",
    "%2E.",
    "%252e%252e",
    "..%00",
    "%2525252e%2e",
]
SLASHES = [
    "/",
    "\\",
    "%2f",
    "%2F",
    "%5c",
    "%252f",
    "%25252F",
    "\uff0f",
    "\u2215",
    "%c0%af",
    "%u002f",
    "%00/",
    "//",
    "/\t/",
]
GOALS = ["etc", "admin", "", "..", "@evil.example", "?x=1", "#x", "http:%2f%2fevil.example"]
FALSE_FRIENDS = [
    "a.b",
    "..a",
    "a..",
    "...",
    "100%",
    "50%25",
    "a b",
    "a+b",
    "ü",
    "日本",
    "a@b:c",
    "~x",
    "$1!*'()",
    "a;b",
    "?x=1",
    "#x",
]


def attempts() -> list[str]:
    """Return every combination of a step, a slash and a goal, and each of the first two alone."""
    combined = [step + slash + goal for step, slash, goal in itertools.product(STEPS, SLASHES, GOALS)]
    return list(dict.fromkeys([*STEPS, *SLASHES, *combined, *(f"x{slash}{goal}" for slash in SLASHES for goal in GOALS),
                               "\x00", "a\x00b", "a\r\nb", "\x7f", "%0d%0aX: y", "%00", "%7f"]))  # fmt: skip


PLACE: dict[str, Any] = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}


def file_plan(tmp_path: Path, **more: Any) -> JsonObject:
    return plan_with(tmp_path, {**PLACE, **more}, path="/files/{name}/meta")


@pytest.mark.parametrize("style", ["simple", "label"])
def test_no_text_leaves_its_path_segment(tmp_path: Path, style: str) -> None:
    plan, tries = file_plan(tmp_path, style=style), attempts()
    assert len(tries) > 1500
    found = write([(plan, {"name": text}) for text in tries])
    assert [text for text, one in zip(tries, found, strict=True) if one.url and not _is_harmless(one.url)] == []
    assert sum(not one.url for one in found) > 1400, "most of them are to be refused outright"


def _is_harmless(url: str) -> bool:
    """What was let through must read as one segment even for servers that decode it once; no dots, no separator."""
    segment = urllib.parse.urlsplit(url).path.removeprefix("/v1/files/").removesuffix("/meta")
    whole = url == f"https://odd.example/v1/files/{segment}/meta"
    texts = {segment}
    for _ in range(8):
        texts |= {urllib.parse.unquote(text, errors="replace") for text in texts}
    texts |= {unicodedata.normalize("NFKC", text) for text in texts}
    bad = any(
        "%u" in text or set("/\\\x00\r\n\t") & set(text) or text.split(";")[0].strip() in ("", ".", "..")
        for text in texts
    )
    return whole and segment != "" and not bad


@pytest.mark.parametrize("shape", ["list", "map key", "map value"])
@pytest.mark.parametrize("explode", [True, False])
def test_nor_does_one_within_a_list_or_an_object(tmp_path: Path, shape: str, explode: bool) -> None:
    plan, tries = (
        file_plan(tmp_path, schema={}, explode=explode),
        [text for text in attempts() if "/" in text or "\\" in text],
    )
    shapes: dict[str, Callable[[str], Any]] = {
        "list": lambda t: ["a", t],
        "map key": lambda t: {t: 1},
        "map value": lambda t: {"a": t},
    }
    found = write([(plan, {"name": shapes[shape](text)}) for text in tries])
    assert [one.url for one in found if one.url] == []


def test_a_segment_of_several_parameters_is_judged_as_a_whole(tmp_path: Path) -> None:
    two = [{**PLACE, "name": name} for name in ("a", "b")]
    plan = plan_with(tmp_path, *two, path="/x/{a}{b}/y")
    tries = [(".", "."), ("", "."), ("%2", "e."), ("%2e", "."), ("%2", "f"), ("", ""), (".", "%2e")]
    found = write([(plan, {"a": a, "b": b}) for a, b in tries])
    assert [one.url for one in found if one.url] == []


def test_the_last_segment_is_not_empty_either(tmp_path: Path) -> None:
    plan = plan_with(tmp_path, {**PLACE}, path="/files/{name}")
    empty: list[Any] = ["", " ", "%20", [], {}]
    assert [one.url for one in write([(plan, {"name": text}) for text in empty])] == [""] * 5


def test_what_is_harmless_is_let_through_and_arrives_as_it_is(tmp_path: Path) -> None:
    plan = file_plan(tmp_path)
    found = write([(plan, {"name": text}) for text in FALSE_FRIENDS])
    segments = [one.url.removeprefix("https://odd.example/v1/files/").removesuffix("/meta") for one in found]
    assert [urllib.parse.unquote(segment) for segment in segments] == FALSE_FRIENDS


def test_no_text_leaves_its_query_value(tmp_path: Path) -> None:
    for style, reserved in (("form", False), ("form", True), ("pipeDelimited", False), ("deepObject", False)):
        one = {"name": "q", "in": "query", "schema": {}, "style": style, "allowReserved": reserved}
        plan = plan_with(tmp_path, one, {"name": "other", "in": "query", "schema": {}})
        tries = [
            *attempts()[::7],
            "a&other=evil",
            "a#b",
            "a&&other[]=x",
            "a\r\nHost: evil",
            "a;other=1",
            "+",
            "a=b",
            "%26other=1",
        ]
        wrap = (lambda text: {"k": text}) if style == "deepObject" else (lambda text: text)
        for text, found in zip(
            tries, write([(plan, {"q": wrap(text), "other": "mine"}) for text in tries]), strict=True
        ):
            parts = urllib.parse.urlsplit(found.url)
            assert (parts.netloc, parts.path, parts.fragment) == ("odd.example", "/v1/x", ""), (text, found)
            name = "q[k]" if style == "deepObject" else "q"
            assert urllib.parse.parse_qs(parts.query, keep_blank_values=True) == {name: [text], "other": ["mine"]}, (
                found
            )


def test_the_keys_of_an_object_take_no_other_parameters_place(tmp_path: Path) -> None:
    exploded = {"name": "q", "in": "query", "schema": {"type": "object"}}
    plan = plan_with(tmp_path, exploded, {"name": "admin", "in": "query", "schema": {}})
    found = write([(plan, {"q": {"admin": "1"}}), (plan, {"q": {"a&admin": "1"}}), (plan, {"q": {"a": "1&admin=1"}})])
    assert "parameter of its own" in found[0].error
    assert [urllib.parse.parse_qs(urllib.parse.urlsplit(one.url).query) for one in found[1:]] == [
        {"a&admin": ["1"]}, {"a": ["1&admin=1"]},
    ]  # fmt: skip


def test_a_delimiter_within_a_value_is_refused(tmp_path: Path) -> None:
    tries = [("spaceDelimited", "a b"), ("pipeDelimited", "a|b")]
    plans = [plan_with(tmp_path, {"name": "q", "in": "query", "schema": {}, "style": style}) for style, _ in tries]
    found = write([(plan, {"q": ["x", text]}) for plan, (_, text) in zip(plans, tries, strict=True)])
    assert all("between" in one.error for one in found)


def test_no_text_leaves_its_header(tmp_path: Path) -> None:
    plan = plan_with(tmp_path, {"name": "X-Name", "in": "header", "schema": {}})
    bad = [
        "a\r\nHost: evil",
        "a\nb",
        "a\rb",
        "a\x00b",
        " a",
        "a ",
        "\ta",
        "ü",
        "\u2028",
        "a\x0bb",
        "a\x85b",
        "x" * 5000,
    ]
    inside = [text for text in bad if text.strip(" ") == text]  # a space within the whole does no harm
    shapes = [
        *bad,
        *([text] for text in inside),
        *({"k": text} for text in inside),
        *({text: 1} for text in inside[:4]),
    ]
    shapes += [["a,b"], {"a,b": 1}, {"a": "b,c"}]
    found = write([(plan, {"X-Name": value}) for value in shapes])
    assert [value for value, one in zip(shapes, found, strict=True) if not one.error] == []


HEADERS = [
    "Host", "host", "Authorization", "Cookie", "Content-Length", "Content-Type", "Transfer-Encoding", "Connection",
    "TE",
    "Proxy-Authorization", "X-Forwarded-For", "X-Forwarded-Host", "X_Forwarded_Host", "Forwarded",
    "X-HTTP-Method-Override",
    "X-Original-URL", "Upgrade", "Expect", "Accept", "X-Omni-Error", "Keep-Alive", "Trailer",
]  # fmt: skip


def test_a_document_gives_no_argument_for_a_header_of_the_way_or_of_credentials(tmp_path: Path) -> None:
    plan = plan_with(tmp_path, *({"name": name, "in": "header", "schema": {}} for name in [*HEADERS, "X-Fine"]))
    assert [one["name"] for one in plan["parameters"]] == ["X-Fine"]
    (found,) = write([(plan, {**dict.fromkeys(HEADERS, "evil"), "X-Fine": "yes"})])
    assert found.headers == {"x-fine": "yes", "accept": "*/*"}
