"""What a client cannot use it cannot see: names, other people's runs and files, and what was not granted."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import orjson
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omni_mcp.chain.decide import Decisions
from omni_mcp.chain.execute import Execute, Freeze
from omni_mcp.chain.retry import Retries
from omni_mcp.contracts.call import Answer, Call, ClientFacts, Grant, Result, grant_digest
from omni_mcp.contracts.errors import NotAllowed
from omni_mcp.contracts.manifest import Limits
from omni_mcp.contracts.tool import CallKind, Entry
from omni_mcp.engines.catalog.catalog import MemoryCatalog
from omni_mcp.testing import ALLOW_ALL, ANN, BOB, Canary, LocalGateway, MemoryClient, error_of, local_gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")

MARK = "marmalade-7315"  # in everything that is Ann's


async def large(call: Call) -> Result:
    lines = "\n".join(f"line {number} {MARK}" for number in range(2000))
    return Answer(body={"content": [{"type": "text", "text": lines}]}, where="remote")


async def large_json(call: Call) -> Result:
    rows = [{"n": number, "mark": MARK} for number in range(2000)]
    return Answer(body={"content": [], "structuredContent": {"rows": rows}}, where="remote")


def a_canary(file: Path) -> Canary:
    canary = Canary(file)
    for name in ("one", "two", "six"):
        canary.tool(name)
    canary.tool("large", large, limits=Limits(output_limit_bytes=1024))
    canary.tool("large_json", large_json, limits=Limits(output_limit_bytes=1024))
    canary.resource("note://one")
    canary.resource("memo://{id}")
    canary.prompt("greet")
    return canary


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalGateway]:
    async with local_gateway(ALLOW_ALL, canary=a_canary(tmp_path_factory.mktemp("world") / "touched")) as here:
        yield here


RUNS_ONLY = '@id("runs") permit (principal, action, resource in Omni::Server::"runs");'


@pytest.mark.parametrize("version", ["2025-11-25", "2026-07-28"])
async def test_a_missing_and_a_forbidden_name_get_the_same_bytes_and_leave_the_same_view(
    version: str, tmp_path: Path
) -> None:
    pairs = [
        ("tools/call", "name", "canary__one", "canary__xxx"),
        ("tools/call", "name", "canary__new", "canary__xxx"),
        ("resources/read", "uri", "note://one", "note://xxx"),
        ("resources/read", "uri", "memo://one", "mxmo://one"),
        ("prompts/get", "name", "canary__greet", "canary__xxxxx"),
        ("resources/subscribe", "uri", "note://one", "note://xxx"),
    ]
    canary = a_canary(tmp_path / "touched")
    canary.tool("new", state="quarantined")
    async with local_gateway(RUNS_ONLY, canary=canary) as here:
        for method, key, *names in pairs:
            if method == "resources/subscribe" and version == "2026-07-28":
                continue
            answers, views = [], []
            for name in names:
                async with here.client(version=version) as client:
                    reply = await client.request(method, {key: name})
                    call = error_of(reply).get("call", "no call")
                    answers.append(neutral(orjson.dumps(reply).decode(), name, call))
                    views.append(neutral(await caller_view(client, call), name, call))
            assert answers[0] == answers[1], (method, names)
            assert views[0] == views[1], (method, names)
        assert canary.touched == []


async def caller_view(client: MemoryClient, call: str) -> str:
    """What the caller's own tools say of a call: its events, and why it ended as it did."""
    found = await client.call("runs__search", {"query": call})
    story = await client.call("runs__explain", {"call": call})
    return orjson.dumps([found["content"], story["content"]]).decode()


def neutral(text: str, name: str, call: str) -> str:
    """Take out what differs between any two calls: ids, times and the name as it was asked."""
    text = re.sub(
        r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f-]{22}", "<id>", text.replace(call, "<call>").replace(name, "<name>")
    )
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z?", "<time>", text)
    return re.sub(r'\\?"(id|seq|parent|duration_ms|arguments_hmac)\\?":[^,}]+', r"<\1>", text)


