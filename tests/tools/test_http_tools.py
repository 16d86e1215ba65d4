"""The http tools against a proxy on loopback: what they send, when they try again, and what they return."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from omni_mcp.engines.catalog.manifests import ManifestDirectory, ManifestSource
from omni_mcp.engines.catalog.schemas import JsonSchemas
from omni_mcp.paths import bundled
from tests.tools.loopback_proxy import LoopbackProxy, Script, denied, respond

URL = "https://a.org/data?x=1"
MANIFESTS = {
    entry.name: entry.manifest
    for entry in ManifestSource(
        [ManifestDirectory(path=bundled("manifests"), bundled=True)], code=bundled("sandbox") / "tools"
    ).load()
}


def call(
    script: Script, room: Path, function: str = "http_fetch", *, keep_open: bool = False, **arguments: Any
) -> tuple[dict[str, Any], list[str]]:
    """Call a tool as the gateway would; returns its result, which fits the schema, and what the proxy was asked."""
    manifest = MANIFESTS[function]
    assert manifest is not None and manifest.output_schema is not None
    given = {"url": URL, **arguments}
    assert JsonSchemas().problems(manifest.input_schema, given) == []
    with LoopbackProxy(script, keep_open=keep_open).listening() as proxy:
        result = proxy.call(function, given, room)
        assert "error" in result or JsonSchemas().problems(manifest.output_schema, result) == []
        return result, proxy.requests


def always(answer: bytes | None) -> Script:
    return lambda number, request: answer


def test_a_page_comes_back_as_text_and_the_proxy_got_the_whole_url(tmp_path: Path) -> None:
    page = respond(200, "grüß".encode("latin-1"), Content_Type="text/plain; charset=ISO-8859-1", Set_Cookie="id=1")
    result, (request,) = call(always(page), tmp_path, headers={"accept": "text/plain"}, url=f"{URL}#part")

    assert (result["status"], result["url"], result["text"]) == (200, URL, "grüß")
    assert (result["size"], result["truncated"]) == (4, False)
    assert "set-cookie" not in result["headers"]
    assert result["attempts"] == [{"url": URL, "waited_ms": 0, "status": 200}]
    lines = request.split("\r\n")
    assert lines[0] == f"GET {URL} HTTP/1.1"
    assert [line for line in lines if line.lower().startswith(("host", "accept:"))] == [
        "host: a.org",
        "accept: text/plain",
    ]


def test_head_has_no_body(tmp_path: Path) -> None:
    result, (request,) = call(always(respond(200, length=500)), tmp_path, method="HEAD")
    assert request.startswith("HEAD ") and (result["text"], result["size"]) == ("", 0)


@pytest.mark.parametrize("failing", [respond(503), respond(502), respond(504), None, respond(200, b"half", length=9)])
def test_a_server_that_fails_twice_and_then_answers_shows_three_attempts_with_growing_pauses(
    tmp_path: Path, failing: bytes | None
) -> None:
    good = respond(200, b"at last", Content_Type="text/plain")
    result, requests = call(lambda number, _: failing if number < 3 else good, tmp_path)

    assert result["text"] == "at last" and len(requests) == 3
    pauses = [one["waited_ms"] for one in result["attempts"]]
    assert len(pauses) == 3 and pauses[0] == 0 and pauses[1] <= pauses[2]
    assert pauses[1] <= 200 and pauses[2] <= 400  # full jitter: anything up to a bound that doubles


def test_pauses_are_random(tmp_path: Path) -> None:
    found = {tuple(one["waited_ms"] for one in call(always(respond(503)), tmp_path)[0]["attempts"]) for _ in range(6)}
    assert len(found) > 1


@pytest.mark.parametrize("status", [200, 204, 304, 400, 401, 404, 429, 500, 501])
def test_what_will_not_pass_is_tried_once(tmp_path: Path, status: int) -> None:
    result, requests = call(always(respond(status)), tmp_path)
    assert (result["status"], len(result["attempts"]), len(requests)) == (status, 1, 1)


def test_a_server_that_goes_on_failing_is_answered_with_its_last_word(tmp_path: Path) -> None:
    result, requests = call(always(respond(503, b"busy", Content_Type="text/plain")), tmp_path)
    assert (result["status"], result["text"], len(requests)) == (503, "busy", 3)


def test_a_server_that_asks_for_more_time_than_there_is_is_not_pressed(tmp_path: Path) -> None:
    result, requests = call(always(respond(503, Retry_After="60")), tmp_path)
    assert (result["status"], len(requests)) == (503, 1)


def test_a_connection_that_always_breaks_is_a_failure_that_names_its_attempts(tmp_path: Path) -> None:
    result, requests = call(always(None), tmp_path)
    assert "attempts: 3 (" in result["error"] and len(requests) == 3


@pytest.mark.parametrize(("reason", "tries"), [("unreachable", 3), ("not_resolved", 3), ("tls_failed", 1)])
def test_what_the_gateway_could_not_reach_is_a_failure_with_its_reason(tmp_path: Path, reason: str, tries: int) -> None:
    result, requests = call(always(denied(reason, status=502, word="egress-failed")), tmp_path)
    assert reason in result["error"] and len(requests) == tries


def test_what_the_gateway_refuses_is_said_and_not_tried_again(tmp_path: Path) -> None:
    result, requests = call(always(denied("private_address")), tmp_path)
    assert "private_address" in result["error"] and len(requests) == 1


@dataclass(frozen=True, slots=True)
class Endless:
    """A server that never comes to its end: what it sends at once, and then again and again; without drips, nothing."""

    begins: bytes
    drips: bytes = b""

    def answers(self, room: Path) -> tuple[dict[str, Any], int]:
        """Return what a call of it comes to, and how often it was asked."""
        room.mkdir()
        with LoopbackProxy(always(self.begins), keep_open=not self.drips, drips=self.drips).listening() as proxy:
            return proxy.call("http_fetch", {"url": URL}, room), len(proxy.requests)


Ends = dict[Endless, tuple[dict[str, Any], int]]
SILENT = [Endless(said) for said in (b"", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\nA: ")]
HEADS = [Endless(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"), Endless(b"HTTP/1.1 200 OK\r\nX: ", b"y")]
DRIPPING_BODY = Endless(respond(200, length=10_000, Content_Type="text/plain"), b"a")
UNENDED_BODY = Endless(respond(200, b"so far", length=100, Content_Type="text/plain"))


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Ends:
    """What became of a call of each endless server, all at once: each takes the whole of its deadline."""
    servers = [*SILENT, *HEADS, DRIPPING_BODY, UNENDED_BODY]
    rooms = [tmp_path_factory.mktemp("endless") / "room" for _ in servers]
    with ThreadPoolExecutor(len(servers)) as workers:
        return dict(zip(servers, workers.map(Endless.answers, servers, rooms), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("server", SILENT, ids=["nothing", "half a line", "half a header"])
def test_a_server_that_never_answers_costs_one_attempt_and_no_more_than_the_deadline(
    ends: Ends, server: Endless
) -> None:
    result, requests = ends[server]
    assert "no answer in time" in result["error"] and requests == 1


@pytest.mark.slow
@pytest.mark.parametrize("server", HEADS, ids=["many headers", "one header"])
def test_a_head_that_never_ends_ends_the_call(ends: Ends, server: Endless) -> None:
    """Each byte comes in time, and there is always another: only a deadline for all of it can end this."""
    assert "error" in ends[server][0]


@pytest.mark.slow
def test_a_body_that_drips_is_returned_as_far_as_it_came(ends: Ends) -> None:
    result, _ = ends[DRIPPING_BODY]
    assert result["truncated"] and set(result["text"]) == {"a"}


@pytest.mark.slow
def test_a_body_that_does_not_end_is_returned_as_far_as_it_came(ends: Ends) -> None:
    result, _ = ends[UNENDED_BODY]
    assert (result["text"], result["truncated"]) == ("so far", True)


def test_redirects_within_the_grant_are_followed(tmp_path: Path) -> None:
    steps = {1: respond(302, Location="/b"), 2: respond(301, Location="https://a.org/c d"), 3: respond(200)}
    result, requests = call(lambda number, _: steps[number], tmp_path)
    assert (result["status"], result["url"]) == (200, "https://a.org/c%20d")
    assert [one.split()[1] for one in requests] == [URL, "https://a.org/b", "https://a.org/c%20d"]
    assert [one["status"] for one in result["attempts"]] == [302, 301, 200]


@pytest.mark.parametrize("to", ["https://b.org/x", "http://169.254.169.254/latest", "//b.org/"])
def test_a_redirect_that_the_gateway_refuses_is_returned_with_where_it_points(tmp_path: Path, to: str) -> None:
    steps = {1: respond(302, b"moved", Location=to, Content_Type="text/plain"), 2: denied()}
    result, requests = call(lambda number, _: steps[number], tmp_path)
    assert (result["status"], result["url"], result["text"]) == (302, URL, "moved")
    assert result["redirect"].endswith(to) and "its own permission" in result["note"]
    assert len(requests) == 2


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://a.org/", "https://user:x@a.org/", "https://a b/"])
def test_a_redirect_to_nothing_that_can_be_fetched_is_an_answer_like_any_other(tmp_path: Path, to: str) -> None:
    result, requests = call(always(respond(302, Location=to)), tmp_path)
    assert result["status"] == 302 and len(requests) == 1


def test_endless_redirects_end(tmp_path: Path) -> None:
    result, requests = call(lambda number, _: respond(302, Location=f"/{number}"), tmp_path)
    assert result["status"] == 302 and len(requests) == 6 and result["redirect"] == "https://a.org/6"


def test_a_small_binary_is_base64_and_a_large_one_is_left_as_a_file(tmp_path: Path) -> None:
    png = b"\x89PNG" + bytes(100)
    result, _ = call(always(respond(200, png, Content_Type="image/png")), tmp_path)
    assert base64.b64decode(result["base64"]) == png
    large = b"\x89PNG" + bytes(100_000)
    result, _ = call(always(respond(200, large, Content_Type="image/png")), tmp_path)
    assert "base64" not in result
    assert (tmp_path / "out" / result["saved"]).read_bytes() == large


def test_a_long_text_is_cut_and_left_whole_as_a_file(tmp_path: Path) -> None:
    page = b"a" * 300_000
    result, _ = call(always(respond(200, page, Content_Type="text/html")), tmp_path)
    assert (len(result["text"]), result["truncated"], result["size"]) == (262_144, True, 300_000)
    assert (tmp_path / "out" / result["saved"]).read_bytes() == page
    assert len(call(always(respond(200, page, Content_Type="text/html")), tmp_path, max_chars=10)[0]["text"]) == 10


def test_more_than_the_limit_is_not_taken(tmp_path: Path) -> None:
    result, _ = call(always(respond(200, bytes(9 << 20), Content_Type="application/zip")), tmp_path)
    assert (result["size"], result["truncated"]) == (8 << 20, True)


@pytest.mark.parametrize("charset", ["zlib_codec", "idna", "unicode_escape", "utf-7", "no-such", "base64", "x" * 200])
def test_what_is_no_charset_is_read_as_utf8(tmp_path: Path, charset: str) -> None:
    page = respond(200, "grüß\\x41".encode(), Content_Type=f"text/plain; charset={charset}")
    assert call(always(page), tmp_path)[0]["text"] == "grüß\\x41"


def test_a_compressed_body_that_nobody_asked_for_is_not_unpacked(tmp_path: Path) -> None:
    page = respond(200, b"\x1f\x8b....", Content_Type="text/plain", Content_Encoding="gzip")
    assert base64.b64decode(call(always(page), tmp_path)[0]["base64"]) == b"\x1f\x8b...."


def test_many_and_long_headers_are_cut(tmp_path: Path) -> None:
    headers: dict[str, Any] = {f"X_{number}": "v" * 5000 if number == 0 else "v" for number in range(90)}
    page = respond(200, **headers)
    found = call(always(page), tmp_path)[0]["headers"]
    assert len(found) == 64 and max(map(len, found.values())) == 1024


@pytest.mark.parametrize(
    "name", ["host", "authorization", "cookie", "connection", "transfer-encoding", "proxy-x", "a:b"]
)
def test_other_headers_cannot_be_set(tmp_path: Path, name: str) -> None:
    with LoopbackProxy(always(respond(200))).listening() as proxy:
        result = proxy.call("http_fetch", {"url": URL, "headers": {name: "x"}}, tmp_path)
    assert "cannot be set" in result["error"] and proxy.requests == []


@pytest.mark.parametrize("value", ["a\r\nX: y", "a\nb", "ü", " a", "a\x00"])
def test_a_header_cannot_smuggle_another(tmp_path: Path, value: str) -> None:
    with LoopbackProxy(always(respond(200))).listening() as proxy:
        result = proxy.call("http_fetch", {"url": URL, "headers": {"accept": value}}, tmp_path)
    assert "no header may hold" in result["error"] and proxy.requests == []


@pytest.mark.parametrize(
    "url", ["https://a.org/ HTTP/1.1", "https://a.org\r\nX: y/", "https://u@a.org/", "file:///x", "x"]
)
def test_what_is_no_url_is_not_sent(tmp_path: Path, url: str) -> None:
    with LoopbackProxy(always(respond(200))).listening() as proxy:
        result = proxy.call("http_fetch", {"url": url}, tmp_path)
    assert "is no http or https URL" in result["error"] and proxy.requests == []


@pytest.mark.parametrize("failing", [respond(503), None])
def test_what_changes_something_is_sent_once_whatever_comes_back(tmp_path: Path, failing: bytes | None) -> None:
    result, requests = call(always(failing), tmp_path, "http_send", method="POST", text="{}")
    assert len(requests) == 1 and (result.get("status") == 503 or "error" in result)


def test_a_body_is_sent_as_it_is_and_a_redirect_is_not_followed(tmp_path: Path) -> None:
    sent: dict[str, Any] = {
        "method": "PUT",
        "base64": base64.b64encode(b"a\x00b").decode(),
        "headers": {"content-type": "x/y"},
    }
    result, (request,) = call(always(respond(307, Location="/b")), tmp_path, "http_send", **sent)
    assert request.endswith("\r\n\r\na\x00b") and "content-length: 3\r\n" in request and "content-type: x/y" in request
    assert (result["status"], result["redirect"]) == (307, "https://a.org/b")
