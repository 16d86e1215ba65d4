"""The edge under clients that ask too much, ask for what is another's, or outlive their rights."""

from __future__ import annotations

import asyncio
import gc
import resource
import weakref
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, cast

import httpx2
import orjson
import pytest

from omni_mcp.contracts.call import Call, Result
from omni_mcp.contracts.errors import Overloaded, QuotaExceeded, RateLimited
from omni_mcp.contracts.events import AccessRefusedEvent
from omni_mcp.contracts.ports import RunLog
from omni_mcp.protocol.frames import LARGE_BYTES, BadFrame
from omni_mcp.protocol.methods import REQUESTS
from omni_mcp.serving.asgi import Exchange
from omni_mcp.serving.edge import EdgeLimits
from omni_mcp.serving.event_answer import answer_events
from omni_mcp.serving.handshake_http import HandshakeHttp, HttpSession
from omni_mcp.serving.parsing import parsed
from omni_mcp.serving.refusals import FULL_LIMIT, Refusals
from omni_mcp.serving.rejections import Rejections
from omni_mcp.serving.room import Room
from omni_mcp.serving.session import Nowhere
from omni_mcp.serving.streams import EventStream
from omni_mcp.serving.web_server import CONNECTIONS_LIMIT, connections_cap, serve_http
from tests.serving.edge_world import ANN, BOB, MemoryLog, World, initialize, modern, modern_headers, request
from tests.serving.line_client import LineClient
from tests.serving.test_web_server import connected, hello

SUBSCRIBE = request("resources/subscribe", {"uri": "note://a"})


async def opened(http: httpx2.AsyncClient, **headers: str) -> dict[str, str]:
    answer = await http.post("/mcp", json=initialize(), headers=headers)
    assert answer.status_code == 200, answer.text
    return {"Mcp-Session-Id": answer.headers["mcp-session-id"], **headers}


def code_of(answer: Any) -> str:
    """Our own code in an error, or in the result of a call that failed."""
    meta = answer["error"]["data"] if "error" in answer else answer["result"]["_meta"]
    return str(meta["io.omni-mcp/error"]["code"])


def test_every_request_that_is_put_on_record_without_the_chain_has_a_rate() -> None:
    rated = {name for name, method in REQUESTS.items() if method.rated}
    assert rated == {"initialize", "resources/subscribe", "completion/complete", "subscriptions/listen"}
    assert all(method.rated for method in REQUESTS.values() if method.recorded == "refusal")


async def test_requests_over_the_rate_are_refused_before_the_policy_is_asked_and_calls_go_on() -> None:
    world = World(admissions=1)  # the handshake
    async with LineClient.open(world) as client:
        await client.start()
        complete = {"ref": {"type": "ref/prompt", "name": "p__greet"}, "argument": {"name": "who", "value": "a"}}
        answers = [await client.ask("resources/subscribe", {"uri": "note://a"}),
                   await client.ask("completion/complete", complete)]  # fmt: skip
        client.send(modern("subscriptions/listen", {"notifications": {"resourceSubscriptions": ["note://a"]}}, id="l"))
        answers.append(await client.receive())
        assert [code_of(answer) for answer in answers] == ["rate_limited"] * 3
        assert answers[0]["error"]["data"]["io.omni-mcp/error"]["data"]["retry_after_s"] == 1.0
        for method in ("ping", "tools/list", "resources/unsubscribe"):
            assert "result" in await client.ask(method, {"uri": "note://a"})
        assert "result" in await client.ask("tools/call", {"name": "t__echo"})
    assert not world.policy.asked and world.changes.listeners == 0


async def test_a_session_over_the_rate_is_not_opened_and_leaves_no_run() -> None:
    world = World(admissions=1)
    async with world.direct() as http:
        await opened(http)
        refused = await http.post("/mcp", json=initialize())
        assert code_of(refused.json()) == "rate_limited" and "mcp-session-id" not in refused.headers
    assert len(world.log.runs_made) == 1 and world.edge.open_sessions == 0


async def test_a_flood_over_the_rate_is_two_events_whatever_its_length() -> None:
    world = World(admissions=1)
    async with LineClient.open(world) as client:
        await client.start()
        for number in range(200):
            client.send(request("resources/subscribe", {"uri": f"none://{number}"}, id=number))
        assert {code_of(await client.receive()) for _ in range(200)} == {"rate_limited"}
    world.rejections.close()
    counts = [draft.payload.count for _, draft in world.log.events if draft.code == "request_rejected"]
    assert counts == [1, 199]
    assert "access_refused" not in world.log.codes()


