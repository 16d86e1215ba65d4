"""Conversation events: three kinds, into one's own open run, in the order in which they came; nothing else comes in."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, get_args

import pytest

from omni_mcp.config import LimitSettings, Settings
from omni_mcp.contracts.api import MessageDraft
from omni_mcp.contracts.call import ClientFacts
from omni_mcp.contracts.errors import RateLimited
from omni_mcp.contracts.events import CODES, CONVERSATION_KINDS, Kind
from omni_mcp.serving.messages import Messages
from omni_mcp.serving.runbook import Runbook
from omni_mcp.testing import ANN, BOB, LocalGateway, error_of
from tests.api.world import Api, api_world

OTHERS = [*sorted((set(get_args(Kind)) | set(CODES)) - CONVERSATION_KINDS), "", "USER_MESSAGE", "nothing"]


def said(kind: Any = "user_message", text: Any = "hello", **more: Any) -> dict[str, Any]:
    return {"kind": kind, "text": text, **more}


async def count_of(here: LocalGateway, run: str) -> int:
    return int((await here.gateway.log.get_run(run))["last_seq"])


async def test_a_golden_run_shows_the_canonical_order(world: Api) -> None:
    """From `run_created` to the `system_event` that closes it."""
    run = (await world.ann.post("/api/runs", json={"title": "golden"})).json()["id"]
    ask = {"events": [said(text="say x")]}
    stored = (await world.ann.post(f"/api/runs/{run}/events", json=ask)).json()
    assert stored == {"run": run, "events": [{"seq": 2, "kind": "user_message"}]}
    await world.ann.post("/api/calls", json={"name": "canary__echo", "arguments": {"x": "x"}, "run": run})
    model = {"provider": "local", "id": "m1"}
    answer = [said("assistant_message_delta", "I "), said("assistant_message_delta", "said x."),
              said("assistant_message", "I said x.", author="m1", model=model)]  # fmt: skip
    seqs = (await world.ann.post(f"/api/runs/{run}/events", json={"events": answer})).json()["events"]
    assert [one["seq"] for one in seqs] == [6, 7, 8]
    assert (await world.ann.post(f"/api/runs/{run}/end")).status_code == 204
    events = (await world.ann.get(f"/api/runs/{run}/events")).json()["items"]
    assert [(one["seq"], one["kind"], one["code"]) for one in events] == [
        (1, "run_created", None),
        (2, "user_message", None),
        (3, "tool_call", None),
        (4, "system_event", "policy_decided"),
        (5, "tool_result", None),
        (6, "assistant_message_delta", None),
        (7, "assistant_message_delta", None),
        (8, "assistant_message", None),
        (9, "system_event", "run_closed"),
    ]
    assert events[7]["payload"] == {"text": "I said x.", "author": "m1", "model": model}
    assert {one["actor"] for one in events if one["kind"].endswith("message")} == {'User::"ann"@default'}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.asyncio(loop_scope="module")
async def test_every_other_kind_is_forbidden_and_nothing_is_stored(kind: str, shared: Api) -> None:
    run = shared.things["run"]
    before = await count_of(shared.here, run)
    forged = {"kind": kind, "text": "x", "payload": {"is_error": False}, "code": kind}
    for body in (forged, {"events": [said(), forged]}, {"events": [forged]}, {**forged, "events": [said()]}):
        answer = await shared.ann.post(f"/api/runs/{run}/events", json=body)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert await count_of(shared.here, run) == before
    async with shared.here.client() as client:
        result = await client.call("messages__say", {"kind": kind, "text": "x"})
    assert error_of(result)["code"] == "invalid_arguments"
    assert not [event for event in await shared.here.events() if event.kind == kind and event.actor.startswith("User")
                and (event.payload or {}).get("text") == "x"]  # fmt: skip


@pytest.mark.parametrize(
    "body",
    [{"events": []}, {}, {"events": [{"kind": "user_message"}]}, {"events": [said(text=1)]},
     {"events": [said(seq=5)]}, {"events": [said(at="2020-01-01T00:00:00Z")]}, {"events": [said(actor="gateway")]},
     {"events": [said(text="x" * 65_537)]}, {"events": [said()] * 101}, {"events": [said(author="x" * 129)]},
     {"events": [said(model={"params": "x" * 5000})]}, {"events": said()}, {"events": [{"text": "x"}]},
     {"events": [said(kind=1)]}],
)  # fmt: skip
@pytest.mark.asyncio(loop_scope="module")
async def test_what_does_not_fit_is_refused_whole(body: dict[str, Any], shared: Api) -> None:
    """Number, time and author of an event are the gateway's to give."""
    run = shared.things["run"]
    before = await count_of(shared.here, run)
    assert (await shared.ann.post(f"/api/runs/{run}/events", json=body)).status_code == 400
    assert await count_of(shared.here, run) == before


async def test_only_an_own_open_run_takes_events(world: Api) -> None:
    mine, body = world.things["run"], {"events": [said()]}
    gateways = (await world.here.gateway.log.runs(limit=1000))[-1]["id"]
    for run in (mine, gateways, "nothing", "../x"):
        assert (await world.bob.post(f"/api/runs/{run}/events", json=body)).status_code in (403, 404)
    for end in (204, 409):
        assert (await world.ann.post(f"/api/runs/{mine}/end")).status_code == end
    before = await count_of(world.here, mine)
    closed = await world.ann.post(f"/api/runs/{mine}/events", json=body)
    assert (closed.status_code, closed.json()["code"]) == (409, "conflict")
    call = {"name": "canary__echo", "run": mine}
    assert (await world.ann.post("/api/calls", json=call)).status_code == 409
    assert await count_of(world.here, mine) == before