RULE = st.tuples(
    st.sampled_from(["permit", "forbid"]),
    st.sampled_from(["ann", "bob", "anyone"]),
    st.sampled_from(["one", "two", "six", "canary", "tools", "runs", "read_only", "any"]),
)


@given(st.lists(RULE, max_size=5))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_what_is_not_listed_is_refused_and_what_is_listed_is_not_unknown(
    here: LocalGateway, rules: list[tuple[str, str, str]]
) -> None:
    here.write_policy("\n".join(cedar(number, *rule) for number, rule in enumerate(rules)) or "// nothing")
    await here.gateway.reload()
    try:
        async with here.client() as client:
            listed = {tool["name"] for tool in await client.listed("tools")}
            every = [f"canary__{name}" for name in ("one", "two", "six")] + ["runs__list"]
            for name in every:
                result = await client.call(name)
                assert (error_of(result).get("code") != "policy_denied") == (name in listed), (name, rules)
    finally:
        here.write_policy(ALLOW_ALL)
        await here.gateway.reload()


def cedar(number: int, effect: str, who: str, what: str) -> str:
    principal = "principal" if who == "anyone" else f'principal == Omni::User::"{who}"'
    resource = "resource"
    if what in ("one", "two", "six"):
        resource = f'resource == Omni::Tool::"canary__{what}"'
    elif what in ("canary", "tools", "runs"):
        resource = f'resource in Omni::Server::"{what}"'
    tail = " when { resource.read_only }" if what == "read_only" else ""
    return f'@id("r{number}") {effect} ({principal}, action == Omni::Action::"call_tool", {resource}){tail};'


class Holding(MemoryCatalog):
    """A catalog in which every name means one tool."""

    def __init__(self, tool: Entry) -> None:
        super().__init__([])
        self._tool = tool

    def find(self, profile: str, kind: CallKind, name: str, *, project: str | None = None) -> Entry:
        return self._tool


class Unchanged(Decisions):
    """Decisions of a policy that did not change."""

    def __init__(self) -> None:
        pass

    def renewed(self, call: Call) -> Call:
        return call


async def test_a_grant_for_other_arguments_another_call_or_another_definition_runs_nothing(tmp_path: Path) -> None:
    canary = Canary(tmp_path / "touched")
    canary.tool("one")
    [tool] = canary.load()
    execute = Execute(canary.executors, {}, Holding(tool), Unchanged(), Freeze(), retries=Retries(cast(Any, None)))
    call = Call(
        id="c1", run="r", principal=ANN, client=ClientFacts(), kind="tool", name="canary__one", arguments={"n": 1},
        profile="default", tool=tool,
    )  # fmt: skip
    granted = replace(call, grant=Grant(digest=grant_digest(call, tool), policy_version="p"))
    changed = Entry(kind="tool", server="canary", name="one", definition={"name": "one"}, binding="mcp_remote")
    wrong = [
        call,
        replace(granted, arguments={"n": 2}),
        replace(granted, arguments={"n": True}),
        replace(granted, id="c2"),
        replace(granted, principal=BOB),
        replace(granted, name="canary__two"),
        replace(granted, tool=changed),
        replace(granted, tool=None),
    ]
    for other in wrong:
        with pytest.raises(NotAllowed):
            await execute(other)
    assert canary.touched == []
    await execute(granted)
    assert canary.touched == ["tool canary__one"]