async def test_refusals_that_repeat_are_counted_and_each_new_target_is_on_record_up_to_a_bound() -> None:
    log, now = MemoryLog(), [0.0]
    rejections = Rejections(cast(RunLog, log), "g")
    refusals = Refusals(cast(RunLog, log), rejections, now_s=lambda: now[0])

    async def refuse(target: str, run: str = "r") -> None:
        await refusals.note(run, "http", AccessRefusedEvent(method="m", target=target, principal="p"))

    for target in ("a", "a", "b", *(f"t{n}" for n in range(50))):
        await refuse(target)
    rejections.close()
    assert log.codes().count("access_refused") == FULL_LIMIT
    assert sum(draft.payload.count for _, draft in log.events if draft.code == "request_rejected") == 53 - FULL_LIMIT
    await refuse("a", run="another")
    now[0] = 1.0
    await refuse("a")
    assert log.codes().count("access_refused") == FULL_LIMIT + 2


class FullAfter:
    """A tool of the chain whose runs hold only so many calls."""

    def __init__(self, calls: int) -> None:
        self.calls = calls
        self.seen: dict[str, int] = {}

    async def __call__(self, call: Call) -> Result:
        self.seen[call.run] = self.seen.get(call.run, 0) + 1
        if self.seen[call.run] > self.calls:
            raise QuotaExceeded("this run has as many events as it may have")
        return await World().tool_echo(call)


async def test_a_modern_client_whose_run_is_full_gets_a_new_one_with_its_next_request() -> None:
    world = World()
    world.tools["echo"] = FullAfter(2)
    body = modern("tools/call", {"name": "t__echo"})
    async with world.direct() as http:
        answers = [(await http.post("/mcp", json=body, headers=modern_headers(body))).json() for _ in range(6)]
    assert ["isError" in answer["result"] for answer in answers] == [False, False, True, False, False, True]
    assert code_of(answers[2]) == "quota_exceeded"
    assert len(world.log.runs_made) == 2 and world.log.codes().count("run_closed") == 2
    assert world.runbook.open_runs == 0


async def test_a_session_whose_run_is_full_goes_on_in_a_new_one() -> None:
    world = World()
    world.tools["echo"] = FullAfter(1)
    async with LineClient.open(world) as client:
        await client.start()
        answers = [await client.ask("tools/call", {"name": "t__echo"}) for _ in range(5)]
    assert ["isError" in answer["result"] for answer in answers] == [False, True, False, True, False]
    closed = [run for run, draft in world.log.events if draft.code == "run_closed"]
    assert sorted(closed) == sorted(run for run, *_ in world.log.runs_made), "each run is closed once"


@pytest.mark.parametrize("era", ["modern", "handshake"])
async def test_a_full_run_is_closed_only_when_its_last_call_is_done_and_calls_that_come_together_share_the_new_one(
    era: str,
) -> None:
    world = World()

    async def full(call: Call) -> Result:
        raise QuotaExceeded("this run has as many events as it may have")

    world.tools["echo"] = full
    make = modern if era == "modern" else request
    async with LineClient.open(world) as client:
        await client.start()
        client.send(make("tools/call", {"name": "t__slow"}, id="slow"))
        await asyncio.wait_for(world.started.wait(), 30)
        client.send(make("tools/call", {"name": "t__echo"}, id="full"))
        assert code_of(await client.receive()) == "quota_exceeded"
        assert "run_closed" not in world.log.codes(), "a call is still under way in it"
        client.send(*(make("tools/call", {"name": "t__talk"}, id=n) for n in range(5)))
        await answers_to(client, set(range(5)))
        world.release.set()
        await answers_to(client, {"slow"})
        await world.log.until("run_closed")
    assert len({call.run for call in world.calls}) == 2
    assert world.calls[0].run == world.calls[1].run == world.log.events[0][0]


async def answers_to(client: LineClient, ids: set[Any]) -> None:
    while ids:
        ids = ids - {(await client.receive()).get("id")}


@pytest.mark.parametrize(("descriptors", "cap"), [(256, 64), (1024, 512), (4096, CONNECTIONS_LIMIT), (100, 25),
                                                  (resource.RLIM_INFINITY, CONNECTIONS_LIMIT)])  # fmt: skip
def test_there_are_no_more_connections_than_descriptors_for_them(descriptors: int, cap: int) -> None:
    assert connections_cap(descriptors) == cap