@pytest.mark.parametrize("version", ["2025-11-25", "2026-07-28"])
async def test_an_mcp_client_reports_into_the_run_that_it_is_in(version: str, world: Api) -> None:
    async with world.here.client(version=version) as client:
        found = (await client.call("messages__say", said("assistant_message", "done")))["structuredContent"]
        events = [event async for event in world.here.gateway.log.read(found["run"])]
        asked, decided, message, ended = events[-4:]
        assert [asked.kind, decided.code, message.kind, ended.kind] == [
            "tool_call", "policy_decided", "assistant_message", "tool_result"
        ]  # fmt: skip
        assert message.seq == found["seq"] and message.parent == asked.seq
        assert message.call == asked.call, "so that erasing the call takes what it said"


async def test_a_run_of_an_mcp_session_takes_events_by_the_api_until_it_ends(world: Api) -> None:
    async with world.here.client(version="2025-11-25") as client:
        run = client.run
        assert (await world.ann.post(f"/api/runs/{run}/events", json={"events": [said()]})).status_code == 201
    assert (await world.ann.post(f"/api/runs/{run}/events", json={"events": [said()]})).status_code == 409


async def test_no_event_is_recorded_after_the_run_is_closed(world: Api) -> None:
    """Messages and calls race with the end of their run: whatever wins, the last event is the one that closes it."""
    for _ in range(5):
        run = (await world.ann.post("/api/runs", json={})).json()["id"]
        posts = [world.ann.post(f"/api/runs/{run}/events", json={"events": [said()] * 3}) for _ in range(4)]
        calls = [world.ann.post("/api/calls", json={"name": "canary__echo", "run": run}) for _ in range(2)]
        ends = [world.ann.post(f"/api/runs/{run}/end") for _ in range(2)]
        answers = await asyncio.gather(*posts[:2], *calls[:1], ends[0], *posts[2:], *calls[1:], ends[1])
        assert {answer.status_code for answer in answers} <= {200, 201, 204, 409}
        await world.ann.post(f"/api/runs/{run}/end")
        events = [event async for event in world.here.gateway.log.read(run)]
        assert [event.code for event in events].count("run_closed") == 1
        assert events[-1].code == "run_closed"


@pytest.mark.asyncio(loop_scope="module")
async def test_messages_have_a_rate_that_fills_again(shared: Api) -> None:
    """Ten a minute: none is over for long, and another's are another's."""
    log, now = shared.here.gateway.log, [0.0]
    runbook = Runbook(log)
    messages = Messages(log, runbook, messages_per_minute=10, now_s=lambda: now[0])
    one = MessageDraft(kind="user_message", text="x")
    runs = {who: await runbook.begin(who, ClientFacts()) for who in (ANN, BOB)}
    assert await messages.store(ANN, runs[ANN], [one] * 10) == list(range(2, 12))
    with pytest.raises(RateLimited):
        await messages.store(ANN, runs[ANN], [one])
    assert await messages.store(BOB, runs[BOB], [one]) == [2]
    now[0] += 6.0
    assert await messages.store(ANN, runs[ANN], [one]) == [12]
    with pytest.raises(RateLimited):
        await messages.store(ANN, runs[ANN], [one])
    long = MessageDraft(kind="user_message", text="x" * 65_536)
    wordy = Messages(log, runbook, messages_per_minute=1000, now_s=lambda: now[0])
    with pytest.raises(RateLimited):
        await wordy.store(ANN, runs[ANN], [long] * 65)


async def test_a_full_run_takes_no_more_and_says_so(tmp_path: Path) -> None:
    async with api_world(tmp_path, settings=Settings(limits=LimitSettings(events_per_run=10))) as world:
        run = (await world.ann.post("/api/runs", json={})).json()["id"]
        answer = await world.ann.post(f"/api/runs/{run}/events", json={"events": [said()] * 20})
        assert (answer.status_code, answer.json()["code"]) == (429, "quota_exceeded")
        kinds = [event.code or event.kind async for event in world.here.gateway.log.read(run)]
        assert kinds == ["run_created", *["user_message"] * 9, "quota_exceeded"]


async def test_registered_secrets_are_masked_in_messages_and_titles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMNI_TEST_SECRET", "hunter2-quince-4471")
    async with api_world(tmp_path, settings=Settings(secrets={"one": "env:OMNI_TEST_SECRET"}), keep=tmp_path) as world:
        thread = (await world.ann.post("/api/threads", json={"title": "about hunter2-quince-4471"})).json()
        run = (await world.ann.post("/api/runs", json={"title": "hunter2-quince-4471"})).json()
        await world.ann.post(f"/api/runs/{run['id']}/events", json={"events": [said(text="it is hunter2-quince-4471")]})
        assert "hunter2" not in thread["title"] + run["title"]
        for file in world.here.home.data.rglob("*"):
            assert not file.is_file() or b"hunter2-quince-4471" not in file.read_bytes(), file
