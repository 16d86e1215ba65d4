"""Lines: a bad one costs only itself, a slow reader only its own connection, and the end of input ends the calls."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, cast

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_mcp.protocol.sender import TAIL_BYTES
from omni_mcp.serving.edge import EdgeLimits
from omni_mcp.serving.lines import CHUNK_BYTES, LineOutlet, LineTooLong, NoRoom, split_lines
from omni_mcp.serving.room import Claim, Room
from tests.serving.edge_world import BOB, World, initialize, modern, modern_headers, request, text_answer
from tests.serving.line_client import LineClient


def reader_of(*chunks: bytes) -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=2**20)
    for chunk in chunks:
        reader.feed_data(chunk)
    reader.feed_eof()
    return reader


def unclaimed() -> Claim:
    return Room().claim("ann")


async def test_lines_are_split_whatever_the_chunks() -> None:
    data = b"one\ntwo\r\n\n" + b"x" * 99 + b"\n" + b"y" * 101 + b"\nlast"
    reader = reader_of(*(data[n : n + 7] for n in range(0, len(data), 7)))
    lines = [line async for line in split_lines(reader, limit_bytes=100, claim=unclaimed())]
    assert [line if isinstance(line, bytes) else type(line) for line in lines] == [
        b"one", b"two\r", b"", b"x" * 99, LineTooLong, b"last",
    ]  # fmt: skip


@given(st.lists(st.binary(max_size=30).map(lambda b: b.replace(b"\n", b"")), max_size=8), st.data())
@settings(max_examples=50, deadline=None)
def test_no_line_within_the_limit_is_lost_or_joined(lines: list[bytes], data: st.DataObject) -> None:
    async def split() -> list[Any]:
        text = b"".join(line + b"\n" for line in lines)
        cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
        reader = reader_of(*(text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True) if a < b))
        return [line async for line in split_lines(reader, limit_bytes=20, claim=unclaimed())]

    found = asyncio.run(split())
    assert [line if isinstance(line, bytes) else None for line in found] == [
        line if len(line) <= 20 else None for line in lines
    ]


@pytest.mark.parametrize("limit", [1000, CHUNK_BYTES + 3, 2 * CHUNK_BYTES + 3])
@pytest.mark.parametrize("more", [1, 9, TAIL_BYTES + 1])
async def test_of_a_line_that_is_too_long_the_first_and_last_bytes_are_kept_however_it_comes(
    limit: int, more: int
) -> None:
    text = (b"%07d," * (CHUNK_BYTES // 4) % tuple(range(CHUNK_BYTES // 4)))[: 2 * CHUNK_BYTES]
    line = text + text[:more].lower() if limit < 2 * CHUNK_BYTES else text + b"x" * (more + 3)
    lines = split_lines(reader_of(line + b"\n", b"next\n"), limit_bytes=limit, claim=unclaimed())
    long, after = [one async for one in lines]

    assert isinstance(long, LineTooLong) and after == b"next"
    assert long.tail == line[-TAIL_BYTES:] and long.head == line[: 64 * 1024]


@pytest.mark.parametrize(
    ("line", "code"),
    [(b"{\n", -32700), (b"\xff\xfe\n", -32700), (b'{"jsonrpc":"2.0","id":1,"id":1,"method":"ping"}\n', -32700),
     (b'{"jsonrpc":"2.0","id":null,"method":"tools/call"}\n', -32600), (b"[]\n", -32600), (b"null\n", -32600),
     (b"[" * 70 + b"]" * 70 + b"\n", -32700), (b"x" * 5000 + b"\n", -32700)],
)  # fmt: skip
async def test_a_bad_line_gets_an_error_and_the_next_one_is_served(line: bytes, code: int) -> None:
    world = World()
    async with LineClient.open(world, frame_limit_bytes=4096) as client:
        client.send(line)
        answer = await client.receive()
        assert (answer["id"], answer["error"]["code"]) == (None, code)
        assert (await client.ask("ping"))["result"] == {}
    assert world.log.codes() == ["request_rejected"]


SURROGATE = b'{"text":"\\ud83d"}'
REFUSED = {
    "number_range": b'{"n":%d}' % 10**20, "not_json": SURROGATE, "too_deep": b'{"a":' * 65 + b"1" + b"}" * 65,
    "too_large": b'{"text":"%s"}' % (b"x" * 300_000), "duplicate_key": b'{"a":1,"a":2}',
}  # fmt: skip


@pytest.mark.parametrize("id_last", [False, True])
@pytest.mark.parametrize("reason", list(REFUSED))
async def test_a_request_that_is_refused_for_what_it_holds_is_answered_under_its_own_id(
    reason: str, id_last: bool
) -> None:
    params = b'"params":{"id":9,"name":"t__echo","arguments":%s}' % REFUSED[reason]
    line = (
        b'{"method":"tools/call",%s,"jsonrpc":"2.0","id":7}'
        if id_last
        else b'{"jsonrpc":"2.0","id":7,%s,"method":"tools/call"}'
    )
    async with LineClient.open(World(), frame_limit_bytes=100_000) as client:
        await client.start()
        client.send(line % params + b"\n")
        answer = await client.receive()
        assert (await client.ask("ping"))["result"] == {}

    assert (answer["id"], answer["error"]["code"], answer["error"]["data"]) == (7, -32700, {"reason": reason})


async def test_what_is_refused_is_never_answered_under_the_id_of_a_call_under_way() -> None:
    world = World()
    async with LineClient.open(world, frame_limit_bytes=100_000) as client:
        await client.start()
        client.send(request("tools/call", {"name": "t__slow", "arguments": {}}, id=7))
        await world.started.wait()
        for line in (
            b'{"jsonrpc":"2.0","method":"notifications/x","params":{"a":1,"id":7}\n',
            b'{"jsonrpc":"2.0","method":"notifications/x","params":{"text":"%s","id":7}\n' % (b"x" * 300_000),
            b'{"jsonrpc":"2.0","method":"ping","params":{"n":1e999},"id":7}\n',
        ):
            client.send(line)
            refused = await client.receive()
            assert (refused["id"], refused["error"]["code"]) == (None, -32700)
        world.release.set()
        answer = await client.receive()

    assert answer["id"] == 7 and "result" in answer


async def test_an_id_that_is_too_long_is_refused_under_itself() -> None:
    async with LineClient.open(World()) as client:
        client.send({"jsonrpc": "2.0", "id": "x" * 300, "method": "ping"})
        answer = await client.receive()

    assert (answer["id"], answer["error"]["code"]) == ("x" * 300, -32600)


async def test_nothing_but_ping_and_initialize_is_served_before_the_handshake() -> None:
    world = World()
    async with LineClient.open(world) as client:
        for method in ("tools/list", "tools/call", "logging/setLevel"):
            assert (await client.ask(method))["error"]["code"] == -32600
        assert (await client.ask("ping"))["result"] == {}
        await client.start()
        assert "tools" in (await client.ask("tools/list"))["result"]
        assert (await client.ask("initialize", {"protocolVersion": "2025-11-25"}))["error"]["code"] == -32600
    assert not world.calls


async def test_a_slow_call_does_not_hold_up_the_next_one() -> None:
    world = World()
    async with LineClient.open(world) as client:
        await client.start()
        client.send(request("tools/call", {"name": "t__slow"}, id="slow"))
        await asyncio.wait_for(world.started.wait(), 30)
        assert (await client.ask("tools/call", {"name": "t__echo"}, id="fast"))["id"] == "fast"
        world.release.set()
        assert (await client.receive())["id"] == "slow"


async def test_a_cancelled_request_gets_no_answer() -> None:
    world = World()
    async with LineClient.open(world) as client:
        await client.start()
        client.send(request("tools/call", {"name": "t__slow"}, id="slow"))
        await asyncio.wait_for(world.started.wait(), 30)
        client.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "slow"}})
        await asyncio.wait_for(world.stopped.wait(), 30)
        client.send(request("ping", id="after"))
        assert (await client.receive())["id"] == "after"
        assert (await client.ask("tools/call", {"name": "t__echo"}, id="slow"))["result"], "the id is free again"


@pytest.mark.parametrize(
    "params", [{}, {"requestId": None}, {"requestId": True}, {"requestId": []}, {"requestId": "no"}]
)
async def test_a_cancel_that_names_nothing_is_ignored(params: Any) -> None:
    async with LineClient.open(World()) as client:
        client.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params})
        client.send({"jsonrpc": "2.0", "method": "notifications/unheard/of"}, {"jsonrpc": "2.0", "id": 5, "result": {}})
        assert (await client.ask("ping"))["result"] == {}


async def test_the_end_of_input_cancels_what_is_under_way_and_closes_the_run() -> None:
    world = World()
    async with LineClient.open(world, eof_grace_s=0.01) as client:
        await client.start()
        client.send(request("tools/call", {"name": "t__slow"}))
        await asyncio.wait_for(world.started.wait(), 30)
        client.writer.write_eof()
        await asyncio.wait_for(client.server, 30)
    assert world.cancelled == [world.calls[0].id]
    assert world.log.codes() == ["run_closed"]
    assert world.edge.open_sessions == 0


async def test_what_was_asked_right_before_the_end_of_input_is_still_answered() -> None:
    """A shell pipe: one request, then nothing more."""
    async with LineClient.open(World()) as client:
        client.send(modern("tools/call", {"name": "t__echo"}))
        client.writer.write_eof()
        assert (await client.receive())["result"]["structuredContent"] == {"value": {}}


async def test_a_client_that_does_not_read_is_dropped_and_its_calls_end() -> None:
    world = World()

    async def flood(call: Any) -> Any:
        world.started.set()
        try:
            while True:
                await call.link.progress(1, None, "x" * 10_000)
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            world.stopped.set()
            raise

    world.tools["slow"] = flood
    ours, theirs = socket.socketpair()
    ours.close()
    theirs.close()
    async with LineClient.open(world, unread_limit_bytes=100_000) as client:
        await client.start()
        cast(Any, client.reader)._transport.pause_reading()
        client.send(request("tools/call", {"name": "t__slow", "_meta": {"progressToken": 1}}))
        await asyncio.wait_for(world.stopped.wait(), 30)
        await asyncio.wait_for(client.server, 30)
        cast(Any, client.reader)._transport.resume_reading()
    assert world.edge.open_sessions == 0


async def test_an_outlet_holds_at_most_its_limit_and_one_message() -> None:
    ours, theirs = socket.socketpair()
    _, writer = await asyncio.open_connection(sock=ours)
    outlet = LineOutlet(writer, unread_limit_bytes=50_000)
    most = 0
    while outlet.send(b"x" * 20_000):
        most = max(most, writer.transport.get_write_buffer_size())
    assert outlet.dropped and most <= 50_000 + 20_001
    assert not outlet.send(b"x")
    theirs.close()


async def test_only_so_many_requests_are_under_way_on_one_connection() -> None:
    world = World(limits=EdgeLimits(calls_per_session=3))
    async with LineClient.open(world, eof_grace_s=0.0) as client:
        await client.start()
        client.send(*(request("tools/call", {"name": "t__slow"}, id=n) for n in range(5)))
        refused = [await client.receive(), await client.receive()]
    assert {answer["id"] for answer in refused} == {3, 4}
    assert all("too many" in answer["error"]["message"] for answer in refused)


async def test_a_batch_is_answered_together_in_the_one_version_that_has_them() -> None:
    async with LineClient.open(World()) as client:
        await client.start("2025-03-26")
        client.send([request("ping", id=1), request("nope", id=2), {"jsonrpc": "2.0", "method": "x"}, "junk",
                     initialize(id=3)])  # fmt: skip
        answers = await client.receive()
    assert {answer["id"] for answer in answers} == {1, 2, 3, None}


async def test_two_connections_with_equal_ids_and_other_principals_never_cross() -> None:
    world = World()
    async with LineClient.open(world) as ann, LineClient.open(world, principal=BOB) as bob:
        await ann.start()
        await bob.start()
        for n in range(20):
            ann.send(request("tools/call", {"name": "t__echo", "arguments": {"of": "ann", "n": n}}, id=n))
            bob.send(request("tools/call", {"name": "t__echo", "arguments": {"of": "bob", "n": n}}, id=n))
        for name, client in (("ann", ann), ("bob", bob)):
            for _ in range(20):
                answer = await client.receive()
                assert answer["result"]["structuredContent"]["value"] == {"of": name, "n": answer["id"]}
    assert all(call.arguments["of"] == call.principal.id for call in world.calls)
    assert len({call.run for call in world.calls}) == 2


async def test_a_question_over_lines_is_withdrawn_when_its_call_is_cancelled() -> None:
    world = World()
    async with LineClient.open(world) as client:
        await client.start(elicitation={})
        client.send(request("tools/call", {"name": "t__ask"}, id=1))
        question = await client.receive()
        client.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}})
        withdrawn = await client.receive()
    assert question["method"] == "elicitation/create"
    assert withdrawn["method"] == "notifications/cancelled" and withdrawn["params"]["requestId"] == question["id"]


async def test_a_modern_listener_on_lines_is_ended_by_a_cancel() -> None:
    world = World()
    async with LineClient.open(world) as client:
        client.send(modern("subscriptions/listen", {"notifications": {"promptsListChanged": True}}, id="l"))
        assert (await client.receive())["method"] == "notifications/subscriptions/acknowledged"
        assert world.changes.listeners == 1
        client.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "l"}})
        client.send(request("ping", id="p"))
        assert (await client.receive())["id"] == "p"
        assert world.changes.listeners == 0


async def test_a_large_answer_goes_out_whole() -> None:
    world = World()

    async def large(call: Any) -> Any:
        return text_answer("x" * 3_000_000)

    world.tools["echo"] = large
    async with LineClient.open(world) as client:
        client.send(orjson.dumps(modern("tools/call", {"name": "t__echo"})) + b"\n")
        assert len((await client.receive())["result"]["structuredContent"]["value"]) == 3_000_000


async def test_requests_over_the_memory_of_the_whole_gateway_are_turned_away_until_there_is_room() -> None:
    world = World(limits=EdgeLimits(room_bytes=100_000, share_bytes=100_000))
    async with world.direct() as http, LineClient.open(world) as client:
        body = modern("tools/call", {"name": "t__echo"})
        somebody = world.edge.room.claim("somebody")
        somebody.grow(100_000)
        full = await http.post("/mcp", json=body, headers=modern_headers(body))
        refused = await client.ask("ping", id="p")
        somebody.close()
        assert (await http.post("/mcp", json=body, headers=modern_headers(body))).status_code == 200
        assert (await client.ask("ping", id="q"))["result"] == {}
        assert world.edge.room.taken_bytes == 0, "everything that was claimed was given back"
    assert full.status_code == 503 and full.headers["retry-after"] == "1"
    assert "too many requests" in refused["error"]["message"]


async def test_half_a_line_is_held_only_where_there_is_room_for_it() -> None:
    """A hundred halves of long lines must not take a hundred times their limit."""
    world = World(limits=EdgeLimits(room_bytes=400_000, share_bytes=100_000))
    async with (
        LineClient.open(world) as first,
        LineClient.open(world) as second,
        LineClient.open(world, principal=BOB) as other,
    ):
        first.send(b'{"pad":"' + b"x" * 80_000)
        await holding(world, 80_008)
        second.send(b'{"pad":"' + b"x" * 900_000 + b'"}\n')
        second.send(request("ping", id="after"))
        answers = [await second.receive(), await second.receive()]
        assert (await other.ask("ping"))["result"] == {}, "only who holds too much is turned away"
        other.send(b'{"jsonrpc":"2.0","id":2,"method":"ping","params":{"pad":"' + b"x" * 80_000 + b'"}}\n')
        assert (await other.receive())["result"] == {}
        first.send(b'"}\n')
        assert (await first.receive())["error"]["code"] == -32600, "the line is whole, and no request"
    codes = [answer.get("error", {}).get("data", {}) for answer in answers]
    assert codes[0]["io.omni-mcp/error"]["code"] == "rate_limited" and answers[1]["id"] == "after"
    assert world.edge.room.taken_bytes == 0


async def test_a_client_that_leaves_in_the_middle_of_a_line_gives_its_room_back() -> None:
    world = World()
    async with LineClient.open(world) as client:
        client.send(b"x" * 50_000)
        await holding(world, 50_000)
    assert world.edge.room.taken_bytes == 0


async def test_a_line_without_room_is_skipped_to_its_end() -> None:
    room = Room(limit_bytes=50, share_bytes=50)
    data = b"a" * 40 + b"|" + b"b" * 40 + b"\nnext\n"
    lines = [line async for line in split_lines(reader_in_steps(data, 20), limit_bytes=1000, claim=room.claim("ann"))]
    assert [line if isinstance(line, bytes) else type(line) for line in lines] == [NoRoom, b"next"]
    assert room.taken_bytes == 0


def reader_in_steps(data: bytes, step: int) -> Any:
    """A reader that gives at most *step* bytes at a time."""

    class Steps:
        def __init__(self) -> None:
            self.rest = data

        async def read(self, size: int) -> bytes:
            given, self.rest = self.rest[:step], self.rest[step:]
            return given

    return Steps()


async def holding(world: World, size_bytes: int) -> None:
    """Wait until the gateway holds *size_bytes* of messages."""
    async with asyncio.timeout(30):
        while world.edge.room.taken_bytes < size_bytes:
            await asyncio.sleep(0)