async def test_a_process_with_few_descriptors_turns_connections_away_instead_of_running_out() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with serve_http(hello, "127.0.0.1", 0) as port:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        try:
            async with AsyncExitStack() as stack:
                for _ in range(connections_cap(256)):
                    reader, writer = await stack.enter_async_context(connected(port))
                    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                    assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)).startswith(b"HTTP/1.1 200")
                async with connected(port) as (reader, _):
                    assert (await asyncio.wait_for(reader.read(), 30)).startswith(b"HTTP/1.1 503")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_an_upgrade_to_a_websocket_is_served_as_plain_http_and_logs_no_advice(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serve_http(hello, "127.0.0.1", 0) as port, connected(port) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                     b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")  # fmt: skip
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)).startswith(b"HTTP/1.1 200")
    assert not [record for record in caplog.records if record.levelname != "DEBUG"]


async def test_nobody_hears_of_what_is_another_principals() -> None:
    world = World(owners={"note://a": "bob"})
    async with LineClient.open(world) as ann, LineClient.open(world, principal=BOB) as bob:
        await ann.start()
        await bob.start()
        theirs = await ann.ask("resources/subscribe", {"uri": "note://a"})
        missing = await ann.ask("resources/subscribe", {"uri": "none://a"})
        assert (await bob.ask("resources/subscribe", {"uri": "note://a"}))["result"] == {}
        ann.send(modern("subscriptions/listen", {"notifications": {"resourceSubscriptions": ["note://a"]}}, id="l"))
        heard = await ann.receive()
        assert heard["params"]["notifications"] == {}, "the stream was opened without it"
        world.changes.resource_updated("note://a")
        assert (await bob.receive())["method"] == "notifications/resources/updated"
        assert (await ann.ask("ping"))["result"] == {}, "and nothing came before that"
    assert theirs["error"]["code"] == missing["error"]["code"] and theirs["error"]["message"] == "Resource not found"
    details = [draft.payload.detail for _, draft in world.log.events if draft.code == "access_refused"]
    assert details == ["not the caller's", "unknown target", "not the caller's"]


async def test_a_quarantined_target_is_as_unknown_to_subscriptions_and_completion_as_it_is_to_calls() -> None:
    world = World()
    world.catalog.all = [replace(entry, state="quarantined") for entry in world.catalog.all]
    async with LineClient.open(world) as client:
        await client.start()
        assert "error" in await client.ask("resources/subscribe", {"uri": "note://a"})
        complete = {"ref": {"type": "ref/prompt", "name": "p__greet"}, "argument": {"name": "who", "value": "a"}}
        assert "error" in await client.ask("completion/complete", complete)
    details = {draft.payload.detail for _, draft in world.log.events if draft.code == "access_refused"}
    assert details == {"unknown target"}


async def test_a_session_ends_with_the_first_request_of_its_principal_with_other_roles() -> None:
    world = World()
    world.tokens["ann-token"] = replace(ANN, roles=("editor",))
    async with world.direct() as http:
        session = await opened(http)
        assert (await http.post("/mcp", json=SUBSCRIBE, headers=session)).json()["result"] == {}
        world.tokens["ann-token"] = ANN
        refused = await http.post("/mcp", json=SUBSCRIBE, headers=session)
        assert refused.status_code == 404 and world.edge.open_sessions == 0
        world.tokens["ann-token"] = replace(ANN, roles=("editor",))
        assert (await http.post("/mcp", json=SUBSCRIBE, headers=session)).status_code == 404, "it is gone for good"
        again = await opened(http)
        assert (await http.post("/mcp", json=SUBSCRIBE, headers=again)).json()["result"] == {}
    assert world.log.codes().count("run_closed") == 2


async def test_an_older_stream_session_ends_with_the_first_message_of_its_principal_with_other_roles() -> None:
    world = World()
    async with world.client() as http, http.stream("GET", "/sse") as stream:
        lines = stream.aiter_lines()
        place = [await anext(lines), await anext(lines)][1].removeprefix("data: ")
        assert (await http.post(place, json=initialize())).status_code == 202
        world.tokens["ann-token"] = replace(ANN, roles=("editor",))
        assert (await http.post(place, json=request("ping"))).status_code == 404
        async with asyncio.timeout(30):
            assert not [line async for line in lines if "pong" in line]
        await world.log.until("run_closed")


