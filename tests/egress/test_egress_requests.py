"""Plain requests through the proxy: what reaches a host, what does not, and what the job is told."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from omni_mcp.contracts.sandbox import Credential
from tests.egress.outside import HERE, HOST, Names, Origin, certificates, get, proxy


async def test_a_granted_request_reaches_the_host_in_origin_form_and_its_answer_the_job() -> None:
    async with Origin().running() as origin, proxy(f"{HOST}:{origin.port}") as here:
        answer = await here.ask(
            get(f"http://{HOST}:{origin.port}/a?b=c", "X-Mine: yes", "Proxy-Connection: Keep-Alive")
        )
        report = await here.report()

    assert answer.status == 200
    assert answer.body == b"hello"
    assert origin.heads == [
        f"GET /a?b=c HTTP/1.1\r\nhost: {HOST}:{origin.port}\r\nx-mine: yes\r\nconnection: close\r\n\r\n".encode()
    ]
    assert (report.host, report.port, report.method, report.verdict) == (HOST, origin.port, "GET", "open")
    assert (report.reason, report.address, report.bytes_sent) == ("", HERE, len(origin.heads[0]))
    assert report.bytes_received == len(answer.raw)


@pytest.mark.parametrize(
    "hosts",
    [
        (),
        ("other.example.org:{port}",),
        (f"{HOST}:1",),
        ("example.org:{port}",),
        ("*.example.org:1",),
        (f"*.{HOST}" + ":{port}",),
        (HERE + ":{port}",),
    ],
)
async def test_a_host_that_no_grant_covers_is_not_even_looked_up(hosts: tuple[str, ...]) -> None:
    names = Names(**{HOST: [[HERE]]})
    async with Origin().running() as origin:
        async with proxy(*(text.format(port=origin.port) for text in hosts), names=names) as here:
            answer = await here.ask(get(f"http://{HOST}:{origin.port}/"))
            report = await here.report()

    assert answer.status == 403
    assert b"X-Omni-Error: egress-denied\r\n" in answer.head
    told = {"error": "egress_denied", "host": HOST, "port": origin.port, "reason": "not_granted"}
    assert answer.told == told
    assert (report.verdict, report.reason) == ("refused", "not_granted")
    assert origin.connections == 0
    assert names.asked == []


async def test_a_refusal_of_a_head_request_has_no_body() -> None:
    async with proxy(f"{HOST}:80") as here:
        got = await here.ask(get("http://evil.example/", method="HEAD"))

    assert got.status == 403
    assert got.body == b""


async def test_a_wildcard_covers_names_of_any_depth_below_it() -> None:
    names = Names(**{name: [[HERE]] for name in ("a.example.org", "b.a.example.org")})
    async with Origin().running() as origin, proxy(f"*.example.org:{origin.port}", names=names) as here:
        for host in ("a.example.org", "B.a.Example.ORG"):
            assert (await here.ask(get(f"http://{host}:{origin.port}/"))).status == 200
        for host in ("example.org", "badexample.org", "a.example.org.evil.example"):
            assert (await here.ask(get(f"http://{host}:{origin.port}/"))).told["reason"] == "not_granted"


@pytest.mark.parametrize(
    "target",
    [
        "http://2130706433:{port}/",
        "http://0x7f000001:{port}/",
        "http://0177.0.0.1:{port}/",
        "http://127.1:{port}/",
        "http://127.0.0.1.:{port}/",
        "http://127.0.0.0x1:{port}/",
        "http://[::ffff:127.0.0.1]:{port}/",
        "http://[::ffff:7f00:1]:{port}/",
        "http://[::1%25lo]:{port}/",
        "http://[127.0.0.1]:{port}/",
        "http://user@127.0.0.1:{port}/",
        "http://127.0.0.1:{port}@evil.example/",
        "http://127.0.0.1:{port}\\@evil.example/",
        "http://127.0.0.1:{port}#@evil.example/",
        "http://127.0.0.1%2eevil.example:{port}/",
        "http://127.0.0.1:0{port}/",
        "http://127.0.0.1:/",
        "http://127.0.0.1:99999/",
        "http://" + "a" * 300 + ":{port}/",
        "http://" + "a." * 150 + "a:{port}/",
        "http:///path",
        "http://",
        "//127.0.0.1:{port}/",
        "/path",
        "*",
        "127.0.0.1:{port}",
        "ftp://127.0.0.1:{port}/",
        "http://127.0.0.1:{port}/a\tb",
        "http://127.0.0.1:{port}/a b",
        "http://127.0.0.1:{port}/\x00",
        "http://127.0.0.1:{port}/\xe4",
        "http://b\xfccher.example:{port}/",
        "http://127.0.0.1:{port}/a\r\nX: y HTTP/1.1",
        "http://127.0.0.1:{port}/a\nX: y HTTP/1.1",
        "http://127.0.0.1:{port}/a\rX: y",
    ],
)
async def test_a_target_that_could_be_understood_in_two_ways_is_refused(target: str) -> None:
    async with Origin().running() as origin, proxy(f"{HERE}:{origin.port}") as here:
        answer = await here.ask(get(target.format(port=origin.port), host=f"{HERE}:{origin.port}"))
        report = await here.report()

    assert answer.status == 400
    assert b"X-Omni-Error: bad-request\r\n" in answer.head
    assert report.reason == "bad_request"
    assert report.verdict == "refused"
    assert report.host.isprintable()
    assert "user" not in report.host
    assert len(report.host) <= 255
    assert origin.connections == 0


CHUNKED = "Transfer-Encoding: chunked\r\n"
HEADS = {
    "host differs": "GET {url} HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    "host has another port": "GET {url} HTTP/1.1\r\nHost: {name}:1\r\n\r\n",
    "host is missing": "GET {url} HTTP/1.1\r\n\r\n",
    "host is empty": "GET {url} HTTP/1.1\r\nHost:\r\n\r\n",
    "two hosts": "GET {url} HTTP/1.1\r\nHost: {host}\r\nHost: {host}\r\n\r\n",
    "two hosts of 1.0": "GET {url} HTTP/1.0\r\nHost: {host}\r\nHost: evil.example\r\n\r\n",
    "space before colon": "GET {url} HTTP/1.1\r\nHost : {host}\r\n\r\n",
    "folded": "GET {url} HTTP/1.1\r\nHost: {host}\r\nX: a\r\n b\r\n\r\n",
    "no colon": "GET {url} HTTP/1.1\r\nHost: {host}\r\nX\r\n\r\n",
    "nul in value": "GET {url} HTTP/1.1\r\nHost: {host}\r\nX: a\x00b\r\n\r\n",
    "cr in value": "GET {url} HTTP/1.1\r\nHost: {host}\r\nX: a\rb\r\n\r\n",
    "bare lf in fields": "GET {url} HTTP/1.1\r\nHost: {host}\nX: a\r\n\r\n",
    "bare lf everywhere": "GET {url} HTTP/1.1\nHost: {host}\n\n",
    "length and coding": "POST {url} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\n{chunked}\r\n0\r\n\r\n",
    "two lengths": "POST {url} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "two equal lengths": "POST {url} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "list of lengths": "POST {url} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5, 5\r\n\r\nhello",
    "signed length": "POST {url} HTTP/1.1\r\nHost: {host}\r\nContent-Length: +5\r\n\r\nhello",
    "length in hexadecimal": "POST {url} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0x5\r\n\r\nhello",
    "length by another name": "POST {url} HTTP/1.1\r\nHost: {host}\r\nContent_Length: 5\r\n\r\nhello",
    "two codings": "POST {url} HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "coding twice": "POST {url} HTTP/1.1\r\nHost: {host}\r\n{chunked}Transfer-Encoding: x\r\n\r\n0\r\n\r\n",
    "odd coding": "POST {url} HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "coding in 1.0": "POST {url} HTTP/1.0\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "upgrade": "GET {url} HTTP/1.1\r\nHost: {host}\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    "strange expectation": "POST {url} HTTP/1.1\r\nHost: {host}\r\nExpect: 200-ok\r\nContent-Length: 0\r\n\r\n",
    "trace": "TRACE {url} HTTP/1.1\r\nHost: {host}\r\n\r\n",
    "version 0.9": "GET {url}\r\n",
    "version 2": "GET {url} HTTP/2.0\r\nHost: {host}\r\n\r\n",
    "preface of version 2": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "lower-case version": "GET {url} http/1.1\r\nHost: {host}\r\n\r\n",
    "two spaces": "GET  {url} HTTP/1.1\r\nHost: {host}\r\n\r\n",
    "space at the start": " GET {url} HTTP/1.1\r\nHost: {host}\r\n\r\n",
    "empty line first": "\r\nGET {url} HTTP/1.1\r\nHost: {host}\r\n\r\n",
    "long line": "GET {url}" + "a" * 9000 + " HTTP/1.1\r\nHost: {host}\r\n\r\n",
    "long fields": "GET {url} HTTP/1.1\r\nHost: {host}\r\n" + ("X: " + "a" * 4000 + "\r\n") * 9 + "\r\n",
    "many fields": "GET {url} HTTP/1.1\r\nHost: {host}\r\n" + "X: a\r\n" * 100 + "\r\n",
    "endless line": "GET {url}" + "a" * 300_000,
}


@pytest.mark.parametrize("name", HEADS)
async def test_a_head_that_two_readers_could_read_differently_never_reaches_the_host(name: str) -> None:
    async with Origin().running() as origin, proxy(f"{HOST}:{origin.port}") as here:
        host = f"{HOST}:{origin.port}"
        request = HEADS[name].format(url=f"http://{host}/", host=host, name=HOST, chunked=CHUNKED)
        answer = await here.ask(request.encode("latin-1"))
        report = await here.report()

    assert answer.status == 400
    assert (report.verdict, report.reason) == ("refused", "bad_request")
    assert origin.connections == 0


async def test_a_second_request_on_the_same_connection_never_reaches_the_host() -> None:
    async with Origin().running() as origin, proxy(f"{HOST}:{origin.port}") as here:
        url = f"http://{HOST}:{origin.port}"
        answer = await here.ask(get(f"{url}/first") + get(f"{url}/second"))

    assert answer.raw.count(b"HTTP/1.1") == 1
    assert len(origin.heads) == 1
    assert origin.after == [b""]


async def test_a_request_behind_the_announced_body_never_reaches_the_host() -> None:
    async with Origin(handler=None).running() as origin, proxy(f"{HOST}:{origin.port}") as here:
        url = f"http://{HOST}:{origin.port}"
        await here.ask(get(f"{url}/", "Content-Length: 4", method="POST") + b"body" + get(f"{url}/second"))

    assert origin.after == [b"body"]


async def test_a_chunked_body_goes_on_in_chunks_of_our_own() -> None:
    async with Origin(reads_to_end=True).running() as origin, proxy(f"{HOST}:{origin.port}") as here:
        head = get(f"http://{HOST}:{origin.port}/", "Transfer-Encoding: chunked", method="POST")
        answer = await here.ask(head + b"00005\r\nhello\r\n0\r\nX-Trailer: 1\r\n\r\n")

    assert answer.status == 200
    assert origin.after == [b"5\r\nhello\r\n0\r\n\r\n"]
    assert b"transfer-encoding: chunked\r\n" in origin.heads[0]


@pytest.mark.parametrize(
    "body",
    [
        b"5;ext=1\r\nhello\r\n0\r\n\r\n",
        b"5;\nhello\r\n0\r\n\r\n",
        b"5 \r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"+5\r\nhello\r\n0\r\n\r\n",
        b"5\nhello\r\n0\r\n\r\n",
        b"5\r\nhelloXX0\r\n\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"\r\n",
        b"fffffffff\r\n",
        b"0\r\nX: a\n\r\n\r\n",
    ],
)
async def test_oddly_framed_chunks_end_the_request_before_the_host_sees_its_end(body: bytes) -> None:
    async with Origin(reads_to_end=True).running() as origin, proxy(f"{HOST}:{origin.port}") as here:
        head = get(f"http://{HOST}:{origin.port}/", "Transfer-Encoding: chunked", method="POST")
        answer = await here.ask(head + body)
        report = await here.report()
        await asyncio.wait_for(origin.last_over.wait(), 30)

    assert answer.status == 400
    assert report.reason == "bad_request"
    assert not any(data.endswith(b"0\r\n\r\n") for data in origin.after)


async def test_a_job_that_waits_for_leave_to_send_its_body_gets_it() -> None:
    async with Origin().running() as origin, proxy(f"{HOST}:{origin.port}") as here:
        reader, writer = await here.connect()
        writer.write(get(f"http://{HOST}:{origin.port}/", "Expect: 100-continue", "Content-Length: 4", method="PUT"))
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"body")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.transport.abort()
        await here.report()

    assert b"expect" not in origin.heads[0]


async def test_a_job_that_has_said_all_and_closed_its_half_still_gets_the_answer() -> None:
    async with Origin().running() as origin, proxy(f"{HOST}:{origin.port}") as here:
        reader, writer = await here.connect()
        writer.write(get(f"http://{HOST}:{origin.port}/"))
        writer.write_eof()
        assert (await reader.read()).endswith(b"hello")
        writer.transport.abort()
        assert (await here.report()).verdict == "open"


async def test_fields_of_one_hop_stay_on_it() -> None:
    async with Origin().running() as origin, proxy(f"{HOST}:{origin.port}") as here:
        fields = (
            "Connection: X-Named, close",
            "X-Named: 1",
            "TE: trailers",
            "Proxy-Authorization: Basic x",
            "X-Kept: 1",
        )
        await here.ask(get(f"http://{HOST}:{origin.port}/", *fields))

    head = origin.heads[0].lower()
    assert b"x-kept: 1" in head
    for gone in (b"x-named", b"te:", b"proxy-", b"keep-alive"):
        assert gone not in head


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
        b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\x00\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 20,
        b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 101 + b"\r\n",
        b"nonsense",
        b"",
    ],
)
async def test_an_answer_that_two_readers_could_read_differently_is_not_passed_on(answer: bytes) -> None:
    async with Origin(answer).running() as origin, proxy(f"{HOST}:{origin.port}") as here:
        got = await here.ask(get(f"http://{HOST}:{origin.port}/"))
        report = await here.report()

    assert got.status == 502
    assert got.told["reason"] == "bad_response"
    assert (report.verdict, report.reason) == ("failed", "bad_response")


@pytest.mark.parametrize(
    ("answer", "body", "whole"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nto the end", b"to the end", True),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nA: b\r\n\r\n",
            b"5\r\nhello\r\n0\r\n\r\n",
            True,
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello and more", b"hello", True),
        (b"HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\nhello", b"", True),
        (b"HTTP/1.1 103 Hints\r\n\r\nHTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok", b"ok", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello", b"hello", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel", b"", False),
    ],
)
async def test_a_body_ends_where_its_head_says_and_a_cut_one_is_seen_to_be_cut(
    answer: bytes, body: bytes, whole: bool
) -> None:
    async with Origin(answer).running() as origin, proxy(f"{HOST}:{origin.port}") as here:
        got = await here.ask(get(f"http://{HOST}:{origin.port}/"))
        report = await here.report()

    assert got.broken is not whole
    assert report.verdict == ("open" if whole else "failed")
    if whole:
        assert got.body == body


async def test_an_answer_to_head_has_its_length_and_no_body() -> None:
    async with Origin().running() as origin, proxy(f"{HOST}:{origin.port}") as here:
        got = await here.ask(get(f"http://{HOST}:{origin.port}/", method="HEAD"))

    assert b"content-length: 5\r\n" in got.head
    assert got.body == b""


async def test_a_host_cannot_speak_in_the_gateways_name() -> None:
    answer = b"HTTP/1.1 403 No\r\nX-Omni-Error: egress-denied\r\nContent-Length: 0\r\n\r\n"
    async with Origin(answer).running() as origin, proxy(f"{HOST}:{origin.port}") as here:
        got = await here.ask(get(f"http://{HOST}:{origin.port}/"))

    assert got.status == 403
    assert b"omni" not in got.head.lower()


async def test_a_redirect_is_an_answer_and_where_it_leads_is_asked_anew() -> None:
    answer = b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n"
    async with Origin(answer).running() as origin, proxy(f"{HOST}:{origin.port}") as here:
        got = await here.ask(get(f"http://{HOST}:{origin.port}/"))
        again = await here.ask(get("http://169.254.169.254/"))

    assert b"location: http://169.254.169.254/\r\n" in got.head
    assert again.told["reason"] == "not_granted"


async def test_a_host_that_answers_early_is_heard_although_it_reads_no_further() -> None:
    async def too_much(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too much\r\nContent-Length: 0\r\n\r\n")
        await reader.read()  # until the proxy leaves

    async with Origin(handler=too_much).running() as origin, proxy(f"{HOST}:{origin.port}") as here:
        got = await here.ask(get(f"http://{HOST}:{origin.port}/", "Content-Length: 100", method="PUT") + b"some")

    assert got.status == 413


async def test_a_request_for_https_is_made_with_tls_and_checks_the_certificate(tmp_path: Path) -> None:
    secure = certificates(tmp_path)
    async with Origin().running(secure.server) as origin:
        async with proxy(f"{HOST}:{origin.port}", tls=secure.client) as here:
            got = await here.ask(get(f"https://{HOST}:{origin.port}/a"))
            report = await here.report()

    assert got.body == b"hello"
    assert (report.method, report.verdict) == ("GET", "open")
    assert origin.heads[0].startswith(b"GET /a HTTP/1.1\r\n")


@pytest.mark.parametrize("name", ["other.example.org", HERE])
async def test_a_certificate_of_another_name_is_refused(tmp_path: Path, name: str) -> None:
    wrong = certificates(tmp_path, name)
    async with Origin().running(wrong.server) as origin:
        async with proxy(f"{HOST}:{origin.port}", tls=wrong.client) as here:
            got = await here.ask(get(f"https://{HOST}:{origin.port}/"))
            report = await here.report()

    assert got.status == 502
    assert (report.verdict, report.reason) == ("failed", "tls_failed")
    assert origin.heads == []


async def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path: Path) -> None:
    secure = certificates(tmp_path)
    async with Origin().running(secure.server) as origin, proxy(f"{HOST}:{origin.port}") as here:
        got = await here.ask(get(f"https://{HOST}:{origin.port}/"))

    assert got.told["reason"] == "tls_failed"
    assert origin.heads == []


async def test_a_credential_goes_to_its_host_in_place_of_the_jobs_own_field(tmp_path: Path) -> None:
    secure = certificates(tmp_path)
    async with Origin().running(secure.server) as origin:
        host = f"{HOST}:{origin.port}"
        secret = Credential(host=host, header="X-Api-Key", value="s3cret-value")
        async with proxy(host, credentials=(secret,), tls=secure.client) as here:
            mine = ("x-api-key: mine", "X_Api_Key: mine", "Connection: x-api-key")
            await here.ask(get(f"https://{host}/", *mine))
            report = await here.report()

    assert origin.heads[0].count(b"X-Api-Key: s3cret-value\r\n") == 1
    assert b"mine" not in origin.heads[0]
    assert report.credential
    assert report.bytes_sent < len(origin.heads[0])
    assert "s3cret" not in repr(report)


async def test_a_credential_goes_to_no_other_host_or_port() -> None:
    names = Names(**{HOST: [[HERE]], "other.example.org": [[HERE]]})
    async with Origin().running() as origin:
        hosts = (f"{HOST}:{origin.port}", f"other.example.org:{origin.port}")
        secrets = (
            Credential(host=f"{HOST}:{origin.port + 1}", header="X-Api-Key", value="s3cret"),
            Credential(host=f"{HOST}:{origin.port}", header="X-Api-Key", value="s3cret"),
        )
        async with proxy(*hosts, names=names, credentials=secrets) as here:
            await here.ask(get(f"http://other.example.org:{origin.port}/"))
            report = await here.report()
            await here.ask(get(f"http://{HOST}:{origin.port}/"))

    assert not report.credential
    assert b"s3cret" not in origin.heads[0]
    assert origin.heads[1].count(b"s3cret") == 1


async def test_a_credential_never_crosses_the_public_internet_in_clear() -> None:
    names = Names(**{HOST: [["93.184.216.34", HERE]]})
    secret = Credential(host=f"{HOST}:80", header="Authorization", value="Bearer s3cret")
    async with proxy(f"{HOST}:80", names=names, credentials=(secret,)) as here:
        got = await here.ask(get(f"http://{HOST}/"))
        report = await here.report()

    assert got.status == 403
    assert (report.verdict, report.reason, report.address) == ("refused", "credential_needs_tls", "")
    assert not report.credential


async def test_an_old_client_without_chunks_gets_a_body_that_ends_with_the_connection() -> None:
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    async with Origin(answer).running() as origin, proxy(f"{HOST}:{origin.port}") as here:
        got = await here.ask(f"GET http://{HOST}:{origin.port}/ HTTP/1.0\r\n\r\n".encode())

    assert got.body == b"hello"
    assert b"transfer-encoding" not in got.head


async def test_a_literal_address_is_reached_only_where_it_is_granted_itself() -> None:
    async with Origin().running() as origin:
        async with proxy(f"{HERE}:{origin.port}", networks=()) as here:
            assert (await here.ask(get(f"http://{HERE}:{origin.port}/"))).body == b"hello"
            assert (await here.ask(get(f"http://127.0.0.2:{origin.port}/"))).told["reason"] == "not_granted"
        async with proxy(f"{HOST}:{origin.port}") as here:
            assert (await here.ask(get(f"http://{HERE}:{origin.port}/"))).told["reason"] == "not_granted"
