"""Search finds what its asker could be allowed, with all that is needed to call it; what is hidden leaves no trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni_mcp.config import Settings
from omni_mcp.contracts.json import JsonObject, canonical
from omni_mcp.contracts.manifest import Labels
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.catalog.search import BEGINNINGS, ToolIndex, words_of
from omni_mcp.testing import ALLOW_ALL, BOB, Canary, MemoryClient, error_of, local_gateway
from tests.surface.shelf import SEARCH, fill, schema_of, settings


async def search(client: MemoryClient, query: str, **more: Any) -> JsonObject:
    result = await client.call(SEARCH, {"query": query, **more})
    assert not result["isError"], result
    found: JsonObject = result["structuredContent"]
    return found


async def names(client: MemoryClient, query: str, **more: Any) -> list[str]:
    return [tool["name"] for tool in (await search(client, query, **more))["tools"]]


async def test_a_tool_is_found_by_its_name_title_description_and_parameters(canary: Canary) -> None:
    fill(canary)
    canary.tool("zap", schema=schema_of("voltageLevel"), definition={
        "title": "Electric tickle", "description": "Frobnicates the HTTPServer of 3 widgets."})  # fmt: skip
    async with (
        local_gateway(ALLOW_ALL, canary=canary, settings=settings(mode="search"), cells=False) as here,
        here.client() as client,
    ):
        for query in ("zap", "canary__zap", "ZAP", "electric", "tickle", "frobnicate", "widget", "voltage", "level",
                      "http server", "volt", "please frobnicate my widgets"):  # fmt: skip
            assert (await names(client, query))[0] == "canary__zap", query
        assert (await names(client, "create issue"))[0] == "canary__create_issue"
        assert (await names(client, "creating issues", limit=20))[0:1] != ["canary__zap"]
        assert "canary__zap" not in await names(client, "merge branch", limit=20)


async def test_what_is_found_is_the_definition_as_it_is_listed_and_its_name_calls_it(canary: Canary) -> None:
    fill(canary, count=30)
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False) as here, here.client() as client:
        listed = {tool["name"]: tool for tool in await client.listed("tools")}
        found = await search(client, "branch", limit=20)
        assert len(found["tools"]) == 10 and found["more"] is False
        for tool in found["tools"]:
            assert {"name", "title", "description", "inputSchema"} <= tool.keys()
            assert tool.items() <= listed[tool["name"]].items()
        first = found["tools"][0]
        result = await client.call("tools__call_tool", {"name": first["name"], "arguments": {"branch_id": "1"}})
        assert not result["isError"]
        assert (await search(client, "branch", limit=3))["more"] is True
    assert canary.touched == [f"tool {first['name']}"]


async def test_what_its_asker_may_not_call_might_as_well_not_be_there(canary: Canary, tmp_path: Path) -> None:
    """Ranking numbers are taken over what the asker sees, so hidden tools cannot be felt in the order either."""
    fill(canary, count=100)
    rules = """
        @id("ann") permit (principal == Omni::User::"ann", action, resource);
        @id("bob") permit (principal == Omni::User::"bob", action == Omni::Action::"call_tool", resource)
        when { resource.read_only };
    """
    for number in range(50):
        canary.tool(f"create_issue_{number}", state="quarantined")
        canary.tool(f"drop_issue_{number}", labels=Labels(read_only=False))
    alone = Canary(tmp_path / "alone")
    fill(alone, count=100)
    queries = ("issue", "create issue", "drop", "archive team", "file", "id", "zyzzyva")
    answers: list[list[JsonObject]] = []
    for world in (canary, alone):
        async with local_gateway(rules, canary=world, cells=False) as here, here.client(principal=BOB) as client:
            answers.append([await search(client, query, limit=20) for query in queries])
            if world is canary:
                async with here.client() as ann:
                    assert any("drop" in name for name in await names(ann, "drop issue"))
                    assert not any("create_issue_" in name for name in await names(ann, "create issue", limit=20))
    assert answers[0] == answers[1]
    assert answers[0][-1]["servers"]["canary"] == 100


async def test_a_profile_is_searched_and_not_its_neighbours(canary: Canary) -> None:
    fill(canary, count=10)
    wanted = Settings.model_validate({"profiles": {"mine": {"servers": ["canary"]}, "other": {"servers": ["runs"]}}})
    async with local_gateway(ALLOW_ALL, canary=canary, settings=wanted, cells=False) as here:
        async with here.client(profile="mine") as mine, here.client(profile="other") as other:
            assert await names(mine, "issue") and not await names(other, "issue")
            assert set((await search(other, "issue"))["servers"]) == {"runs"}


async def test_each_search_is_a_call_on_record_that_needs_a_rule(canary: Canary) -> None:
    fill(canary, count=10)
    rules = '@id("canary") permit (principal, action, resource in Omni::Server::"canary");'
    async with local_gateway(rules, canary=canary, cells=False) as here, here.client() as client:
        refused = error_of(await client.call(SEARCH, {"query": "issue"}))
        assert refused["code"] == "policy_denied"
        here.write_policy(rules + f'@id("s") permit (principal, action, resource == Omni::Tool::"{SEARCH}");')
        await here.gateway.reload()
        assert await names(client, "issue")
        last = [event for event in await here.events() if event.kind == "tool_call"][-1]
        assert (last.payload or {})["arguments"] == {"query": "issue"}
        assert await here.words(last.call or "") == ["tool_call", "policy_decided:allow", "tool_result"]
        result = [event.payload or {} for event in await here.events(call=last.call) if event.kind == "tool_result"]
        assert result[0]["where"] == "in_process"


async def test_a_rule_that_changes_changes_what_is_found_at_once(canary: Canary) -> None:
    fill(canary, count=10)
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False) as here, here.client() as client:
        assert await names(client, "merge") == ["canary__merge_issue"]
        forbidden = '@id("no") forbid (principal, action, resource == Omni::Tool::"canary__merge_issue");'
        here.write_policy(ALLOW_ALL + forbidden)
        await here.gateway.reload()
        assert await names(client, "merge") == []


async def test_many_large_definitions_do_not_make_a_large_answer(canary: Canary) -> None:
    for number in range(20):
        canary.tool(f"bulky_{number}", definition={"description": "bulky " * 5000})
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False) as here, here.client() as client:
        found = await search(client, "bulky", limit=20)
        assert len(found["tools"]) == 20
        assert len(canonical(found)) < 200 * 1024
        assert "description" in found["tools"][0]
        assert found["tools"][-1].keys() == {"name", "left_out"}


@pytest.mark.parametrize("query", ["*", "()", "-", " ", "\u0000", "ß" * 400, "'; zyzzyva --", "__", "🚀"])
async def test_any_text_is_a_valid_query(query: str, canary: Canary) -> None:
    fill(canary, count=10)
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False) as here, here.client() as client:
        assert await names(client, query) == []


@pytest.mark.parametrize(
    "arguments", [{}, {"query": ""}, {"query": "x" * 501}, {"query": 1}, {"query": "x", "limit": 21}, {"q": "x"}]
)
async def test_wrong_arguments_are_refused_with_their_places(arguments: JsonObject, canary: Canary) -> None:
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False) as here, here.client() as client:
        assert error_of(await client.call(SEARCH, arguments))["code"] == "invalid_arguments"


WORDS = st.sampled_from(["file", "files", "read", "reader", "issue", "create", "créer", "検索する", "x1"])
TOOLS = st.lists(st.tuples(st.lists(WORDS, min_size=1, max_size=4), st.booleans()), max_size=12)


def entry(number: int, words: list[str]) -> tuple[str, Entry]:
    definition = {"name": f"t{number}", "description": " ".join(words)}
    return f"s__t{number:02}", Entry(kind="tool", server="s", name=f"t{number}", definition=definition)


@given(TOOLS, st.lists(WORDS, min_size=1, max_size=3))
def test_an_index_with_hidden_tools_answers_like_one_without_them(
    tools: list[tuple[list[str], bool]], query: list[str]
) -> None:
    named = [entry(number, words) for number, (words, _) in enumerate(tools)]
    visible = [shown for _, shown in tools]
    kept = [pair for pair, shown in zip(named, visible, strict=True) if shown]
    whole, bare = ToolIndex(named), ToolIndex(kept)
    found = [whole.named[place][0] for place in whole.find(" ".join(query), visible, 12)]
    assert found == [bare.named[place][0] for place in bare.find(" ".join(query), [True] * len(kept), 12)]


def test_a_beginning_that_many_words_share_is_tried_with_the_first_of_them_that_one_may_see() -> None:
    hidden = [entry(number, [f"abc{chr(97 + number)}z"]) for number in range(26)]
    shown = [entry(30 + number, [f"abc{chr(97 + number % 26)}{chr(97 + number // 26)}"]) for number in range(80)]
    found = ToolIndex(hidden + shown).find("abc", [False] * 26 + [True] * 80, 100)
    assert len(found) == BEGINNINGS
    assert [place - 26 for place in found] == ToolIndex(shown).find("abc", [True] * 80, 100)


def test_the_length_of_hidden_tools_moves_nothing() -> None:
    """A long tool that says a word twice comes before a short one that says it once where tools are long on average."""
    short, long = entry(1, ["file"]), entry(2, ["file", "file", *(f"filler{number}" for number in range(70))])
    huge = entry(3, [f"other{number}" for number in range(400)])
    index = ToolIndex([short, long, huge])
    assert index.find("file", [True, True, True], 9) == [1, 0]
    assert index.find("file", [True, True, False], 9) == [0, 1]
    assert ToolIndex([short, long]).find("file", [True, True], 9) == [0, 1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("getHTTPResponse", ["get", "http", "response"]),
        ("list_all-Files2", ["list", "all", "file", "2"]),
        ("queries class es", ["query", "class", "es"]),
        ("検索する", ["検索", "索す", "する"]),
        ("Привет мир", ["привет", "мир"]),
    ],
)
def test_names_in_any_style_are_words(text: str, expected: list[str]) -> None:
    assert list(words_of(text)) == expected


async def test_no_tool_of_a_server_can_stand_where_search_stands(canary: Canary) -> None:
    fill(canary, count=10)
    canary.tool(SEARCH)
    canary.tool("tools__call_tool")
    mine = {"mine": {"servers": ["canary"], "names": "identity"}}
    async with local_gateway(
        ALLOW_ALL, canary=canary, settings=Settings.model_validate({"profiles": mine}), cells=False
    ) as here:
        async with here.client(profile="mine") as client:
            assert len(await client.listed("tools")) == 10
            assert (await names(client, "create issue"))[0] == "create_issue"
            inner = {"name": "create_issue", "arguments": {"issue_id": "1"}}
            assert not (await client.call("tools__call_tool", inner))["isError"]
    assert canary.touched == ["tool create_issue"]