@pytest.mark.parametrize("change", ["revoked", "other roles"])
async def test_an_open_stream_says_nothing_more_once_its_token_is_not_what_it_was(change: str) -> None:
    world = World()
    async with world.client() as http:
        session = await opened(http)
        await http.post("/mcp", json={"jsonrpc": "2.0", "method": "notifications/initialized"}, headers=session)
        async with http.stream("GET", "/mcp", headers=session) as stream:
            lines = stream.aiter_lines()
            await anext(lines)
            if change == "revoked":
                del world.tokens["ann-token"]
            else:
                world.tokens["ann-token"] = replace(ANN, roles=("editor",))
            world.changes.lists_changed(["tools"])
            async with asyncio.timeout(30):
                assert not [line async for line in lines if line.startswith("data: {")]
        await world.log.until("run_closed")
    assert world.edge.open_sessions == 0, "its session ended with it"


async def test_a_modern_listener_says_nothing_more_once_its_token_is_revoked() -> None:
    world = World()
    body = modern("subscriptions/listen", {"notifications": {"toolsListChanged": True}})
    async with (
        world.client() as http,
        http.stream("POST", "/mcp", json=body, headers=modern_headers(body)) as stream,
    ):
        lines = stream.aiter_lines()
        async for line in lines:
            if "acknowledged" in line:
                break
        del world.tokens["ann-token"]
        world.changes.lists_changed(["tools"])
        async with asyncio.timeout(30):
            assert not [line async for line in lines if "list_changed" in line]
    assert world.changes.listeners == 0


async def test_a_silent_stream_is_looked_at_with_each_keepalive() -> None:
    valid, sent = [True, True, False], []

    async def receive() -> dict[str, Any]:
        await asyncio.get_running_loop().create_future()  # the client stays
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))

    exchange = Exchange({}, receive, send, {}, "id", still_valid=lambda: valid.pop(0))
    async with asyncio.timeout(30):
        assert not await answer_events(exchange, EventStream("s"), keepalive_s=0.001)
    assert not valid and sum(body.startswith(b":") for body in sent) == 2
    assert sent[-1] == b"", "the answer was ended, not cut off"


async def test_a_principal_over_its_share_is_turned_away_over_http_and_others_are_not() -> None:
    world = World(limits=EdgeLimits(room_bytes=1_000_000, share_bytes=10_000))
    held = world.edge.room.claim(ANN.key)
    held.grow(10_000)
    async with world.direct() as http:
        mine = await http.post("/mcp", json=initialize())
        assert mine.status_code == 429 and mine.headers["retry-after"] == "1"
        await opened(http, Authorization="Bearer bob-token")
        held.close()
        await opened(http)
    assert world.edge.room.taken_bytes == 0


async def test_half_a_body_takes_its_room_before_it_is_there_and_gives_it_back() -> None:
    world = World(limits=EdgeLimits(room_bytes=1_000_000, share_bytes=150_000))
    half = (b"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAuthorization: Bearer %s\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nContent-Length: 100000\r\n\r\n{")  # fmt: skip
    async with world.served() as base:
        port = int(base.rpartition(":")[2])
        async with connected(port) as (_, first):
            first.write(half % (port, b"ann-token"))
            async with asyncio.timeout(30):
                while world.edge.room.taken_bytes < 100_000:
                    await asyncio.sleep(0)
            async with connected(port) as (reader, second):
                second.write(half % (port, b"ann-token"))
                assert (await asyncio.wait_for(reader.readline(), 30)).startswith(b"HTTP/1.1 429")
            async with connected(port) as (reader, third):
                third.write(half % (port, b"bob-token") + b" " * 99_999)
                assert (await asyncio.wait_for(reader.readline(), 30)).startswith(b"HTTP/1.1 400"), "heard, and no JSON"
        async with asyncio.timeout(30):
            while world.edge.room.taken_bytes:
                await asyncio.sleep(0)


def test_a_claim_never_gives_back_more_than_it_took() -> None:
    room = Room(limit_bytes=100, share_bytes=60)
    with room.claim("ann") as one, room.claim("ann") as two, room.claim("bob") as other:
        one.grow(40)
        with pytest.raises(RateLimited):
            two.grow(21)
        two.grow(20)
        with pytest.raises(Overloaded):
            other.grow(41)
        one.shrink_to(50)
        one.shrink_to(10)
        assert room.taken_bytes == 30
        one.close()
        one.close()
        assert room.taken_bytes == 20
    assert room.taken_bytes == 0


async def held_session(face: HandshakeHttp, world: World, name: str) -> HttpSession:
    """A session as `initialize` leaves it."""
    session = world.edge.open(principal=ANN, profile="default", transport="http", outlet=Nowhere())
    held = HttpSession(name, session, EventStream("s"), 0.0)
    face._sessions[name] = held
    return held


