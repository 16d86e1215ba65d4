"""A request is answered in the task of its connection, and whoever leaves or cancels is heard at once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from omni_mcp.contracts.call import Call, Result
from omni_mcp.serving.asgi import AT_ONCE, Exchange
from omni_mcp.serving.under_way import UnderWay
from omni_mcp.serving.web_server import serve_http
from omni_mcp.testing import WAIT_S
from tests.serving.edge_world import World, modern, text_answer
from tests.serving.test_modern_http import send
from tests.serving.test_web_server import Hasty, connected, hello


async def test_a_client_that_leaves_in_the_middle_of_its_stream_has_its_call_cancelled() -> None:
    world = World()

    async def talks_and_stays(call: Call) -> Result:
        await call.link.progress(1, None, None)
        return await world.tool_slow(call)

    world.tools["talk"] = talks_and_stays
    body = modern("tools/call", {"name": "t__talk"}, progressToken="p")
    async with world.client() as http:
        async with http.stream("POST", "/mcp", json=body, headers=dict(_headers(body))) as stream:
            assert stream.headers["content-type"] == "text/event-stream"
            await asyncio.wait_for(world.started.wait(), WAIT_S)
        await asyncio.wait_for(world.stopped.wait(), WAIT_S)
        world.release.set()
        after = await send(http, modern("tools/call", {"name": "t__echo"}))
    assert world.cancelled == [world.calls[0].id]
    assert after.json()["result"]["resultType"] == "complete"


async def test_a_call_that_the_gateway_cancels_is_answered_and_its_connection_serves_the_next() -> None:
    world = World()
    async with world.client() as http:
        asked = asyncio.create_task(send(http, modern("tools/call", {"name": "t__slow"}, id="first")))
        await asyncio.wait_for(world.started.wait(), WAIT_S)
        for session in list(world.edge._sessions):
            session.cancel_calls()
            session.cancel_calls()  # a second word changes nothing
        told = (await asked).json()
        world.release.set()
        after = await send(http, modern("tools/call", {"name": "t__slow"}))
    assert told["id"] == "first" and "cancelled" in told["error"]["message"]
    assert after.json()["result"]["structuredContent"] == {"value": "done"}


async def test_a_tool_that_waits_once_more_while_it_is_cancelled_is_waited_for() -> None:
    world = World()
    ended: list[str] = []

    async def cleans_up(call: Call) -> Result:
        world.started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            ended.append(call.id)
            raise
        return text_answer("never")

    world.tools["slow"] = cleans_up
    async with world.client() as http:
        asked = asyncio.create_task(send(http, modern("tools/call", {"name": "t__slow"})))
        await asyncio.wait_for(world.started.wait(), WAIT_S)
        assert await world.edge.drain(timeout_s=0.01) == 1
        assert ended == [world.calls[0].id]
        assert "error" in (await asked).json()


async def test_a_request_that_comes_in_part_behind_an_answer_keeps_its_own_deadline() -> None:
    async with serve_http(hello, "127.0.0.1", 0, protocol=Hasty) as port, connected(port) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HT")
        said = await asyncio.wait_for(reader.read(), WAIT_S)
    assert said.startswith(b"HTTP/1.1 200") and b"HTTP/1.1 408" in said


async def test_an_answer_that_counts_until_it_is_taken_returns_when_its_client_has_read_it() -> None:
    size_bytes = 16 << 20  # more than the system's own buffers take
    taken = asyncio.Event()

    async def large(scope: Any, receive: Any, send: Any) -> None:
        await Exchange(scope, receive, send, {}, "id").answer_until_taken(200, b"x" * size_bytes)
        taken.set()

    async with serve_http(large, "127.0.0.1", 0) as port, connected(port) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), WAIT_S)
        assert b"content-length: %d" % size_bytes in head and not taken.is_set()
        await asyncio.wait_for(reader.readexactly(size_bytes), WAIT_S)
        await asyncio.wait_for(taken.wait(), WAIT_S)


async def test_an_answer_whose_header_would_begin_another_line_is_not_written() -> None:
    async def tricked(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"x", b"a\r\nset-cookie: b")]
        assert not scope["extensions"][AT_ONCE]["answer"](scope, 200, headers, b"body")
        await hello(scope, receive, send)

    async with serve_http(tricked, "127.0.0.1", 0, protocol=Hasty) as port, connected(port) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        said = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), WAIT_S)
    assert said.startswith(b"HTTP/1.1 200") and b"set-cookie" not in said


async def test_a_request_whose_body_is_not_read_while_another_is_answered_is_not_late() -> None:
    """What came behind a slow request is read when its turn comes, and its own deadline begins then."""
    later = asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/slow":
            await later.wait()
        await hello(scope, receive, send)

    async with serve_http(slow, "127.0.0.1", 0, protocol=Hasty) as port, connected(port) as (reader, writer):
        writer.write(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\nPOST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n12")
        reading = asyncio.create_task(reader.read(1))
        await asyncio.wait({reading}, timeout=3 * Hasty.body_deadline_s)
        assert not reading.done()
        writer.write(b"34")
        later.set()
        said = await reading + await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), WAIT_S)
        assert said.startswith(b"HTTP/1.1 200")
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), WAIT_S)).startswith(b"HTTP/1.1 200")
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n12")
        assert b"HTTP/1.1 408" in await asyncio.wait_for(reader.read(), WAIT_S), "one that is read can be late"


@pytest.mark.parametrize("behind", [b"GET / HT", b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"\0\0\0\0"])
async def test_what_is_wrong_with_a_request_is_not_said_to_the_one_before_it(behind: bytes) -> None:
    async def never(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async with serve_http(never, "127.0.0.1", 0, protocol=Hasty) as port, connected(port) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + behind)
        assert await asyncio.wait_for(reader.read(), WAIT_S) == b"", "closed, without a word that nothing was done"


async def test_a_client_that_leaves_is_heard_by_what_is_answered_also_where_a_request_came_behind_it() -> None:
    begun, heard = asyncio.Event(), asyncio.Event()

    async def streams(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        begun.set()
        while (await receive())["type"] != "http.disconnect":
            pass
        heard.set()

    async with serve_http(streams, "127.0.0.1", 0, protocol=Hasty) as port:
        async with connected(port) as (_, writer):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await asyncio.wait_for(begun.wait(), WAIT_S)
            writer.transport.abort()
            await asyncio.wait_for(heard.wait(), WAIT_S)


async def test_a_task_whose_request_was_cancelled_is_not_taken_for_one_that_is_to_end() -> None:
    """Else a group of tasks in it would end as cancelled, in place of telling what went wrong."""
    host = asyncio.current_task()
    assert host is not None
    under_way = UnderWay(host)
    asyncio.get_running_loop().call_soon(under_way.cancel)
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        under_way.end(None)
    assert under_way.cancelled() and host.cancelling() == 0

    its_host_ends = UnderWay(host)
    asyncio.get_running_loop().call_soon(host.cancel)
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        its_host_ends.end(None)
    assert its_host_ends.cancelled() and host.cancelling() == 1, "that it is to end is not taken back"
    host.uncancel()


def _headers(body: dict[str, Any]) -> dict[str, str]:
    return {
        "MCP-Protocol-Version": "2026-07-28", "Mcp-Method": body["method"], "Mcp-Name": body["params"]["name"],
        "Accept": "application/json, text/event-stream",
    }  # fmt: skip