@pytest.mark.usefixtures("cells")
async def test_a_result_over_its_limit_is_kept_and_can_be_read_searched_and_queried_by_its_owner_only(
    here: LocalGateway,
) -> None:
    async with here.client() as client, here.client(principal=BOB) as other:
        kept = (await client.call("canary__large"))["_meta"]["io.omni-mcp/artifact"]
        rows = (await client.call("canary__large_json"))["_meta"]["io.omni-mcp/artifact"]
        calls: list[tuple[str, dict[str, Any], str]] = [
            ("tools__artifact_read", {"artifact": kept["sha256"], "start_line": 1001, "max_lines": 1}, "line 1000"),
            ("tools__artifact_search", {"artifact": kept["sha256"], "text": "line 1999"}, "line 1999"),
            ("tools__artifact_query", {"artifact": rows["sha256"], "query": "$.rows[7].mark"}, MARK),
        ]
        for name, arguments, expected in calls:
            result = await client.call(name, arguments)
            assert expected in result["content"][0]["text"], result
            theirs = await other.call(name, arguments)
            assert error_of(theirs)["code"] == "invalid_arguments"
            missing = await other.call(name, {**arguments, "artifact": "0" * 64})
            assert error_of(missing)["code"] == error_of(theirs)["code"]
            assert missing["content"][0]["text"].split(" (")[0] == theirs["content"][0]["text"].split(" (")[0]
        made = [e.call or "" for e in await here.events() if (e.payload or {}).get("name") == "canary__large"]
        assert await here.words(made[-1]) == ["tool_call", "policy_decided:allow", "tool_result"]


@pytest.mark.usefixtures("cells")
async def test_no_tool_or_resource_over_the_record_shows_one_principal_what_is_anothers(here: LocalGateway) -> None:
    """Made from the catalog: a tool that takes something this test does not know fails it."""
    async with here.client(version="2025-11-25") as client, here.client(principal=BOB) as other:
        kept = (await client.call("canary__large_json", {"note": MARK}))["_meta"]["io.omni-mcp/artifact"]
        assert client.run is not None
        known: dict[str, Any] = {
            "run": client.run, "query": MARK, "text": MARK, "artifact": kept["sha256"], "sha256": kept["sha256"],
            "call": [e.call for e in await here.events() if e.kind == "tool_call" and e.run == client.run][-1],
            "seq": 4,
        }  # fmt: skip
        special = {("artifact_query", "query"): "$.rows[7].mark"}
        seen = {}
        for entry in here.gateway.catalog.all_entries():
            if entry.kind == "tool" and (entry.server == "runs" or entry.name.startswith("artifact_")):
                takes = entry.definition["inputSchema"]
                needs = {*takes.get("required", []), *({"run", "call"} & takes["properties"].keys())}
                assert needs <= set(known), entry.key
                arguments = {key: special.get((entry.name, key), known[key]) for key in needs}
                request = ("tools/call", {"name": f"{entry.server}__{entry.name}", "arguments": arguments})
            elif entry.server == "runs":
                request = ("resources/read", {"uri": entry.name.format(**known)})
            else:
                continue
            await other.call("canary__one")  # so that Bob has a run of his own
            for asker in (client, other):
                shown = orjson.dumps(await asker.request(*request)).decode()
                more = any(sign in tail_of(shown, request) for sign in ("answered", '"how":"left"', known["run"]))
                seen[entry.kind, entry.name, asker is client] = MARK in shown or more
        assert {key for key, found in seen.items() if found and not key[2]} == set()
        assert {key[1] for key, found in seen.items() if found} == {key[1] for key in seen}, "the owner sees all of it"


def tail_of(shown: str, request: tuple[str, dict[str, Any]]) -> str:
    """What an answer says beyond repeating what was asked."""
    for value in (*request[1].values(), *request[1].get("arguments", {}).values()):
        if isinstance(value, str):
            shown = shown.replace(value, "")
    return shown


async def test_a_subscription_to_anothers_run_hears_nothing_of_it(here: LocalGateway) -> None:
    """When somebody is active is theirs too."""
    async with here.client(version="2025-11-25") as client, here.client(version="2025-11-25", principal=BOB) as other:
        uri = f"run://{client.run}"
        assert "result" in await client.request("resources/subscribe", {"uri": uri})
        await other.request("resources/subscribe", {"uri": uri})
        await client.call("canary__one")
        await asyncio.wait_for(client.heard.wait(), 30)
        assert client.notifications[-1]["params"] == {"uri": uri}
        assert other.notifications == []
