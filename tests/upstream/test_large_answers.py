"""A large answer is checked, masked and kept in a process of its own, and means what a small one means."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest

from omni_mcp.contracts.errors import InvalidResult
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.manifest import Limits
from omni_mcp.engines.secrets.masking import SecretMasker
from omni_mcp.engines.upstream.wire.large import LargeParser, LargeResponse, LargeResult
from omni_mcp.engines.upstream.wire.splitting import LineSplitter, TooLong
from omni_mcp.engines.upstream.wire.spool import Room, Spool
from omni_mcp.protocol.frames import BadFrame
from omni_mcp.testing import ANN, BOB, error_of
from omni_mcp.upstreams.large_program import PROGRAM
from tests.upstream.servers.web import Asked, web_server
from tests.upstream.town import Shop, Town, a_town
from tests.upstream.world import accepted, python_server, world
from tests.waiting import until

MIB = 1024 * 1024
SECRET = "a-value-that-nobody-may-see"
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@dataclass
class Large(Shop):
    """Answers each tool with the bytes that a function makes of the request's id."""

    answers: dict[str, Callable[[int], bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.tools = [{"name": name, "inputSchema": {"type": "object"}} for name in self.answers]
        for tool in self.tools:
            if tool["name"].startswith("promised"):
                tool["outputSchema"] = SCHEMA

    async def _call(self, asked: Asked) -> None:
        self.begun.set()
        body = self.answers[asked.message["params"]["name"]](asked.message["id"])
        if asked.message["params"]["name"].startswith("event"):
            await asked.reply(200, b"data: " + body + b"\n\n", media_type="text/event-stream")
        else:
            await asked.reply(200, body)


def message(result: JsonObject) -> Callable[[int], bytes]:
    """Return what makes a response of *result*."""
    return lambda id: orjson.dumps({"jsonrpc": "2.0", "id": id, "result": result})


def raw(result: str) -> Callable[[int], bytes]:
    """The same of JSON text, or what passes for it."""
    return lambda id: b'{"jsonrpc":"2.0","id":%d,"result":%s}' % (id, result.encode())


def text(words: str, **more: Any) -> JsonObject:
    """Return a result with one text."""
    return {"content": [{"type": "text", "text": words}], **more}


async def opened(town: Town, url: str) -> None:
    """Have the server at *url* offered as `up`, with a secret in a header."""
    town.runs("add", "up", "--url", url, "--transport", "http", "--header", f"X-Api-Key={SECRET}")
    await town.accepted("up")


def helpers() -> list[int]:
    """Return the processes for large messages that this process started."""
    found = []
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                parent = int((place / "stat").read_text().rsplit(")", 1)[1].split()[1])
                if parent == os.getpid() and PROGRAM in (place / "cmdline").read_text():
                    found.append(int(place.name))
            except (OSError, ValueError):
                continue
    return found


def memory_files() -> int:
    """Return how many files of large messages this process has open."""
    links = [os.readlink(place) for place in Path("/proc/self/fd").iterdir() if place.is_symlink()]
    return sum(link.startswith(("/memfd:message", "/memfd:answer")) for link in links)


def kept_of(result: JsonObject) -> JsonObject:
    """Return the reference in a result."""
    kept: JsonObject = result["_meta"]["io.omni-mcp/artifact"]
    return kept


def bytes_of(town: Town, reference: JsonObject) -> bytes:
    """Return what is stored."""
    sha256 = str(reference["sha256"])
    data: bytes = (town.here.home.artifacts / "blobs" / sha256[:2] / sha256).read_bytes()
    return data


async def test_a_secret_in_a_large_answer_is_seen_by_nobody_and_stands_on_no_disk(tmp_path: Path) -> None:
    coded = base64.b64encode(SECRET.encode()).decode()
    words = f"{SECRET} first {'x' * (30 * MIB)} {coded} {SECRET} last"
    nested = {"content": [], "structuredContent": {"rows": [{SECRET: "y" * 1000, "n": n} for n in range(3000)]}}
    shop = Large(answers={"plain": message(text(words)), "event": message(text(words)), "rows": message(nested)})
    async with web_server(shop.script()) as server, a_town(tmp_path / "t") as town, town.here.client() as client:
        await opened(town, server.url)
        results = [await client.call(f"up__{name}") for name in ("plain", "event", "rows")]
        stored = [bytes_of(town, kept_of(result)) for result in results]
        record = str([event.payload for event in await town.here.events()])
        files = [file for file in town.here.home.data.rglob("*") if file.is_file() and "secrets" not in file.parts]
        held = [file for file in files if SECRET.encode() in file.read_bytes()]
        outcomes = set(map(len, (await town.here.outcomes()).values()))

    assert all(SECRET not in str(seen) and coded not in str(seen) for seen in (results, record))
    assert all(SECRET.encode() not in data and coded.encode() not in data for data in stored)
    assert stored[0].startswith(b"[masked:") and stored[0].endswith(b" last") and stored[0] == stored[1]
    assert len(orjson.loads(stored[2])["rows"]) == 3000 and b'"[masked:' in stored[2]
    assert "[masked:" in results[0]["content"][0]["text"]
    assert held == []
    assert outcomes == {1}
    assert [len(data) for data in stored] == [kept_of(result)["size"] for result in results]


async def test_what_is_refused_in_a_small_message_is_refused_in_a_large_one(tmp_path: Path) -> None:
    filler = "x" * (2 * MIB)
    bad = {
        "twice": f'{{"content":[],"content":[],"filler":"{filler}"}}',
        "nan": f'{{"content":[],"filler":"{filler}","n":NaN}}',
        "deep": f'{{"content":[],"filler":"{filler}","n":{"[" * 100}{"]" * 100}}}',
        "wide": f'{{"content":[],"filler":"{filler}","n":123456789012345678901234567890}}',
        "many": f'{{"content":[{"{}," * 600_000}{{}}]}}',
        "cut_off": f'{{"content":[],"filler":"{filler}',
        "no_list": f'{{"content":"{filler}"}}',
        "no_objects": f'{{"content":["{filler}"]}}',
    }
    shop = Large(answers={name: raw(text) for name, text in bad.items()} | {"good": message(text("x" * 2 * MIB))})
    async with web_server(shop.script()) as server, a_town(tmp_path / "t") as town, town.here.client() as client:
        await opened(town, server.url)
        ended = {
            name: error_of(await client.request("tools/call", {"name": f"up__{name}", "arguments": {}}))["code"]
            for name in bad
        }
        good = await client.call("up__good")
        outcomes = set(map(len, (await town.here.outcomes()).values()))

    assert ended == dict.fromkeys(bad, "upstream_protocol")
    assert kept_of(good)["size"] == 2 * MIB
    assert outcomes == {1}


async def test_large_structured_content_has_to_fit_what_was_promised(tmp_path: Path) -> None:
    filler = "x" * (2 * MIB)
    shop = Large(
        answers={
            "promised": message({"content": [], "structuredContent": {"n": 1, "filler": filler}}),
            "promised_other": message({"content": [], "structuredContent": {"n": "one", "filler": filler}}),
            "promised_none": message(text(filler)),
            "promised_failed": message(text(filler, isError=True)),
        }
    )
    async with web_server(shop.script()) as server, a_town(tmp_path / "t") as town, town.here.client() as client:
        await opened(town, server.url)
        asked = {name: {"name": f"up__{name}", "arguments": {}} for name in shop.answers}
        told = {name: await client.request("tools/call", params) for name, params in asked.items()}
        stored = bytes_of(town, kept_of(told["promised"]["result"]))
        recorded = [event.payload for event in await town.here.events() if event.kind == "tool_result"]

    assert [(one["is_error"], one["result"]["isError"]) for one in recorded if one] == [(False, False), (True, True)]
    assert orjson.loads(stored) == {"n": 1, "filler": filler}
    assert error_of(told["promised_other"])["code"] == error_of(told["promised_none"])["code"] == "invalid_result"
    assert filler[:100] not in str(told["promised_other"])
    assert told["promised_failed"]["result"]["isError"] is True


async def test_large_answers_of_two_clients_at_once_are_each_their_own(tmp_path: Path) -> None:
    shop = Large(answers={name: message(text(name * MIB)) for name in ("ants", "bees")})
    async with (
        web_server(shop.script()) as server, a_town(tmp_path / "t") as town,
        town.here.client(principal=ANN) as ann, town.here.client(principal=BOB) as bob,
    ):  # fmt: skip
        await opened(town, server.url)
        results = await asyncio.gather(*(who.call(f"up__{what}") for who, what in ((ann, "ants"), (bob, "bees")) * 3))
        stolen = await bob.request("resources/read", {"uri": f"artifact://{kept_of(results[0])['sha256']}"})
        missing = await bob.request("resources/read", {"uri": f"artifact://{'0' * 64}"})
        stored = [bytes_of(town, kept_of(result)) for result in results]

    assert stored == [b"ants" * MIB, b"bees" * MIB] * 3
    assert error_of(stolen)["code"] == error_of(missing)["code"]


async def test_a_process_that_is_killed_is_one_failed_call_and_none_outlives_the_gateway(tmp_path: Path) -> None:
    shop = Large(answers={"big": message(text("x" * 2 * MIB))})
    async with web_server(shop.script()) as server, a_town(tmp_path / "t") as town, town.here.client() as client:
        await opened(town, server.url)
        before = memory_files()
        await client.call("up__big")
        [helper] = helpers()
        environment = Path(f"/proc/{helper}/environ").read_bytes() + Path(f"/proc/{helper}/cmdline").read_bytes()
        os.kill(helper, signal.SIGSTOP)
        _, waiting = await client.start("tools/call", {"name": "up__big", "arguments": {}})
        await until(lambda: memory_files() > before)
        os.kill(helper, signal.SIGKILL)
        failed = await waiting
        after = await client.call("up__big")
        outcomes = set(map(len, (await town.here.outcomes()).values()))
        during = helpers()

    assert error_of(failed)["code"] in ("upstream_protocol", "invalid_result")
    assert kept_of(after)["size"] == 2 * MIB
    assert outcomes == {1}
    assert SECRET.encode() not in environment
    assert len(during) == 1 and helpers() == []
    assert memory_files() == before


async def test_a_list_of_tools_that_is_large_is_had_whole(tmp_path: Path) -> None:
    shop = Large(answers={f"it{n}": message(text(f"hi {n}")) for n in range(8)})
    for tool in shop.tools:
        tool["_meta"] = {"vendor/large": "m" * 200_000}
    async with web_server(shop.script()) as server, a_town(tmp_path / "t") as town, town.here.client() as client:
        await opened(town, server.url)
        offered = town.names()
        result = await client.call("up__it7")

    assert offered == [f"up__it{n}" for n in range(8)]
    assert result["content"][0]["text"] == "hi 7"


async def test_a_result_within_its_tools_limit_comes_whole_and_masked() -> None:
    masker = SecretMasker({"key": "xxxx" * 10})
    large = LargeParser(program=PROGRAM, marks=lambda: masker.marks)
    limits = Limits(timeout_s=20, output_limit_bytes=8 * MIB)
    servers = {"up": python_server("raw")}
    async with (
        world(servers, accept=lambda entry: accepted(entry, limits=limits), large=large) as here,
        here.client() as client,
    ):
        result = await client.call("up__big", {"bytes": 4_000_000})

    assert result["content"][0]["text"] == "[masked:key]" * 100_000
    assert len(result["content"]) == 1


async def test_what_is_no_result_may_not_be_larger_than_what_a_client_may_send() -> None:
    parser = LargeParser(program=PROGRAM, marks=dict)
    said = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"data": "x" * 5 * MIB}}
    error = {"jsonrpc": "2.0", "id": 1, "error": {"code": 7, "message": "y" * 5 * MIB, "data": "z" * MIB}}
    refused = []
    for value in (said, [error], {**said, "id": 1}):
        with pytest.raises(BadFrame) as fault:
            await parser.parse(orjson.dumps(value), limit_bytes=1 << 27)
        refused.append(fault.value.reason)
    shortened: Any = await parser.parse(orjson.dumps(error), limit_bytes=1 << 27)
    await parser.close()

    assert refused == ["too_large"] * 3
    assert shortened["error"] == {"code": 7, "message": "y" * 2000}


