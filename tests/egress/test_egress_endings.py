"""How connections end: on time, within their limits, and each in one report."""

from __future__ import annotations

import asyncio
import socket

import pytest

from omni_mcp.engines.sandbox.egress.limits import EgressLimits
from tests.egress.outside import HERE, HOST, Answer, Names, Origin, get, proxy, read_all, reset

QUICK = EgressLimits(head_s=0.3, connect_s=0.3, answer_s=0.3, idle_s=0.3, linger_s=0.3)


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def test_a_head_that_never_ends_is_cut_off_at_its_deadline() -> None:
    async with proxy(f"{HOST}:80", limits=QUICK) as here:
        reader, writer = await here.connect()
        writer.write(b"GET http://" + HOST.encode() + b"/ HTTP/1.1\r\n")

        async def drip() -> None:
            while True:
                writer.write(b"X: a\r\n")
                await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        got = await read_all(reader)
        dripping.cancel()
        report = await here.report()
        writer.transport.abort()

    assert got.status == 504
    assert (report.verdict, report.reason, report.host) == ("failed", "timeout", HOST)


async def test_a_job_that_connects_and_says_nothing_is_let_go() -> None:
    async with proxy(f"{HOST}:80", limits=QUICK) as here:
        got = await here.ask(b"")
        report = await here.report()

    assert got.told["reason"] == "timeout"
    assert (report.verdict, report.method, report.host, report.port) == ("failed", "", "", 0)


@pytest.mark.parametrize("data", [b"", b"GET http://", get(f"http://{HOST}/")[:-2]])
async def test_a_job_that_leaves_in_the_middle_of_its_head_is_reported(data: bytes) -> None:
    async with proxy(f"{HOST}:80") as here:
        _, writer = await here.connect()
        writer.write(data)
        writer.write_eof()
        report = await here.report()
        writer.transport.abort()

    assert (report.verdict, report.reason) == ("failed", "closed")


async def test_a_host_that_never_answers_costs_the_job_no_more_than_the_deadline() -> None:
    async with Origin(handler=silent).running() as origin:
        async with proxy(f"{HOST}:{origin.port}", limits=QUICK) as here:
            got = await here.ask(get(f"http://{HOST}:{origin.port}/"))
            report = await here.report()

    assert got.status == 504
    assert (report.verdict, report.reason) == ("failed", "timeout")


async def test_a_host_that_falls_silent_within_a_body_is_cut_off_with_a_reset() -> None:
    async def halting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        await reader.read()

    async with Origin(handler=halting).running() as origin:
        async with proxy(f"{HOST}:{origin.port}", limits=QUICK) as here:
            got = await here.ask(get(f"http://{HOST}:{origin.port}/"))
            report = await here.report()

    assert got.broken
    assert (report.verdict, report.reason) == ("failed", "timeout")


