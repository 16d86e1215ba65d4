"""Tunnels: TLS to the granted name and nothing else, byte for byte."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from pathlib import Path

import pytest

from omni_mcp.contracts.sandbox import Credential
from omni_mcp.engines.sandbox.egress.limits import EgressLimits
from tests.egress.outside import (
    HERE,
    HOST,
    Names,
    Origin,
    Proxy,
    certificates,
    client_hello,
    proxy,
    read_all,
)

ALERT = b"\x15\x03\x03\x00\x02\x02\x31"


async def tunnel(here: Proxy, target: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Ask for a tunnel and take the answer off the stream."""
    reader, writer = await here.connect()
    writer.write(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    return reader, writer


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def test_a_tunnel_carries_tls_to_the_granted_name_and_counts_its_bytes(tmp_path: Path) -> None:
    secure = certificates(tmp_path)
    secret = "s3cret"
    async with Origin().running(secure.server) as origin:
        host = f"{HOST}:{origin.port}"
        credentials = (Credential(host=host, header="X-Api-Key", value=secret),)
        async with proxy(host, credentials=credentials) as here:
            reader, writer = await tunnel(here, host)
            await writer.start_tls(secure.client, server_hostname=HOST)
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200 OK")
            writer.transport.abort()
            report = await here.report()

    assert origin.heads == [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"]
    assert (report.method, report.verdict, report.host, report.address) == ("CONNECT", "open", HOST, HERE)
    assert report.bytes_sent > 300
    assert report.bytes_received > 300
    assert not report.credential


@pytest.mark.parametrize("name", ["other.example.org", "example.org", f"x.{HOST}", None])
async def test_a_tunnel_to_another_name_or_to_none_is_ended_before_the_host_gets_a_byte(name: str | None) -> None:
    origin = Origin()
    async with origin.running(), proxy(f"{HOST}:{origin.port}") as here:
        reader, writer = await tunnel(here, f"{HOST}:{origin.port}")
        writer.write(client_hello(name))
        got = await read_all(reader)
        writer.transport.abort()
        report = await here.report()
        await asyncio.wait_for(origin.last_over.wait(), 30)

    assert got.raw == ALERT
    assert (report.verdict, report.reason, report.bytes_sent) == ("refused", "sni_mismatch", 0)
    assert origin.heads == []


async def test_a_name_that_is_encrypted_is_refused_since_nobody_can_compare_it() -> None:
    hello = bytearray(client_hello(HOST))
    hello += b"\xfe\x0d\x00\x01\x00"
    for at, size in ((3, 2), (6, 3)):
        grown = int.from_bytes(hello[at : at + size], "big") + 5
        hello[at : at + size] = grown.to_bytes(size, "big")
    extensions = _extensions_at(bytes(hello))
    grown = int.from_bytes(hello[extensions : extensions + 2], "big") + 5
    hello[extensions : extensions + 2] = grown.to_bytes(2, "big")
    origin = Origin()
    async with origin.running(), proxy(f"{HOST}:{origin.port}") as here:
        reader, writer = await tunnel(here, f"{HOST}:{origin.port}")
        writer.write(bytes(hello))
        got = await read_all(reader)
        writer.transport.abort()
        report = await here.report()

    assert got.raw == ALERT
    assert (report.verdict, report.reason) == ("refused", "sni_hidden")


def _extensions_at(hello: bytes) -> int:
    at = 9 + 2 + 32
    at += 1 + hello[at]
    at += 2 + int.from_bytes(hello[at : at + 2], "big")
    return at + 1 + hello[at]


@pytest.mark.parametrize(
    "first",
    [
        b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"SSH-2.0-x\r\n",
        b"\x16\x02\x00\x00\x05hello",
        b"\x16\x03\x01\x00\x05hello",
        b"\x16\x03\x01\x00\x00",
        b"\x17\x03\x03\x00\x05hello",
        b"\x80\x2e\x01\x03\x01",
        b"\x16\x03\x01\x00\x04\x01\xff\xff\xff",
    ],
)
async def test_a_tunnel_to_a_name_that_is_not_tls_is_ended_before_the_host_gets_a_byte(first: bytes) -> None:
    received: list[bytes] = []

    async def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.read())

    origin = Origin(handler=keep)
    async with origin.running(), proxy(f"{HOST}:{origin.port}") as here:
        reader, writer = await tunnel(here, f"{HOST}:{origin.port}")
        writer.write(first)
        got = await read_all(reader)
        writer.transport.abort()
        report = await here.report()
        await asyncio.wait_for(origin.last_over.wait(), 30)

    assert got.raw == b""
    assert (report.verdict, report.reason, report.bytes_sent) == ("refused", "not_tls", 0)
    assert received == [b""]


async def test_a_hello_in_single_bytes_and_several_records_is_understood_all_the_same() -> None:
    hello = client_hello(HOST)
    body, cut = hello[5:], 7
    split = b"\x16\x03\x01" + cut.to_bytes(2, "big") + body[:cut]
    split += b"\x16\x03\x01" + (len(body) - cut).to_bytes(2, "big") + body[cut:]
    origin = Origin(handler=echo)
    async with origin.running(), proxy(f"{HOST}:{origin.port}") as here:
        reader, writer = await tunnel(here, f"{HOST}:{origin.port}")
        for at in range(len(split)):
            writer.write(split[at : at + 1])
            await writer.drain()
            await asyncio.sleep(0)
        assert await reader.readexactly(len(split)) == split
        writer.transport.abort()


async def test_a_hello_for_another_name_is_refused_however_it_is_cut() -> None:
    hello = client_hello("evil.example")
    origin = Origin(handler=echo)
    async with origin.running(), proxy(f"{HOST}:{origin.port}") as here:
        reader, writer = await tunnel(here, f"{HOST}:{origin.port}")
        for at in range(0, len(hello), 11):
            writer.write(hello[at : at + 11])
            await asyncio.sleep(0)
        got = await read_all(reader)
        writer.transport.abort()

    assert got.raw == ALERT


@pytest.mark.parametrize(
    "request_head",
    [
        "CONNECT {name} HTTP/1.1\r\nHost: {name}\r\n\r\n",
        "CONNECT http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n",
        "CONNECT {host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n",
        "CONNECT user@{host} HTTP/1.1\r\nHost: {host}\r\n\r\n",
        "CONNECT {host} HTTP/1.1\r\nHost: evil.example:443\r\n\r\n",
        "CONNECT {host} HTTP/1.1\r\n\r\n",
        "CONNECT {host} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 4\r\n\r\nbody",
        "CONNECT {host} HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)
async def test_a_request_for_a_tunnel_that_is_not_one_is_refused(request_head: str) -> None:
    origin = Origin()
    async with origin.running(), proxy(f"{HOST}:{origin.port}", f"{HOST}:443") as here:
        got = await here.ask(request_head.format(host=f"{HOST}:{origin.port}", name=HOST).encode())

    assert got.told["reason"] == "bad_request"
    assert origin.connections == 0


async def test_a_tunnel_to_a_host_that_is_not_granted_is_refused() -> None:
    async with proxy(f"{HOST}:443") as here:
        for target in ("evil.example:443", f"{HOST}:444", "127.0.0.1:443", "[::1]:443"):
            got = await here.ask(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
            assert got.status == 403
            assert got.told["reason"] == "not_granted"


async def test_a_tunnel_to_a_granted_address_carries_anything_and_lets_the_host_speak_first() -> None:
    async def banner(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-x\r\n")
        await echo(reader, writer)

    origin = Origin(handler=banner)
    async with origin.running(), proxy(f"{HERE}:{origin.port}", networks=()) as here:
        reader, writer = await tunnel(here, f"{HERE}:{origin.port}")
        assert await reader.readline() == b"SSH-2.0-x\r\n"
        writer.write(b"hi")
        writer.write_eof()
        assert await reader.read() == b"hi"
        writer.transport.abort()
        report = await here.report()

    assert (report.verdict, report.reason) == ("open", "")
    assert (report.bytes_sent, report.bytes_received) == (2, 13)


async def test_thirty_megabytes_each_way_arrive_whole_through_a_tunnel() -> None:
    block = hashlib.sha256(b"seed").digest() * (1 << 15)
    origin = Origin(handler=echo)
    async with origin.running(), proxy(f"{HERE}:{origin.port}", networks=()) as here:
        reader, writer = await tunnel(here, f"{HERE}:{origin.port}")

        async def send() -> None:
            for _ in range(30):
                writer.write(block)
                await writer.drain()
            writer.write_eof()

        sending = asyncio.create_task(send())
        got = hashlib.sha256()
        while data := await reader.read(1 << 16):
            got.update(data)
        await sending
        writer.transport.abort()
        report = await here.report()

    assert got.digest() == hashlib.sha256(block * 30).digest()
    assert (report.bytes_sent, report.bytes_received) == (30 << 20, 30 << 20)


async def test_a_host_that_reads_nothing_stops_the_job_instead_of_filling_memory() -> None:
    enough = asyncio.Event()

    async def stubborn(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await enough.wait()

    origin = Origin(handler=stubborn)
    async with origin.running():
        async with proxy(f"{HERE}:{origin.port}", networks=(), limits=EgressLimits(idle_s=1.0)) as here:
            reader, writer = await tunnel(here, f"{HERE}:{origin.port}")
            writer.write(bytes(64 << 20))
            got = await read_all(reader)
            report = await here.report()
            writer.transport.abort()
            enough.set()

    assert got.broken
    assert (report.verdict, report.reason) == ("failed", "timeout")
    assert report.bytes_sent < 32 << 20


async def test_a_tls_client_sees_the_hosts_own_certificate_through_a_tunnel(tmp_path: Path) -> None:
    wrong = certificates(tmp_path, "other.example.org")
    origin = Origin(handler=swallow)
    async with origin.running(wrong.server), proxy(f"{HOST}:{origin.port}") as here:
        _, writer = await tunnel(here, f"{HOST}:{origin.port}")
        with pytest.raises(ssl.SSLCertVerificationError):
            await writer.start_tls(wrong.client, server_hostname=HOST)
        writer.transport.abort()
        await here.report()


async def test_a_name_in_capitals_is_the_same_name(tmp_path: Path) -> None:
    secure = certificates(tmp_path)
    names = Names(**{HOST: [[HERE]]})
    async with Origin().running(secure.server) as origin, proxy(f"{HOST}:{origin.port}", names=names) as here:
        _, writer = await tunnel(here, f"{HOST.upper()}:{origin.port}")
        await writer.start_tls(secure.client, server_hostname=HOST.title())
        writer.transport.abort()
        assert (await here.report()).verdict == "open"
