"""`tools cost`, `search` and `try` are clients of the running gateway: real processes, the person's own rights."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import pytest_asyncio

from tests.daemon.gateway_world import OMNI, WAIT_S, World, a_world, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")

RULES = """
@id("most") permit (principal is Omni::User, action, resource);
@id("agents") permit (principal is Omni::Agent, action, resource in Omni::Server::"runs");
@id("none") forbid (principal, action, resource == Omni::Tool::"tools__kv_get");
"""
SETTINGS = """
[server]
port = 0
[approvals]
wait_s = 0
[surface]
token_budget = 10
[profiles.logs]
servers = ["runs"]
names = "identity"
surface = "full"
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[World]:
    """A gateway that serves search to everybody, and the whole list to Claude Code and in one profile."""
    async with a_world() as made:
        made.write_settings(SETTINGS)
        made.allow_tools()
        (made.home.policies / "test.cedar").write_text(RULES)
        async with serving(made):
            yield made


async def omni(world: World, *words: str, stdin: str | None = None) -> CompletedProcess[bytes]:
    process = await asyncio.create_subprocess_exec(
        *OMNI, *words, env=world.environment, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate((stdin or "").encode()), WAIT_S)
    assert process.returncode is not None
    return CompletedProcess(words, process.returncode, out, err)


async def test_the_bill_names_every_tool_that_one_may_see_and_says_what_clients_get(world: World) -> None:
    done = await omni(world, "tools", "cost", "--json")
    assert done.returncode == 0, done.stderr
    bill = json.loads(done.stdout)
    tools = {name: tokens for server in bill["servers"] for name, tokens in server["tools"].items()}
    assert {server["server"] for server in bill["servers"]} == {"tools", "runs", "memory", "messages"}
    assert sum(tools.values()) == bill["tokens"] == sum(server["tokens"] for server in bill["servers"])
    assert len(tools) == bill["tools"] > 20 and min(tools.values()) > 20
    assert "tools__kv_get" not in tools
    assert bill["served"]["surface"] == "search" and 0 < bill["served"]["tokens"] < bill["tokens"] / 4

    text = (await omni(world, "tools", "cost")).stdout.decode()
    assert f"{bill['tokens']:,}  in all" in text and "search and call in its place" in text
    assert all(name in text for name in tools)


async def test_the_bill_is_that_of_a_profile_an_agent_and_a_client(world: World) -> None:
    one = json.loads((await omni(world, "tools", "cost", "--profile", "logs", "--json")).stdout)
    assert [server["server"] for server in one["servers"]] == ["runs"] and "list" in one["servers"][0]["tools"]
    assert one["served"] == {"surface": "full", "tokens": one["tokens"]}
    agents = json.loads((await omni(world, "tools", "cost", "--agent", "coder", "--json")).stdout)
    assert [server["server"] for server in agents["servers"]] == ["runs"]
    claude = json.loads((await omni(world, "tools", "cost", "--client", "claude-code", "--json")).stdout)
    assert claude["served"] == {"surface": "full", "tokens": claude["tokens"]}


async def test_search_prints_what_is_found_with_its_parameters(world: World) -> None:
    done = await omni(world, "tools", "search", "hash", "text")
    assert done.returncode == 0, done.stderr
    first = done.stdout.decode().splitlines()[0]
    assert first.startswith("tools__text_hash  ") and "text" in first
    found = json.loads((await omni(world, "tools", "search", "hash", "--json", "--limit", "1")).stdout)
    assert found["tools"][0]["inputSchema"]["properties"]
    nothing = await omni(world, "tools", "search", "zyzzyva")
    assert nothing.returncode == 1 and b"nothing fits" in nothing.stderr
    refused = await omni(world, "tools", "search", "hash", "--agent", "coder")
    assert refused.returncode == 1 and b"policy_denied" in refused.stderr


async def test_try_calls_as_the_person_and_the_call_is_on_record(world: World, tmp_path: Path) -> None:
    file = tmp_path / "arguments.json"
    file.write_text('{"limit": 1}')
    ways = (["--args", '{"limit": 1}'], ["--file", str(file)], ["--file", "-"])
    for way in ways:
        done = await omni(world, "tools", "try", "runs__list", *way, stdin='{"limit": 1}')
        assert done.returncode == 0, done.stderr
        assert len(json.loads(done.stdout)["runs"]) == 1
    whole = json.loads((await omni(world, "tools", "try", "runs__list", "--json")).stdout)
    assert whole["resultType"] == "complete" and whole["structuredContent"]["runs"]


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["tools__kv_get", "--args", '{"key": "x"}'], 1, "policy_denied"),
        (["nobody__nothing"], 1, "policy_denied"),
        (["runs__list", "--args", '{"limit": "x"}'], 1, "invalid_arguments"),
        (["runs__list", "--args", "{"], 2, "no JSON"),
        (["runs__list", "--args", "[1]"], 2, "one JSON object"),
        (["runs__list", "--args", "{}", "--file", "-"], 2, "exclude each other"),
        (["tools__files_write", "--args", '{"path": "a", "text": "b"}'], 1, "approval_pending"),
        (["runs__list", "--profile", "no-such"], 1, "refused"),
        (["runs__list", "--agent", "coder", "--args", '{"limit": 0}'], 1, "invalid_arguments"),
    ],
)
async def test_what_is_refused_says_why_and_leaves_an_exit_code(
    words: list[str], code: int, told: str, world: World
) -> None:
    done = await omni(world, "tools", "try", *words)
    assert (done.returncode, told in done.stderr.decode()) == (code, True), (done.returncode, done.stderr)
    if words[0] in ("nobody__nothing", "tools__files_write"):
        assert json.loads((await omni(world, "tools", "try", *words, "--json")).stdout)["isError"]