async def test_a_look_that_fails_is_told_and_gives_everything_back() -> None:
    parser = LargeParser(program=PROGRAM, marks=dict)
    first, second = [await parsed(parser, text("x" * 2 * MIB)) for _ in range(2)]
    taken = parser.room.left_bytes
    assert parser.pid is not None
    os.kill(parser.pid, signal.SIGKILL)
    with pytest.raises(InvalidResult):
        async with first.looked_at(schema=None, limit_bytes=1, keep=True):
            pass
    async with second.looked_at(schema=None, limit_bytes=1, keep=False) as found:
        unkept = (found.body, found.kept, found.size_bytes)
    del first, second
    left = parser.room.left_bytes
    await parser.close()

    assert unkept == (None, None, 2 * MIB + len('{"content":[{"text":"","type":"text"}]}'))
    assert left > taken + 4 * MIB


async def test_a_server_cannot_speak_for_the_gateway_in_a_large_answer() -> None:
    forged = {"io.omni-mcp/artifact": {"sha256": "0" * 64}, "vendor/field": 1}
    parser = LargeParser(program=PROGRAM, marks=dict)
    result = await parsed(parser, text("x" * 2 * MIB, _meta=forged, unknown=[None]))
    async with result.looked_at(schema=None, limit_bytes=1 << 27, keep=True) as found:
        body = found.body
    await parser.close()

    assert body == text("x" * 2 * MIB, _meta={"vendor/field": 1}, unknown=[None])


async def parsed(parser: LargeParser, result: JsonObject) -> LargeResult:
    """Return the large result in a message."""
    found = await parser.parse(message(result)(1), limit_bytes=1 << 27)
    assert isinstance(found, LargeResponse) and found.large is not None
    assert found.result == {"content": [], **({"isError": True} if result.get("isError") else {})}
    return found.large


def test_a_line_that_there_is_no_room_for_costs_only_itself_and_room_comes_back() -> None:
    room = Room(limit_bytes=3 * MIB)
    one, other = LineSplitter(128 * MIB, room), LineSplitter(128 * MIB, room)
    [first] = one.feed(b"1" * 2 * MIB + b"\n")
    [refused, small] = other.feed(b"H" * 400 + b"2" * 2 * MIB + b"T" * 400 + b"\nsmall\n")
    before = room.left_bytes
    assert isinstance(first, Spool)
    first.close()
    [again] = other.feed(b"3" * 2 * MIB + b"\n")

    assert isinstance(refused, TooLong) and refused.head == b"H" * 256 and refused.tail == b"T" * 256
    assert small == b"small"
    assert before == MIB
    assert isinstance(again, Spool) and len(again) == 2 * MIB
