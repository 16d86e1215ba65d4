"""No method of any version, and no way to write one, dispatches anything that no rule permits; each try is on record.

The methods come from the SDK's own tables, so a method that a later version brings fails here until it is known.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
import mcp_types.methods as sdk
import orjson
import pytest
import pytest_asyncio

from omni_mcp.protocol.methods import METHODS, REQUESTS
from omni_mcp.testing import ANN, BOB, MemoryClient, error_of
from tests.promises.closed_and_open import Twin, a_twin

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("cells")]

VERSIONS = sorted({version for _, version in sdk.CLIENT_REQUESTS})
EVERY_REQUEST = sorted(sdk.CLIENT_REQUESTS)
EVERY_NOTIFICATION = sorted(sdk.CLIENT_NOTIFICATIONS)
FROM_SERVERS = sorted({method for method, _ in sdk.SERVER_REQUESTS})
numbers = itertools.count(1)
Send = Callable[[MemoryClient, Twin], Awaitable[list[dict[str, Any]]]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def closed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Twin]:
    async with a_twin(tmp_path_factory.mktemp("closed"), permits=False) as twin:
        yield twin


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def opened(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Twin]:
    async with a_twin(tmp_path_factory.mktemp("opened"), permits=True) as twin:
        yield twin


def plain(method: str, **params: Any) -> Send:
    """A method that has nothing to name."""

    async def send(client: MemoryClient, twin: Twin) -> list[dict[str, Any]]:
        return [await client.request(method, params)]

    return send


async def send_calls(client: MemoryClient, twin: Twin) -> list[dict[str, Any]]:
    """One to the outside world, one into a cell, one in process."""
    arguments: list[tuple[str, dict[str, Any]]] = [
        ("canary__touch", {}),
        ("tools__leaf", {"path": f"leaf-{next(numbers)}", "text": "here"}),
        ("runs__list", {}),
    ]
    return [await client.request("tools/call", {"name": name, "arguments": given}) for name, given in arguments]


async def send_reads(client: MemoryClient, twin: Twin) -> list[dict[str, Any]]:
    uris = ("note://a", "note://some-id", "run://latest")
    return [await client.request("resources/read", {"uri": uri}) for uri in uris]


async def send_completions(client: MemoryClient, twin: Twin) -> list[dict[str, Any]]:
    refs = (
        {"type": "ref/prompt", "name": "canary__greet"},
        {"type": "ref/resource", "uri": "note://{id}"},
        {"type": "ref/resource", "uri": "note://a"},
    )
    argument = {"name": "word", "value": "o"}
    return [await client.request("completion/complete", {"ref": ref, "argument": argument}) for ref in refs]


async def send_subscribe(client: MemoryClient, twin: Twin) -> list[dict[str, Any]]:
    """Subscribe; then the resource changes, which only who may read it hears."""
    reply = await client.request("resources/subscribe", {"uri": "note://a"})
    twin.here.gateway.changes.resource_updated("note://a")
    updates = [note for note in client.notifications if note["method"] == "notifications/resources/updated"]
    assert bool(updates) == twin.permits
    return [reply]


async def send_listen(client: MemoryClient, twin: Twin) -> list[dict[str, Any]]:
    """Listen for one resource; the stream is ended by its own client."""
    wanted = {"notifications": {"resourceSubscriptions": ["note://a"]}}
    number, _ = await client.start("subscriptions/listen", wanted)
    async with asyncio.timeout(30):
        await client.heard.wait()
    acknowledged = client.notifications[0]["params"]["notifications"]
    twin.here.gateway.changes.resource_updated("note://a")
    updates = [note for note in client.notifications if note["method"] == "notifications/resources/updated"]
    assert bool(updates) == twin.permits
    await client.notify("notifications/cancelled", {"requestId": number})
    return [{"result": acknowledged} if acknowledged else {"error": {}}]


async def send_initialize(client: MemoryClient, twin: Twin) -> list[dict[str, Any]]:
    """It was sent to connect; a second one is refused."""
    again = await client.request("initialize", {"protocolVersion": client.version, "capabilities": {}})
    assert "error" in again
    return []


SENDERS: dict[str, Send] = {
    "initialize": send_initialize,
    "ping": plain("ping"),
    "server/discover": plain("server/discover"),
    "logging/setLevel": plain("logging/setLevel", level="debug"),
    "tools/list": plain("tools/list"),
    "tools/call": send_calls,
    "resources/list": plain("resources/list"),
    "resources/templates/list": plain("resources/templates/list"),
    "resources/read": send_reads,
    "resources/subscribe": send_subscribe,
    "resources/unsubscribe": plain("resources/unsubscribe", uri="note://a"),
    "prompts/list": plain("prompts/list"),
    "prompts/get": plain("prompts/get", name="canary__greet", arguments={"word": "x"}),
    "completion/complete": send_completions,
    "subscriptions/listen": send_listen,
}
SIGNS = {"tools/call": 2, "resources/read": 2, "prompts/get": 1, "completion/complete": 3}  # that the twin leaves


async def test_every_method_of_the_sdk_is_known_here_and_to_the_gateway() -> None:
    methods = {method for method, _ in EVERY_REQUEST}
    assert methods == set(SENDERS)
    assert methods <= set(REQUESTS)
    assert {method for method, _ in EVERY_NOTIFICATION} <= set(METHODS)


@pytest.mark.parametrize(("method", "version"), EVERY_REQUEST)
async def test_under_an_empty_policy_a_method_dispatches_nothing_and_is_on_record(
    method: str, version: str, closed: Twin
) -> None:
    before, gid = closed.signs(), await closed.last_gid()
    async with closed.here.client(version=version) as client:
        replies = await SENDERS[method](client, closed)
        if REQUESTS[method].recorded == "refusal":  # written in the order of the requests, soon after their answers
            await closed.until_since(gid, "access_refused", len(replies))
    assert closed.signs() == before
    recorded = await closed.since(gid)
    asked = [event.call for event in recorded if event.kind == "tool_call"]
    if REQUESTS[method].recorded == "call":
        outcomes = await closed.here.outcomes()
        assert len(asked) == len(replies)
        assert [outcomes[call or ""] for call in asked] == [["tool_error:policy_denied"]] * len(asked)
        assert {error_of(reply)["code"] for reply in replies} == {"policy_denied"}
    elif REQUESTS[method].recorded == "refusal":
        refused = [event for event in recorded if event.code == "access_refused"]
        assert len(refused) == len(replies) > 0
        assert all("error" in reply for reply in replies)
        assert not asked
    else:
        assert not asked
        for name in ("tools", "resources", "resourceTemplates", "prompts"):
            assert not any(reply.get("result", {}).get(name) for reply in replies)


@pytest.mark.parametrize(("method", "version"), EVERY_REQUEST)
async def test_with_a_permit_the_same_frames_reach_the_canary(method: str, version: str, opened: Twin) -> None:
    before = opened.signs()
    async with opened.here.client(version=version) as client:
        replies = await SENDERS[method](client, opened)
    assert all("result" in reply for reply in replies), replies
    assert len(opened.signs()) - len(before) == SIGNS.get(method, 0)
    if method.endswith("/list"):
        assert next(value for value in replies[0]["result"].values() if isinstance(value, list))


@pytest.mark.parametrize(("method", "version"), EVERY_NOTIFICATION)
async def test_a_notification_dispatches_nothing_even_with_a_permit(method: str, version: str, opened: Twin) -> None:
    before = opened.signs()
    async with opened.here.client(version=version) as client:
        await client.notify(method, {"requestId": 1, "progressToken": 1, "progress": 1, "name": "canary__touch"})
        await client.notify("tools/call", {"name": "canary__touch", "arguments": {}})
        await client.request("tools/list")  # answered after whatever the notifications did
    assert opened.signs() == before


@pytest.mark.parametrize("method", [*FROM_SERVERS, "tasks/get", "tasks/result", "tools/Call", "tools/call ", "x"])
@pytest.mark.parametrize("version", ["2025-11-25", "2026-07-28"])
async def test_a_method_that_is_not_for_servers_dispatches_nothing(method: str, version: str, opened: Twin) -> None:
    before = opened.signs()
    async with opened.here.client(version=version) as client:
        reply = await client.request(method, {"name": "canary__touch", "uri": "note://a", "arguments": {}})
    if method not in REQUESTS or REQUESTS[method].handler is None:
        assert reply["error"]["code"] == -32601
    assert opened.signs() == before


LOOKALIKES = [
    "canary__touch ", " canary__touch", "canary__Touch", "CANARY__touch", "canary__touch\x00", "canary__touch\n",
    "touch", "canary/touch", "canary.touch", "canary___touch", "canary__touch\u200b", "canary__to\u0075\u0301ch",
    "__touch", "canary__", "", "../canary__touch", "canary__touch?x=1",
]  # fmt: skip


@pytest.mark.parametrize("name", LOOKALIKES)
async def test_a_name_that_only_looks_like_a_tools_is_refused_though_all_is_permitted(name: str, opened: Twin) -> None:
    before = opened.signs()
    async with opened.here.client() as client:
        result = await client.call(name)
    assert error_of(result)["code"] == "policy_denied"
    assert (await opened.here.words(error_of(result)["call"]))[-1] == "tool_error:policy_denied"
    assert opened.signs() == before


@pytest.mark.parametrize("version", ["2025-11-25", "2026-07-28"])
async def test_a_quarantined_tool_cannot_be_called_by_name_nor_listed(version: str, opened: Twin) -> None:
    before = opened.signs()
    async with opened.here.client(version=version) as client:
        result = await client.call("canary__new")
        names = [tool["name"] for tool in await client.listed("tools")]
    assert error_of(result)["code"] == "policy_denied"
    assert "canary__new" not in names
    assert opened.signs() == before


async def test_a_tool_that_is_left_out_of_a_list_is_still_refused_without_a_permit(closed: Twin, opened: Twin) -> None:
    """The list of the modern era leaves out a tool with a faulty header annotation; that is no permit."""
    async with opened.here.client() as client:
        assert "canary__unlisted" not in [tool["name"] for tool in await client.listed("tools")]
        assert not (await client.call("canary__unlisted"))["isError"]
    before = closed.signs()
    async with closed.here.client() as client:
        assert error_of(await client.call("canary__unlisted"))["code"] == "policy_denied"
    assert closed.signs() == before


async def test_a_profile_reaches_only_its_own_servers(opened: Twin) -> None:
    before = opened.signs()
    async with opened.here.client(profile="tools") as client:
        for name in ("canary__touch", "touch", "runs__list"):
            assert error_of(await client.call(name))["code"] == "policy_denied"
        reply = await client.request("resources/read", {"uri": "note://a"})
    assert error_of(reply)["code"] == "policy_denied"
    assert opened.signs() == before


URIS = [
    "note://a", "NOTE://a", "note://A", "note://%61", "note://a#x", "note://a?x=1", "note://a/", " note://a", "note:a",
    "note://./a", "note://a\x00", "note://{id}", "omni+canary+note://a", "file:///etc/passwd", "run://latest", "run://x",
    "artifact://" + "0" * 64, "", "canary__touch",
]  # fmt: skip


@pytest.mark.parametrize("uri", URIS)
async def test_no_spelling_of_a_uri_is_read_under_an_empty_policy(uri: str, closed: Twin) -> None:
    before = closed.signs()
    async with closed.here.client() as client:
        reply = await client.request("resources/read", {"uri": uri})
        assert reply["error"]["message"] == "Resource not found"
        assert (await closed.here.words(error_of(reply)["call"]))[-1] == "tool_error:policy_denied"
        assert "error" in await client.request("resources/read", {"uri": [uri]})
    assert closed.signs() == before


async def test_each_member_of_a_batch_is_refused_and_recorded_by_itself(closed: Twin) -> None:
    before, gid = closed.signs(), await closed.last_gid()
    async with closed.here.client(version="2025-03-26") as client:
        answers = await send_batch(client)
    assert closed.signs() == before
    assert {error_of(answer)["code"] for answer in answers} == {"policy_denied"}
    outcomes = await closed.here.outcomes()
    asked = [event.call or "" for event in await closed.since(gid) if event.kind == "tool_call"]
    assert [outcomes[call] for call in asked] == [["tool_error:policy_denied"]] * 3


async def test_with_a_permit_each_member_of_a_batch_reaches_the_canary(opened: Twin) -> None:
    before = opened.signs()
    async with opened.here.client(version="2025-03-26") as client:
        answers = await send_batch(client)
    assert len(answers) == 3
    assert len(opened.signs()) - len(before) == 3


async def send_batch(client: MemoryClient) -> list[dict[str, Any]]:
    await client.tell(
        [
            client.frame("tools/call", {"name": "canary__touch", "arguments": {}}),
            client.frame("resources/read", {"uri": "note://a"}),
            client.frame("prompts/get", {"name": "canary__greet"}),
        ]
    )
    answers: list[dict[str, Any]] = await asyncio.wait_for(client.unasked.get(), 30)
    return answers


@pytest.mark.parametrize("version", [version for version in VERSIONS if version != "2025-03-26"])
async def test_a_batch_of_any_other_version_dispatches_nothing(version: str, opened: Twin) -> None:
    before = opened.signs()
    async with opened.here.client(version=version) as client:
        await client.tell([client.frame("tools/call", {"name": "canary__touch", "arguments": {}})])
        answer = await asyncio.wait_for(client.unasked.get(), 30)
    assert answer["error"]["data"]["reason"] == "batch"
    assert opened.signs() == before


@pytest.mark.parametrize(
    "frame",
    [
        b'{"jsonrpc":"2.0","id":7,"method":"ping","method":"tools/call","params":{"name":"canary__touch"}}',
        b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"runs__list","name":"canary__touch"}}',
        b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"runs__list","na\\u006de":"canary__touch"}}',
        b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{},"params":{"name":"canary__touch"}}',
        b'{"jsonrpc":"2.0","id":null,"method":"tools/call","params":{"name":"canary__touch"}}',
        b'{"jsonrpc":"2.0","id":7.5,"method":"tools/call","params":{"name":"canary__touch"}}',
        b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"canary__touch"},"result":{}}',
        b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":["canary__touch"]}',
        b'{"jsonrpc":"1.0","id":7,"method":"tools/call","params":{"name":"canary__touch"}}',
        b'\xef\xbb\xbf{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"canary__touch"}}',
    ],
)
async def test_a_frame_that_two_parsers_could_read_differently_dispatches_nothing(frame: bytes, tmp_path: Path) -> None:
    async with a_twin(tmp_path, permits=True) as twin, twin.here.client(version="2025-11-25") as client:
        await client.tell(frame)
        answer = await asyncio.wait_for(client.unasked.get(), 30)
        await twin.here.until("request_rejected")
        assert answer["error"]["code"] in (-32700, -32600, -32602)
        assert twin.signs() == []
        await client.tell(b'{"jsonrpc":"2.0","id":8,"method":"tools/call","params":{"name":"canary__touch"}}')
        assert (await asyncio.wait_for(client.unasked.get(), 30))["id"] == 8  # the next one is served
        assert twin.signs() == ["tool canary__touch"]


TOUCH_ONLY = '@id("touch") permit (principal, action, resource == Omni::Tool::"canary__touch");'


async def test_headers_that_name_another_tool_or_method_or_version_dispatch_nothing(tmp_path: Path) -> None:
    async with (
        a_twin(tmp_path, permits=True, rules=TOUCH_ONLY) as twin,
        twin.here.http(ANN) as (base, [token]),
        httpx2.AsyncClient(base_url=base, headers={"Authorization": f"Bearer {token}"}) as http,
    ):
        body = MemoryClient(twin.here.gateway).frame("tools/call", {"name": "canary__touch", "arguments": {}})
        good = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": "canary__touch"}
        hidden = {**body, "params": {**body["params"], "name": "canary__ask"}}
        wrong = [
            (hidden, good),
            (body, {**good, "Mcp-Name": "canary__ask"}),
            (body, {**good, "Mcp-Method": "tools/list"}),
            (body, {**good, "MCP-Protocol-Version": "2025-11-25"}),
            (body, {key: value for key, value in good.items() if key != "Mcp-Name"}),
        ]
        for sent, headers in wrong:
            answer = await http.post("/mcp", json=sent, headers={"Accept": "application/json", **headers})
            assert answer.status_code == 400, (sent, headers, answer.text)
        await twin.here.until("request_rejected")
        forbidden = await http.post("/mcp", json=hidden, headers={**good, "Mcp-Name": "canary__ask"})
        assert error_of(forbidden.json())["code"] == "policy_denied"
        assert twin.signs() == []
        assert (await http.post("/mcp", json=body, headers=good)).status_code == 200
        assert twin.signs() == ["tool canary__touch"]


async def test_without_a_token_no_route_dispatches_anything(tmp_path: Path) -> None:
    async with (
        a_twin(tmp_path, permits=True) as twin,
        twin.here.http() as (base, _),
        httpx2.AsyncClient(base_url=base) as http,
    ):
        body = orjson.dumps(MemoryClient(twin.here.gateway).frame("tools/call", {"name": "canary__touch"}))
        headers = {"Content-Type": "application/json", "MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call"}
        for route in twin.here.gateway.http_app.routes:
            for method in ("GET", "POST", "DELETE", "PUT"):
                answer = await http.request(method, route.path, content=body, headers=headers)
                assert answer.status_code in (401, 404, 405) or route.public, (method, route.path)
        await twin.here.until("request_rejected")
        assert twin.signs() == []


ASKED = {"name": "canary__ask", "arguments": {"n": 1}}
CAPABLE: dict[str, Any] = {"elicitation": {"form": {}}}


async def test_a_forged_or_foreign_request_state_dispatches_nothing_and_the_right_one_does(tmp_path: Path) -> None:
    async with a_twin(tmp_path, permits=True) as twin:
        async with (
            twin.here.client(capabilities=CAPABLE) as client,
            twin.here.client(capabilities=CAPABLE, principal=BOB) as other,
        ):
            asked = (await client.request("tools/call", ASKED))["result"]
            state, answers = asked["requestState"], {"sure": {"action": "accept", "content": {}}}
            again = {**ASKED, "inputResponses": answers}
            flipped = state[:40] + ("A" if state[40] != "A" else "B") + state[41:]
            before = twin.signs()
            for sender, params in (
                (client, {**again, "requestState": flipped}),
                (client, {**again, "requestState": "forged"}),
                (client, {**again, "requestState": state, "arguments": {"n": 2}}),
                (client, {**again, "requestState": state, "name": "canary__touch"}),
                (other, {**again, "requestState": state}),
            ):
                assert (await sender.request("tools/call", params))["error"]["code"] == -32602
            assert twin.signs() == before
            await twin.here.until("request_rejected")
            done = await client.call(**{"tool": ASKED["name"], **again, "requestState": state})
            assert done["resultType"] == "complete"
            assert len(twin.signs()) == len(before) + 1
            used = await client.request("tools/call", {**again, "requestState": state})
            assert used["error"]["code"] == -32602
            assert len(twin.signs()) == len(before) + 1
        assert sorted(len(ends) for ends in (await twin.here.outcomes()).values()) == [1]
