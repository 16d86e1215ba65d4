"""HTTP upstreams: headers, sessions, resumption, and servers that break on the way."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from omni_mcp.engines.upstream.connection import Timing
from omni_mcp.engines.upstream.health import Patience
from omni_mcp.engines.upstream.wire.large import LargeParser
from omni_mcp.engines.upstream.wire.seam import Outgoing
from omni_mcp.engines.upstream.wire.streamable import StreamableWire
from omni_mcp.engines.upstream.wire.web import Web, place_of
from omni_mcp.server_definition import ServerDefinition
from omni_mcp.testing import error_of
from tests.upstream.servers.web import Asked, handshake, modern, text, web_server
from tests.upstream.world import world, writing
from tests.waiting import until


def at(url: str, **facts: Any) -> ServerDefinition:
    return ServerDefinition(url=url, transport="http", **facts)


async def answer(asked: Asked) -> None:
    await asked.result(text("done"))


async def test_a_session_and_its_version_are_named_on_every_request_and_ended_at_the_end() -> None:
    async with web_server(handshake(answer)) as server:
        async with world({"up": at(server.url)}) as here, here.client() as client:
            result = await client.call("up__it")
        asked = server.asked

    assert result["content"][0]["text"] == "done"
    later = [one for one in asked if one.rpc not in ("server/discover", "initialize")]
    assert {one.headers.get("mcp-session-id") for one in later} == {"s-1"}
    assert {one.headers.get("mcp-protocol-version") for one in later} == {"2025-11-25"}
    assert [one.rpc for one in asked if one.method == "POST"][:3] == [
        "server/discover", "initialize", "notifications/initialized"
    ]  # fmt: skip
    assert asked[-1].method == "DELETE"
    assert any(one.method == "GET" for one in asked)


async def test_a_modern_server_gets_headers_that_say_what_the_body_says() -> None:
    schema = {
        "type": "object",
        "properties": {
            "region": {"type": "string", "x-mcp-header": "Region"},
            "deep": {"type": "object", "properties": {"n": {"type": "integer", "x-mcp-header": "N"}}},
            "gone": {"type": "boolean", "x-mcp-header": "Gone"},
        },
    }
    tools = [{"name": "wörk", "inputSchema": schema}, {"name": "bad", "inputSchema": {
        "type": "object", "properties": {"x": {"type": "string", "x-mcp-header": "no good"}}}}]  # fmt: skip
    async with web_server(modern(answer, tools=tools)) as server:
        async with world({"up": at(server.url)}) as here, here.client() as client:
            names = [tool["name"] for tool in await client.listed("tools") if tool["name"].startswith("up__")]
            await client.call(names[0], {"region": "zürich", "deep": {"n": 7}})
            problems = here.pool.facts()["up"]["problems"]
        call = next(one for one in server.asked if one.rpc == "tools/call")

    assert len(names) == 1 and "bad" in problems[0]
    assert call.headers["mcp-protocol-version"] == "2026-07-28"
    assert call.headers["mcp-method"] == "tools/call"
    assert call.headers["mcp-name"] == "=?base64?d8O2cms=?="
    assert call.headers["mcp-param-region"] == "=?base64?esO8cmljaA==?="
    assert call.headers["mcp-param-n"] == "7"
    assert "mcp-param-gone" not in call.headers and "mcp-session-id" not in call.headers


async def test_the_operators_headers_go_with_every_request_and_no_other_credential_does() -> None:
    settings = None
    async with web_server(handshake(answer)) as server:
        settings = at(server.url, headers={"Authorization": "Bearer secret:key"})
        async with world({"up": settings}, secrets={"key": "s3cret-value"}) as here, here.client() as client:
            await client.call("up__it", _meta={"authorization": "Bearer callers-own"})
        asked = server.asked

    assert {one.headers["authorization"] for one in asked} == {"Bearer s3cret-value"}
    assert "callers-own" not in "".join(str(one.headers) + one.body.decode() for one in asked)


async def test_a_stream_that_ends_early_is_resumed_where_it_ended() -> None:
    async def call(asked: Asked) -> None:
        await asked.events()
        await asked.event(None, id="e-1", retry_ms=10)
        await asked.end()

    async def get(asked: Asked) -> None:
        if "last-event-id" not in asked.headers:
            await asked.reply(405)
            return
        await asked.events()
        sent = next(one for one in server.asked if one.rpc == "tools/call").message
        if asked.headers["last-event-id"] == "e-1":
            await asked.event({"jsonrpc": "2.0", "method": "notifications/vendor", "params": {}}, id="e-2")
            asked.writer.close()  # breaks once more
            return
        await asked.event({"jsonrpc": "2.0", "id": sent["id"], "result": text("resumed")}, id="e-3")
        await asked.end()

    async with web_server(handshake(call, get=get)) as server:
        async with world({"up": at(server.url)}, accept=writing) as here, here.client() as client:
            result = await client.call("up__it")
        resumed = [one.headers["last-event-id"] for one in server.asked if "last-event-id" in one.headers]
        calls = [one for one in server.asked if one.rpc == "tools/call"]

    assert result["content"][0]["text"] == "resumed"
    assert resumed == ["e-1", "e-2"] and len(calls) == 1


async def test_a_forgotten_session_is_opened_again_and_the_call_sent_again_whatever_it_does() -> None:
    forgotten: list[Asked] = []

    async def call(asked: Asked) -> None:
        if not forgotten:
            forgotten.append(asked)
            await asked.reply(404, b"Session not found", "text/plain")
            return
        await answer(asked)

    async with web_server(handshake(call)) as server:
        async with world({"up": at(server.url)}, accept=writing) as here, here.client() as client:
            result = await client.call("up__it")
        greetings = [one for one in server.asked if one.rpc == "initialize"]

    assert result["content"][0]["text"] == "done" and len(greetings) == 2


@pytest.mark.parametrize(
    ("status", "code"), [(500, "outcome_unknown"), (502, "outcome_unknown"), (503, "outcome_unknown"),
                         (408, "outcome_unknown"), (429, "upstream_unavailable"), (401, "upstream_unavailable")]
)  # fmt: skip
async def test_a_status_says_whether_a_call_may_have_taken_effect(status: int, code: str) -> None:
    async def call(asked: Asked) -> None:
        await asked.reply(status, b"go away", "text/plain", retry_after="7")

    async with web_server(handshake(call)) as server:
        async with world({"up": at(server.url)}, accept=writing) as here, here.client() as client:
            reply = await client.request("tools/call", {"name": "up__it", "arguments": {}})
            [told] = [event.payload or {} for event in await here.gateway.events() if event.kind == "tool_error"]
        calls = [one for one in server.asked if one.rpc == "tools/call"]

    assert error_of(reply)["code"] == told["code"] == code and len(calls) == 1
    assert error_of(reply)["data"]["retry_after_s"] == 7
    assert told["dispatched"] is (code == "outcome_unknown")


@pytest.mark.parametrize(("status", "code"), [(503, "outcome_unknown"), (429, "upstream_unavailable")])
async def test_a_status_says_so_over_the_older_transport_too(status: int, code: str) -> None:
    initialized = {"protocolVersion": "2024-11-05", "capabilities": {"tools": {}}, "serverInfo": {"name": "web"}}
    said: dict[str, dict[str, Any]] = {
        "server/discover": {"error": {"code": -32601, "message": "no"}},
        "initialize": {"result": initialized},
        "tools/list": {"result": {"tools": [{"name": "it", "inputSchema": {"type": "object"}}]}},
    }
    place = b"event: endpoint\ndata: /post\n\n"
    streams: list[Asked] = []

    async def script(asked: Asked) -> None:
        if asked.method == "GET":
            streams.append(asked)
            await asked.events()
            await asked.raw(b"%x\r\n%s\r\n" % (len(place), place))
            await asyncio.Event().wait()
        elif asked.rpc in said:
            await asked.reply(202)
            await streams[-1].event({"jsonrpc": "2.0", "id": asked.message["id"], **said[asked.rpc]})
        else:
            await asked.reply(status if asked.rpc == "tools/call" else 202)

    async with web_server(script) as server:
        settings = ServerDefinition(url=server.url, transport="sse")
        async with world({"up": settings}, accept=writing) as here, here.client() as client:
            reply = await client.request("tools/call", {"name": "up__it", "arguments": {}})

    assert error_of(reply)["code"] == code


@pytest.mark.parametrize("id", ["null", '"server-error"'])  # as the Python SDK of today and its first versions say it
async def test_a_forgotten_session_that_is_told_in_json_is_opened_again(id: str) -> None:
    body = b'{"jsonrpc":"2.0","error":{"code":-32001,"message":"Session not found"},"id":%s}' % id.encode()

    async def call(asked: Asked) -> None:
        greetings = [one for one in server.asked if one.rpc == "initialize"]
        await (asked.reply(404, body) if len(greetings) == 1 else answer(asked))

    async with web_server(handshake(call)) as server:
        async with world({"up": at(server.url)}, accept=writing) as here, here.client() as client:
            results = [await client.call("up__it") for _ in range(2)]
        rpcs = [one.rpc for one in server.asked]

    assert [one["content"][0]["text"] for one in results] == ["done", "done"]
    assert (rpcs.count("initialize"), rpcs.count("tools/call")) == (2, 3)


async def test_a_404_that_answers_the_request_itself_is_its_answer() -> None:
    async def call(asked: Asked) -> None:
        await asked.error(404, -32001, "no such page")

    async with web_server(handshake(call)) as server:
        async with world({"up": at(server.url)}) as here, here.client() as client:
            replies = [await client.request("tools/call", {"name": "up__it", "arguments": {}}) for _ in range(2)]
        rpcs = [one.rpc for one in server.asked]

    assert all("no such page" in reply["result"]["content"][0]["text"] for reply in replies)
    assert (rpcs.count("initialize"), rpcs.count("tools/call")) == (1, 2)


async def broken_head(asked: Asked) -> None:
    await asked.raw(b"SSH-2.0-OpenSSH_9.6\r\n")
    asked.writer.close()


async def endless_head(asked: Asked) -> None:
    await asked.raw(b"HTTP/1.1 200 X\r\n")
    for number in range(2000):
        await asked.raw(b"x-%d: %s\r\n" % (number, b"y" * 100))


async def closes_at_once(asked: Asked) -> None:
    asked.writer.close()


async def cut_body(asked: Asked) -> None:
    await asked.raw(b'HTTP/1.1 200 X\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{"jsonrpc"')
    asked.writer.close()


async def empty_stream(asked: Asked) -> None:
    await asked.events()
    await asked.end()


async def switches(asked: Asked) -> None:
    await asked.raw(b"HTTP/1.1 101 Switching\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\nxx")


@pytest.mark.parametrize("break_it", [broken_head, endless_head, closes_at_once, cut_body, empty_stream, switches])
@pytest.mark.parametrize("kind", [handshake, modern])
async def test_an_answer_that_breaks_is_an_unknown_outcome_and_the_next_call_works(break_it: Any, kind: Any) -> None:
    broken: list[Asked] = []

    async def call(asked: Asked) -> None:
        if not broken:
            broken.append(asked)
            await break_it(asked)
            return
        await answer(asked)

    async with web_server(kind(call)) as server:
        async with world({"up": at(server.url)}, accept=writing) as here, here.client() as client:
            reply = await client.request("tools/call", {"name": "up__it", "arguments": {}})
            after = await client.call("up__it")

    assert error_of(reply)["code"] == "outcome_unknown"
    assert after["content"][0]["text"] == "done"


@pytest.mark.parametrize("streamed", [False, True], ids=["body", "stream"])
async def test_a_reply_to_one_request_answers_no_other(streamed: bool) -> None:
    """A server that mixes its callers up gives nobody what belongs to somebody else."""
    waiting: list[Asked] = []
    both = asyncio.Event()

    async def call(asked: Asked) -> None:
        if not waiting:
            waiting.append(asked)
            await both.wait()
            await answer(asked)
            return
        forged = {"jsonrpc": "2.0", "id": waiting[0].message["id"], "result": text("not yours")}
        if streamed:
            await asked.events()
            await asked.event(forged)
            await asked.end()
        else:
            await asked.reply(200, json.dumps(forged).encode())

    async with web_server(handshake(call)) as server:
        async with world({"up": at(server.url)}, accept=writing) as here, here.client() as client:
            _, first = await client.start("tools/call", {"name": "up__it", "arguments": {"n": 1}})
            await until(lambda: bool(waiting))
            second = await client.request("tools/call", {"name": "up__it", "arguments": {"n": 2}})
            both.set()
            mine = (await first)["result"]

    assert mine["content"][0]["text"] == "done"
    assert error_of(second)["code"] == "outcome_unknown"


@pytest.mark.parametrize("body", [b"<html>", b"", b"[]", b'{"jsonrpc":"2.0","id":1,"id":2,"result":{}}'])
async def test_an_answer_that_is_no_message_is_a_broken_protocol_or_an_unknown_outcome(body: bytes) -> None:
    async def call(asked: Asked) -> None:
        await asked.reply(200, body)

    async with web_server(handshake(call)) as server:
        async with world({"up": at(server.url)}, accept=writing) as here, here.client() as client:
            reply = await client.request("tools/call", {"name": "up__it", "arguments": {}})

    assert error_of(reply)["code"] in ("upstream_protocol", "outcome_unknown")


async def test_cancelling_a_modern_call_closes_its_answer_and_a_handshake_call_gets_a_word() -> None:
    gone = asyncio.Event()

    async def call(asked: Asked) -> None:
        await asked.events()
        try:
            while True:  # only writing shows whether the other side has gone
                await asked.raw(b"3\r\n:\n\n\r\n")
                await asyncio.sleep(0.01)
        except (ConnectionError, asyncio.CancelledError):
            gone.set()
            raise

    for kind in (modern, handshake):
        gone.clear()
        async with web_server(kind(call)) as server:
            async with world({"up": at(server.url)}) as here, here.client(version="2025-11-25") as client:
                id, reply = await client.start("tools/call", {"name": "up__it", "arguments": {}})
                await until(lambda: any(one.rpc == "tools/call" for one in server.asked))
                await client.notify("notifications/cancelled", {"requestId": id})
                await asyncio.wait_for(gone.wait(), 30)
                reply.cancel()
            told = [one.message["params"]["requestId"] for one in server.asked if one.rpc == "notifications/cancelled"]
            sent = next(one.message["id"] for one in server.asked if one.rpc == "tools/call")
        assert told == ([] if kind is modern else [sent])


async def test_a_question_on_the_standalone_stream_reaches_the_call_that_is_under_way() -> None:
    waiting = asyncio.Event()
    said: list[Any] = []

    async def call(asked: Asked) -> None:
        waiting.set()
        while not said:
            await asyncio.sleep(0.01)
        await asked.result(text(json.dumps(said[0])))

    async def get(asked: Asked) -> None:
        await asked.events()
        await waiting.wait()
        question = {"message": "?", "requestedSchema": {"type": "object", "properties": {}}}
        await asked.event({"jsonrpc": "2.0", "id": "q", "method": "elicitation/create", "params": question})
        await asyncio.sleep(60)

    script = handshake(call, get=get)

    async def watched(asked: Asked) -> None:
        if asked.method == "POST" and asked.message.get("id") == "q":
            said.append(asked.message["result"])
        await script(asked)

    async with web_server(watched) as server:
        async with world({"up": at(server.url)}) as here:
            async with here.client(
                version="2025-11-25",
                capabilities={"elicitation": {}},
                answer=lambda method, params: {"action": "decline"},
            ) as client:
                result = await client.call("up__it")

    assert json.loads(result["content"][0]["text"]) == {"action": "decline"}


@pytest.mark.parametrize(("location", "works"), [("/elsewhere", True), ("http://127.0.0.2:1/mcp", False)])
async def test_a_redirect_is_followed_inside_the_origin_only(location: str, works: bool) -> None:
    script = handshake(answer)

    async def moved(asked: Asked) -> None:
        if asked.target == "/mcp" and asked.method == "POST":
            await asked.reply(307, location=location)
        else:
            await script(asked)

    async with web_server(moved) as server:
        async with world({"up": at(server.url)}) as here, here.client() as client:
            tools = [tool["name"] for tool in await client.listed("tools") if tool["name"].startswith("up__")]
            fault = here.pool.facts()["up"]["list_fault"]

    assert (tools == ["up__it"]) is works
    assert works or "another origin" in fault


async def test_a_server_that_has_only_the_older_transport_is_found_by_itself(tmp_path: Any) -> None:
    from tests.upstream.world import sdk_over_http

    with sdk_over_http() as url:
        settings = ServerDefinition(url=f"{url}/sse")
        async with world({"up": settings}) as here, here.client() as client:
            result = await client.call("up__echo", {"text": "over sse"})

    assert result["content"][0]["text"] == "over sse"


async def test_connections_are_kept_and_all_are_closed_at_the_end() -> None:
    async with web_server(modern(answer)) as server:
        async with world({"up": at(server.url)}) as here, here.client() as client:
            for _ in range(20):
                await client.call("up__it")
            assert server.connections <= 2
        await until(lambda: not server.connections)


async def test_a_server_that_hangs_up_on_every_call_is_left_alone_for_a_while_and_then_tried_again() -> None:
    broken = True

    async def call(asked: Asked) -> None:
        if broken:
            asked.writer.close()
        else:
            await answer(asked)

    timing = Timing(patience=Patience(failures_to_open=3, open_s=60.0))
    async with web_server(handshake(call)) as server:
        async with world({"up": at(server.url)}, accept=writing, timing=timing) as here, here.client() as client:
            asked = {"name": "up__it", "arguments": {}}
            codes = [error_of(await client.request("tools/call", asked))["code"] for _ in range(6)]
            calls = len([one for one in server.asked if one.rpc == "tools/call"])

    assert codes == ["outcome_unknown"] * 3 + ["upstream_unavailable"] * 3
    assert calls == 3

    timing = Timing(patience=Patience(failures_to_open=1, open_s=0.01, open_limit_s=0.01))
    async with web_server(handshake(call)) as server:
        async with world({"up": at(server.url)}, accept=writing, timing=timing) as here, here.client() as client:
            await client.request("tools/call", asked)
            broken = False
            reply = await client.request("tools/call", asked)
            while error_of(reply):
                reply = await client.request("tools/call", asked)

    assert reply["result"]["content"][0]["text"] == "done"


async def test_a_body_that_nobody_reads_makes_its_sender_wait() -> None:
    written = 0
    chunk = b"x" * 65536
    chunks = 800

    async def script(asked: Asked) -> None:
        nonlocal written
        await asked.raw(b"HTTP/1.1 200 X\r\ncontent-length: %d\r\n\r\n" % (chunks * len(chunk)))
        for _ in range(chunks):
            await asked.raw(chunk)
            written += 1

    async with web_server(script) as server:
        web = Web(place_of(server.url))
        reply = await web.send("GET", "/", [])
        before = -1
        while before != written:  # until the sender stands still
            before = written
            await asyncio.sleep(0.2)
        size = sum([len(part) async for part in reply.chunks()])
        await web.close()

    assert before < chunks // 2
    assert size == chunks * len(chunk)


async def test_letting_go_of_an_answer_twice_does_not_touch_the_next_request_on_its_connection() -> None:
    is_read = asyncio.Event()

    async def script(asked: Asked) -> None:
        await asked.raw(b"HTTP/1.1 200 X\r\ncontent-length: 4\r\n\r\n")
        if asked.target == "/second":
            await is_read.wait()
        await asked.raw(b"done")

    async with web_server(script) as server:
        web = Web(place_of(server.url))
        first = await web.send("GET", "/first", [])
        assert await first.read(100) == b"done"
        second = await web.send("GET", "/second", [])
        assert server.connections == 1
        first.close()
        is_read.set()
        assert await second.read(100) == b"done"
        await web.close()


async def test_an_answer_that_nobody_asked_for_is_not_taken_for_the_one_before_it() -> None:
    """Some servers say 408 on an idle connection; in one packet with an answer it would say that nothing was done."""
    late = b"HTTP/1.1 408 X\r\ncontent-type: text/plain\r\ncontent-length: 4\r\n\r\nlate"

    async def call(asked: Asked) -> None:
        body = json.dumps({"jsonrpc": "2.0", "id": asked.message["id"], "result": text("done")}).encode()
        head = b"HTTP/1.1 200 X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        await asked.raw(head + body + late)

    async with web_server(handshake(call)) as server:
        async with world({"up": at(server.url)}, accept=writing) as here, here.client() as client:
            results = [await client.call("up__it") for _ in range(3)]
        calls = [one for one in server.asked if one.rpc == "tools/call"]

    assert [one["content"][0]["text"] for one in results] == ["done"] * 3
    assert len(calls) == 3 and len({id(one.writer) for one in calls}) == 3, "none of these connections is kept"


async def test_a_request_that_is_forgotten_as_its_answer_begins_leaves_no_connection_open() -> None:
    class Deaf:
        def take(self, frame: object, within: int | None) -> bool:
            return True

        def junk(self, reason: str, id: int | str | None) -> None: ...

        def failed(self, id: int, fault: Exception) -> None: ...

        def lost(self, fault: Exception) -> None: ...

    async def script(asked: Asked) -> None:
        if asked.method == "GET":
            await asked.reply(200, b"{}")
            return
        await asked.events()
        await asyncio.Event().wait()

    def forgotten(loop: asyncio.AbstractEventLoop, work: Any, **facts: Any) -> asyncio.Task[Any]:
        loop.call_soon(wire.forget, 1)  # before the first step of the task that reads the answer
        return asyncio.Task(work, loop=loop, **facts)

    async with web_server(script) as server:
        web = Web(place_of(server.url))
        wire = StreamableWire(server.url, headers=dict, large=LargeParser(), web=web)
        await wire.open(Deaf())
        await (await web.send("GET", "/", [])).read(100)
        loop = asyncio.get_running_loop()
        loop.set_task_factory(forgotten)
        try:
            await wire.send(Outgoing(id=1, method="tools/call", data=b"{}"))
            await until(lambda: not web.open_connections)
        finally:
            loop.set_task_factory(None)
        await wire.close()