async def test_answers_that_one_principal_does_not_fetch_are_kept_up_to_a_bound_over_all_its_sessions() -> None:
    world = World()
    face = HandshakeHttp(world.edge, sessions_limit=100, idle_s=60, kept_limit_bytes=1000)
    sessions = [await held_session(face, world, f"s{n}") for n in range(4)]
    for number in range(40):
        held = sessions[number % 4]
        stream = face._stream_of(held)
        reader = stream.attach()
        held.keep(stream)
        stream.send(b"p" * 50)
        stream.finish(b"x" * 150)
        stream.detach(reader)
        assert sum(one.kept_bytes for one in sessions) <= 1000
    assert sum(one.kept_bytes for one in sessions) == 1000, "what fits is kept"
    assert held.streams[stream.name].held_bytes == 200, "the newest answer is"


async def test_a_stream_that_somebody_reads_is_never_let_go_for_those_that_nobody_reads() -> None:
    world = World()
    face = HandshakeHttp(world.edge, sessions_limit=100, idle_s=60, kept_limit_bytes=100)
    held = await held_session(face, world, "s")
    read, unread = face._stream_of(held), face._stream_of(held)
    read.attach()
    for stream in (read, unread):
        held.keep(stream)
    read.send(b"x" * 500)
    assert not unread.send(b"x" * 500), "its sender hears that nobody will get it"
    assert read.held_bytes == 500 and unread.held_bytes == 0 and list(held.streams) == [read.name]


async def test_a_session_that_was_ended_frees_its_memory_at_once() -> None:
    """Without waiting for the collector of cycles, which comes late and stops everybody."""
    world = World()
    face = world.http()
    transport = httpx2.ASGITransport(app=face)
    async with httpx2.AsyncClient(
        transport=transport, base_url="http://127.0.0.1:6464", headers={"Authorization": "Bearer ann-token"}
    ) as http:
        gc.collect()
        gc.disable()
        try:
            session = await opened(http)
            body = request("tools/call", {"name": "t__talk", "_meta": {"progressToken": 5}})
            assert "talked" in (await http.post("/mcp", json=body, headers=session)).text
            (held,) = face._handshake._sessions.values()
            (kept,) = held.streams.values()
            assert kept.held_bytes
            standing, of_edge = weakref.ref(held.standing), weakref.ref(held.session)
            assert (await http.delete("/mcp", headers=session)).status_code == 204
            assert kept.held_bytes == 0
            del held
            world.calls.clear()  # the test's own references
            for _ in range(3):  # callbacks of what just ended
                await asyncio.sleep(0)
            assert standing() is None and of_edge() is None
        finally:
            gc.enable()


async def test_the_loop_goes_on_while_a_large_message_is_parsed() -> None:
    small, large = b'{"a":1}', orjson.dumps({"a": "x" * LARGE_BYTES})
    tasks = [asyncio.create_task(parsed(data, limit_bytes=10**7)) for data in (small, large)]
    await asyncio.sleep(0)
    assert [task.done() for task in tasks] == [True, False]
    assert [len(await task) for task in tasks] == [1, 1]
    with pytest.raises(BadFrame):
        await parsed(large[:-1], limit_bytes=10**7)


async def test_one_principal_may_hold_a_quarter_of_the_sessions_and_is_told_so() -> None:
    world = World(sessions=40)
    async with world.direct() as http:
        mine = [await opened(http) for _ in range(10)]
        refused = await http.post("/mcp", json=initialize())
        assert refused.status_code == 429 and "10 open sessions" in refused.json()["error"]["message"]
        await opened(http, Authorization="Bearer bob-token")
        await http.delete("/mcp", headers=mine[0])
        await opened(http)


async def test_a_small_gateway_gives_everybody_eight_sessions_if_there_are_so_many() -> None:
    world = World(sessions=9)
    async with world.direct() as http:
        for _ in range(8):
            await opened(http)
        assert (await http.post("/mcp", json=initialize())).status_code == 429
        await opened(http, Authorization="Bearer bob-token")
        full = await http.post("/mcp", json=initialize(), headers={"Authorization": "Bearer bob-token"})
        assert full.status_code == 503


async def test_one_principal_may_hold_a_share_of_the_older_streams() -> None:
    world = World(sessions=9)
    async with world.client() as http, AsyncExitStack() as open_streams:
        for _ in range(8):
            stream = await open_streams.enter_async_context(http.stream("GET", "/sse"))
            assert stream.status_code == 200
        refused = await http.get("/sse")
        assert refused.status_code == 429 and "8 open sessions" in refused.text
        bob = {"Authorization": "Bearer bob-token"}
        assert (await open_streams.enter_async_context(http.stream("GET", "/sse", headers=bob))).status_code == 200
