"""A cell fetches from a server on loopback through the whole gateway, and from nowhere else."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from omni_mcp.testing import ALLOW_ALL, LocalGateway, MemoryClient, error_of, local_gateway
from tests.egress_policy.sandbox_double import BRIEFLY, grant

pytestmark = [pytest.mark.usefixtures("cells"), pytest.mark.sandbox]


class Origin:
    """A server of the tests: `/to/HOST:PORT` redirects there, everything else says hello. Keeps what it was asked."""

    def __init__(self) -> None:
        self.heads: list[str] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Origin]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        async with server:
            yield self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        self.heads.append(head)
        path = head.split()[1]
        if path.startswith("/to/"):
            target = path.removeprefix("/to/")
            answer = f"HTTP/1.1 302 Found\r\nLocation: http://{target}/\r\nContent-Length: 0\r\n\r\n"
        else:
            answer = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello"
        writer.write(answer.encode())
        await writer.drain()
        writer.close()


@asynccontextmanager
async def a_world(tmp_path: Path) -> AsyncIterator[tuple[LocalGateway, MemoryClient, Origin]]:
    """Open a gateway in which fetching from the origin by its literal address is granted."""
    async with (
        Origin().listening() as origin,
        local_gateway(ALLOW_ALL, settings=BRIEFLY, directory=tmp_path) as here,
        here.client() as client,
    ):
        await grant(here, "tools__http_fetch", "--host", f"127.0.0.1:{origin.port}")
        yield here, client, origin


async def connections(here: LocalGateway) -> list[tuple[Any, ...]]:
    """Return (host, port, verdict, reason) of each connection on record."""
    found = [event.payload or {} for event in await here.events() if event.code == "egress_connection"]
    return [(one["host"], one["port"], one["verdict"], one["reason"]) for one in found]


def a_closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


async def test_a_granted_host_is_reached_and_what_was_reached_is_on_record(tmp_path: Path) -> None:
    async with a_world(tmp_path) as (here, client, origin):
        result = await client.call("tools__http_fetch", {"url": f"{origin.url}/x?y=1"})

        assert not result["isError"], result["content"]
        assert (result["structuredContent"]["status"], result["structuredContent"]["text"]) == (200, "hello")
        (head,) = origin.heads
        assert head.startswith("GET /x?y=1 HTTP/1.1\r\n")
        assert f"host: 127.0.0.1:{origin.port}\r\n" in head.lower()
        ((*reached, reason),) = await connections(here)
        assert reached == ["127.0.0.1", origin.port, "open"]
        assert reason in ("", "ended"), "its client closed it, or the end of its job did"
        (event,) = [event for event in await here.events() if event.code == "egress_connection"]
        assert (event.payload or {})["bytes_received"] > 0 and event.call is not None
        assert (await here.words(event.call))[-1] == "tool_result"


async def test_a_host_that_was_not_granted_is_asked_about_and_not_reached(tmp_path: Path) -> None:
    async with a_world(tmp_path) as (here, client, _), Origin().listening() as other:
        result = await client.call("tools__http_fetch", {"url": other.url})
        assert error_of(result)["code"] == "approval_pending"
        assert other.heads == []

        here.answer(True)
        result = await client.call("tools__http_fetch", {"url": other.url})
        assert result["structuredContent"]["text"] == "hello" and len(other.heads) == 1


@pytest.mark.parametrize("where", ["other port", "169.254.169.254:80", "10.0.0.1:80", "[::1]:80", "localhost:80"])
async def test_a_redirect_out_of_the_grant_is_refused_recorded_and_told(tmp_path: Path, where: str) -> None:
    async with a_world(tmp_path) as (here, client, origin), Origin().listening() as other:
        target = f"127.0.0.1:{other.port}" if where == "other port" else where
        result = await client.call("tools__http_fetch", {"url": f"{origin.url}/to/{target}"})

        assert not result["isError"], result["content"]
        found = result["structuredContent"]
        assert (found["status"], found["redirect"]) == (302, f"http://{target}/")
        assert "its own permission" in found["note"]
        assert other.heads == []
        verdicts = [(verdict, reason) for _, _, verdict, reason in await connections(here)]
        assert verdicts == [("open", ""), ("refused", "not_granted")]


async def test_a_redirect_within_the_grant_is_followed(tmp_path: Path) -> None:
    async with a_world(tmp_path) as (_, client, origin):
        result = await client.call("tools__http_fetch", {"url": f"{origin.url}/to/127.0.0.1:{origin.port}"})
        assert (result["structuredContent"]["text"], len(origin.heads)) == ("hello", 2)


async def test_a_server_that_is_not_there_is_tried_three_times(tmp_path: Path) -> None:
    async with local_gateway(ALLOW_ALL, settings=BRIEFLY, directory=tmp_path) as here, here.client() as client:
        port = a_closed_port()
        await grant(here, "tools__http_fetch", "--host", f"127.0.0.1:{port}")
        result = await client.call("tools__http_fetch", {"url": f"http://127.0.0.1:{port}/"})
        assert result["isError"] and "attempts: 3 (" in result["content"][0]["text"]
        assert await connections(here) == [("127.0.0.1", port, "failed", "unreachable")] * 3


async def test_a_name_that_leads_to_this_machine_is_refused_although_it_is_granted(tmp_path: Path) -> None:
    async with a_world(tmp_path) as (here, client, origin):
        await grant(here, "tools__http_fetch", "--host", f"localhost:{origin.port}")
        result = await client.call("tools__http_fetch", {"url": f"http://localhost:{origin.port}/"})
        assert result["isError"] and "private_address" in result["content"][0]["text"]
        assert origin.heads == []
        assert await connections(here) == [("localhost", origin.port, "refused", "private_address")]