async def test_a_host_that_breaks_off_within_a_body_is_seen_to_have_broken_off() -> None:
    async def breaking(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        await writer.drain()
        await go.wait()
        reset(writer)

    go = asyncio.Event()
    async with Origin(handler=breaking).running() as origin, proxy(f"{HOST}:{origin.port}") as here:
        reader, writer = await here.connect()
        writer.write(get(f"http://{HOST}:{origin.port}/"))
        await reader.readuntil(b"half")
        go.set()
        got = await read_all(reader)
        writer.transport.abort()
        report = await here.report()

    assert got.broken
    assert (report.verdict, report.reason) == ("failed", "bad_response")


async def test_a_host_that_breaks_off_within_a_request_is_a_bad_answer_that_the_job_is_told_of() -> None:
    async def breaking(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1 << 20)
        reset(writer)

    async with Origin(handler=breaking).running() as origin, proxy(f"{HOST}:{origin.port}") as here:
        reader, writer = await here.connect()
        writer.write(get(f"http://{HOST}:{origin.port}/", "Content-Length: 2000000", method="PUT") + bytes(1_500_000))
        got = await read_all(reader)
        writer.transport.abort()
        report = await here.report()

    assert got.status == 502
    assert (report.verdict, report.reason) == ("failed", "bad_response")


async def test_a_job_that_breaks_off_is_reported_whatever_it_was_doing() -> None:
    async def generous(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(bytes(1 << 16))
            await writer.drain()

    async with Origin(handler=generous).running() as origin:
        async with proxy(f"{HOST}:{origin.port}", f"{HERE}:{origin.port}") as here:
            for first in (
                get(f"http://{HOST}:{origin.port}/"),
                get(f"http://{HOST}:{origin.port}/", "Content-Length: 9", method="PUT"),
                f"CONNECT {HERE}:{origin.port} HTTP/1.0\r\n\r\n".encode() + get("/", host="x"),
            ):
                reader, writer = await here.connect()
                writer.write(first)
                await reader.readuntil(b"\r\n\r\n")
                reset(writer)
                report = await here.report()
                assert (report.verdict, report.reason) == ("open", "closed")
            for first in (b"GET", f"CONNECT {HOST}:{origin.port} HTTP/1.0\r\n\r\n".encode()):
                reader, writer = await here.connect()
                writer.write(first)
                if first != b"GET":
                    await reader.readuntil(b"\r\n\r\n")
                reset(writer)
                report = await here.report()
                assert (report.verdict, report.reason) == ("failed", "closed")


async def test_a_body_that_the_job_does_not_send_ends_in_a_time_out() -> None:
    async with Origin(handler=silent).running() as origin:
        async with proxy(f"{HOST}:{origin.port}", limits=QUICK) as here:
            got = await here.ask(get(f"http://{HOST}:{origin.port}/", "Content-Length: 9", method="PUT") + b"some")

    assert got.status == 504


async def test_a_tunnel_without_a_byte_is_cut_off() -> None:
    async with Origin(handler=silent).running() as origin:
        async with proxy(f"{HERE}:{origin.port}", f"{HOST}:{origin.port}", limits=QUICK) as here:
            for host in (HERE, HOST):
                target = f"{host}:{origin.port}"
                await here.ask(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
                report = await here.report()
                assert (report.verdict, report.reason) == ("failed", "timeout")


async def test_a_name_that_takes_too_long_ends_in_a_time_out() -> None:
    class Slow(Names):
        async def __call__(self, host: str, port: int) -> list[str]:
            await asyncio.Event().wait()
            return []

    async with proxy(f"{HOST}:80", names=Slow(), limits=QUICK) as here:
        got = await here.ask(get(f"http://{HOST}/"))

    assert got.status == 504
    assert got.told["reason"] == "timeout"


async def test_a_host_that_accepts_and_does_not_speak_tls_ends_in_a_time_out() -> None:
    async with Origin(handler=silent).running() as origin:
        async with proxy(f"{HOST}:{origin.port}", limits=QUICK) as here:
            got = await here.ask(get(f"https://{HOST}:{origin.port}/"))

    assert got.told["reason"] == "timeout"


async def test_a_port_where_nobody_listens_is_unreachable() -> None:
    with socket.socket() as taken:
        taken.bind((HERE, 0))  # bound and not listening: refuses
        port = taken.getsockname()[1]
        async with proxy(f"{HOST}:{port}") as here:
            got = await here.ask(get(f"http://{HOST}:{port}/"))
            report = await here.report()

    assert got.status == 502
    assert (report.verdict, report.reason, report.address) == ("failed", "unreachable", HERE)


async def test_the_next_address_is_tried_when_one_refuses() -> None:
    names = Names(**{HOST: [["127.0.0.2", HERE]]})
    async with Origin().running() as origin:
        async with proxy(f"{HOST}:{origin.port}", names=names, networks=("127.0.0.0/8",)) as here:
            assert (await here.ask(get(f"http://{HOST}:{origin.port}/"))).status == 200
            assert (await here.report()).address == HERE


async def test_the_bytes_of_all_connections_of_a_job_count_together() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n" + bytes(60000)
    async with Origin(answer).running() as origin:
        async with proxy(f"{HOST}:{origin.port}", limits=EgressLimits(bytes_total=100_000)) as here:
            first = await here.ask(get(f"http://{HOST}:{origin.port}/"))
            second = await here.ask(get(f"http://{HOST}:{origin.port}/"))
            reports = [await here.report(), await here.report()]

    assert len(first.body) == 60000
    assert second.broken
    assert [report.verdict for report in reports] == ["open", "failed"]
    assert reports[1].reason == "limit"
    assert sum(report.bytes_sent + report.bytes_received for report in reports) <= 100_000


async def test_a_job_without_bytes_left_is_told_so_before_the_host_gets_any() -> None:
    async with Origin().running() as origin:
        async with proxy(f"{HOST}:{origin.port}", limits=EgressLimits(bytes_total=10)) as here:
            got = await here.ask(get(f"http://{HOST}:{origin.port}/"))
            report = await here.report()

    assert got.status == 403
    assert (report.verdict, report.reason, report.bytes_sent) == ("refused", "limit", 0)
    assert origin.heads == []


async def test_more_connections_than_allowed_are_turned_away_and_the_others_served() -> None:
    go = asyncio.Event()

    async def patient(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await go.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    async with Origin(handler=patient).running() as origin:
        async with proxy(f"{HOST}:{origin.port}") as here:
            asking = [asyncio.create_task(here.ask(get(f"http://{HOST}:{origin.port}/"))) for _ in range(100)]
            turned_away = [await here.report() for _ in range(36)]
            go.set()
            answers = await asyncio.gather(*asking)
            served = [await here.report() for _ in range(64)]
            again = await here.ask(get(f"http://{HOST}:{origin.port}/"))

    assert {report.reason for report in turned_away} == {"too_many"}
    assert {report.verdict for report in turned_away} == {"refused"}
    assert {report.verdict for report in served} == {"open"}
    assert sorted(answer.status for answer in answers) == [200] * 64 + [503] * 36
    assert again.status == 200


async def test_a_crowd_at_a_narrow_door_gets_an_answer_each_in_the_end() -> None:
    async with Origin().running() as origin:
        async with proxy(f"{HOST}:{origin.port}", limits=EgressLimits(connections=2, linger_s=0.2)) as here:
            asking = [here.ask(get(f"http://{HOST}:{origin.port}/")) for _ in range(40)]
            answers = await asyncio.gather(*asking)
            reports = [await here.report() for _ in range(40)]

    assert {answer.status for answer in answers} <= {200, 503}
    served = [report for report in reports if report.verdict == "open"]
    assert len(served) == sum(answer.status == 200 for answer in answers) >= 2


async def test_leaving_the_context_ends_every_connection_and_reports_each_once() -> None:
    async with Origin(handler=silent).running() as origin:
        async with proxy(f"{HOST}:{origin.port}", f"{HERE}:{origin.port}") as here:
            mute = [await here.connect() for _ in range(5)]
            waiting = [await here.connect() for _ in range(5)]
            tunnels = [await here.connect() for _ in range(5)]
            for _, writer in waiting:
                writer.write(get(f"http://{HOST}:{origin.port}/"))
            for reader, writer in tunnels:
                writer.write(f"CONNECT {HERE}:{origin.port} HTTP/1.0\r\n\r\n".encode())
                assert b"200" in await reader.readline()
        ends = [await read_all(reader) for reader, _ in mute + waiting]
        for _, writer in mute + waiting + tunnels:
            writer.transport.abort()

    assert [end.raw for end in ends] == [b""] * 10
    assert sorted(report.verdict for report in here.reports) == ["failed"] * 10 + ["open"] * 5
    assert {report.reason for report in here.reports} == {"ended"}
    with pytest.raises(ConnectionRefusedError):
        await here.connect()


async def test_an_exchange_that_is_over_is_not_called_cut_when_the_job_ends() -> None:
    async with Origin().running() as origin:
        async with proxy(f"{HOST}:{origin.port}") as here:
            reader, writer = await here.connect()
            writer.write(get(f"http://{HOST}:{origin.port}/"))
            await reader.read()
        writer.transport.abort()

    assert [(report.verdict, report.reason) for report in here.reports] == [("open", "")]


async def test_a_job_that_sends_all_of_a_refused_body_first_can_still_read_why() -> None:
    async with proxy(f"{HOST}:80") as here:
        head = get("http://evil.example/", "Content-Length: 900000", method="PUT")
        got = await asyncio.to_thread(send_then_read, here.port, head + bytes(900_000))

    assert got.told["reason"] == "not_granted"


def send_then_read(port: int, data: bytes) -> Answer:
    with socket.create_connection((HERE, port), timeout=60) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 << 10)  # so that all is sent only when it is read
        sock.sendall(data)
        return Answer(raw=b"".join(iter(lambda: sock.recv(1 << 16), b"")))


async def test_a_tunnel_in_use_outlives_the_time_that_it_may_be_idle() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)

    async with Origin(handler=echo).running() as origin:
        async with proxy(f"{HERE}:{origin.port}", limits=EgressLimits(idle_s=1.0)) as here:
            reader, writer = await here.connect()
            writer.write(f"CONNECT {HERE}:{origin.port} HTTP/1.0\r\n\r\n".encode())
            await reader.readuntil(b"\r\n\r\n")
            for _ in range(10):
                writer.write(b"x")
                assert await reader.read(1) == b"x"
                await asyncio.sleep(0.15)  # the passing of time is what this is about
            writer.write_eof()
            assert await reader.read() == b""
            writer.transport.abort()
            report = await here.report()

    assert (report.verdict, report.reason, report.bytes_sent) == ("open", "", 10)
