"""Pages of events over HTTP: whole, in order, the same from sheets and from rows, and nobody else's."""

from __future__ import annotations

import asyncio
import socket

import pytest

from omni_mcp.contracts.api import EventPage
from omni_mcp.contracts.events import Message, draft
from omni_mcp.engines.identity.keys import KeyRing
from omni_mcp.engines.runlog.sheets import SHEET_EVENTS
from omni_mcp.serving.room import SHARE_BYTES
from omni_mcp.serving.runs.view import for_caller
from omni_mcp.serving.web_server import serve_http
from omni_mcp.testing import ANN
from tests.api.world import Api
from tests.waiting import until

PAGES = 16  # more than the system's own buffers take


async def _long_run(world: Api, texts: int, words: str = "") -> str:
    log = world.here.gateway.log
    run = (await world.ann.post("/api/runs", json={})).json()["id"]
    for number in range(texts):
        told = Message(text=f'the "{number}" ü{words}')
        ticket = log.append(run, draft(told, actor=ANN.key, kind="user_message"))
    await ticket.durable()
    await log.flush_index()
    return str(run)


async def test_pages_of_a_long_run_hold_each_event_once_and_as_its_caller_may_see_it(world: Api) -> None:
    """Source: docs/api.md. Two sheets, and the rest from rows."""
    run = await _long_run(world, 2 * SHEET_EVENTS + 40)
    assert len(list((world.here.home.data / "sheets").glob("*.sheet"))) == 2
    shown: list[object] = []
    query: dict[str, str | int] = {"limit": 150}
    while True:
        answer = await world.ann.get(f"/api/runs/{run}/events", params=query)
        assert answer.status_code == 200 and answer.headers["cache-control"] == "no-store"
        page = EventPage.model_validate_json(answer.content)
        shown += [event.model_dump() for event in page.items]
        if page.next is None:
            break
        query["cursor"] = page.next
    assert shown == [for_caller(event) async for event in world.here.gateway.log.read(run)]
    whole = await world.ann.get(f"/api/runs/{run}/events", params={"limit": 1000})
    assert whole.json() == {"items": shown, "next": None}


async def test_a_page_of_more_than_a_thousand_is_refused_and_anothers_is_not_there(world: Api) -> None:
    run = await _long_run(world, SHEET_EVENTS)
    assert (await world.ann.get(f"/api/runs/{run}/events", params={"limit": 1001})).status_code == 400
    missing = await world.bob.get("/api/runs/0198f0c2-0000-7000-8000-000000000000/events", params={"limit": 1000})
    theirs = await world.bob.get(f"/api/runs/{run}/events", params={"limit": 1000})
    assert (theirs.status_code, theirs.json()) == (missing.status_code, missing.json()) and theirs.status_code == 404


async def test_behind_the_last_event_there_is_an_empty_page(world: Api) -> None:
    run = await _long_run(world, 3)
    answer = await world.ann.get(f"/api/runs/{run}/events", params={"cursor": "4"})
    assert answer.json() == {"items": [], "next": None}


@pytest.mark.parametrize("is_read", [True, False])
async def test_a_page_counts_until_its_client_has_taken_it_or_has_gone(world: Api, is_read: bool) -> None:
    run = await _long_run(world, 200, "x" * 10_000)
    room = world.here.gateway.edge.room
    token = KeyRing(world.here.home.keys_file).create("slow", ANN)
    async with serve_http(world.here.gateway.http_app, "127.0.0.1", 0) as port:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(sock=client, limit=1024)  # what it has not read stays with us
        asked = (
            f"GET /api/runs/{run}/events?limit=1000 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            f"Authorization: Bearer {token}\r\n\r\n"
        )
        last = asked.replace("Host", "Connection: close\r\nHost")
        writer.write((asked * (PAGES - 1) + last).encode())
        await until(lambda: room.taken_bytes > 500_000)
        if is_read:
            answers = await asyncio.wait_for(reader.read(), 30)
            assert answers.count(b"HTTP/1.1 200") == PAGES and len(answers) > PAGES * 500_000
        writer.transport.abort()
        await until(lambda: room.taken_bytes == 0)


async def test_who_has_taken_too_little_gets_no_further_page_and_others_do(world: Api) -> None:
    run = await _long_run(world, 3)
    mine = (await world.bob.post("/api/runs", json={})).json()["id"]
    with world.here.gateway.edge.room.claim(ANN.key) as untaken:
        untaken.grow(SHARE_BYTES - 10)
        refused = await world.ann.get(f"/api/runs/{run}/events")
        other = await world.bob.get(f"/api/runs/{mine}/events")
    later = await world.ann.get(f"/api/runs/{run}/events")

    assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
    assert (other.status_code, later.status_code) == (200, 200)
