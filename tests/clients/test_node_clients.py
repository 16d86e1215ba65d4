"""Clients from another language: the TypeScript SDKs and the inspector, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.clients.running import ALLOW_RUNS, OMNI, Running, new_place, serving
from tests.node.presence import needed_node
from tests.node.setup import Node

pytestmark = pytest.mark.node

LIMIT_S = 60
ALLOW_HASH = """
@id("test-hash")
permit (principal, action == Omni::Action::"call_tool", resource == Omni::Tool::"tools__text_hash");
"""


@pytest.fixture(scope="module")
def node() -> Node:
    return needed_node()


@pytest.fixture(scope="module")
def gateway(node: Node) -> Iterator[Running]:
    with new_place() as place:
        place.write_policy(ALLOW_RUNS + ALLOW_HASH)
        with serving(place) as running:
            yield running


def run_script(node: Node, script: str, task: dict[str, Any]) -> dict[str, Any]:
    """Run one of our client scripts. Linked into the packages' directory, so that its imports are found there."""
    command = [str(node.binary), "--preserve-symlinks", "--preserve-symlinks-main", str(node.root / "scripts" / script)]
    end = subprocess.run(
        command,
        input=json.dumps(task),
        env=node.environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert end.returncode == 0, end.stderr
    found: dict[str, Any] = json.loads(end.stdout)
    return found


def task_for(gateway: Running, road: str, mode: str = "") -> dict[str, Any]:
    return {
        "transport": road,
        "command": OMNI,
        "args": ["stdio"],
        "env": gateway.place.environment,
        "url": gateway.url("/sse" if road == "sse" else "/mcp"),
        "headers": gateway.headers,
        "mode": mode,
        "allowed": {"name": "runs__list", "arguments": {}},
        "refused": {"name": "tools__shell_run", "arguments": {"command": "true"}},
    }


def check(found: dict[str, Any]) -> None:
    assert "runs__list" in found["tools"] and "tools__shell_run" not in found["tools"]
    assert not found["allowed"].get("isError")
    assert found["refused"]["isError"] and "not available" in found["refused"]["content"][0]["text"]
    assert json.loads(found["read"]["contents"][0]["text"])


@pytest.mark.parametrize("road", ["stdio", "http", "sse"])
def test_the_v1_typescript_sdk_lists_calls_reads_and_is_refused(node: Node, gateway: Running, road: str) -> None:
    check(run_script(node, "talk-v1.mjs", task_for(gateway, road)))


@pytest.mark.parametrize("mode", ["legacy", "auto", "2026-07-28"])
@pytest.mark.parametrize("road", ["stdio", "http"])
def test_the_v2_typescript_client_does_so_in_both_eras(node: Node, gateway: Running, road: str, mode: str) -> None:
    found = run_script(node, "talk-v2.mjs", task_for(gateway, road, mode))
    check(found)
    assert found["version"] == ("2025-11-25" if mode == "legacy" else "2026-07-28")


def test_the_v2_typescript_client_speaks_http_with_sse(node: Node, gateway: Running) -> None:
    check(run_script(node, "talk-v2.mjs", task_for(gateway, "sse", "legacy")))


def inspect(node: Node, gateway: Running, *arguments: str) -> dict[str, Any]:
    """Run the inspector's command line, which keeps its catalogue in the home directory: a temporary one here."""
    environment = {**gateway.place.environment, "HOME": str(gateway.place.root), "PATH": node.environment()["PATH"]}
    command = [str(node.binary), str(node.script("@modelcontextprotocol/inspector")), "--cli", *arguments]
    end = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert end.returncode == 0, end.stderr or end.stdout
    found: dict[str, Any] = json.loads(end.stdout)
    return found


def over_http(gateway: Running, path: str) -> list[str]:
    [(name, value)] = gateway.headers.items()
    return [gateway.url(path), "--transport", "http", "--header", f"{name}: {value}"]


def over_stdio(gateway: Running) -> list[str]:
    given = gateway.place.environment
    passed = [f"{name}={given[name]}" for name in ("OMNI_HOME", "XDG_RUNTIME_DIR")]
    return [OMNI, "stdio", *(part for pair in passed for part in ("-e", pair))]


def names(found: dict[str, Any]) -> set[str]:
    return {tool["name"] for tool in found["tools"]}


RUNS = {"list", "read", "search", "explain", "why_refused", "runtime_query", "why", "influence"}


@pytest.mark.parametrize("path", ["/mcp", "/mcp/runs", "/mcp/tools"])
def test_the_inspector_lists_each_server_over_http(node: Node, gateway: Running, path: str) -> None:
    found = names(inspect(node, gateway, *over_http(gateway, path), "--method", "tools/list"))
    assert (
        found
        == {
            "/mcp": {"tools__text_hash"} | {f"runs__{name}" for name in RUNS},
            "/mcp/runs": RUNS,
            "/mcp/tools": {"text_hash"},
        }[path]
    )


def test_the_inspector_calls_a_tool_over_http(node: Node, gateway: Running) -> None:
    target = over_http(gateway, "/mcp/runs")
    found = inspect(node, gateway, *target, "--method", "tools/call", "--tool-name", "list", "--tool-arg", "limit=3")
    assert found["content"] and not found.get("isError")


@pytest.mark.sandbox
def test_the_inspector_calls_a_sandboxed_tool_over_http(node: Node, gateway: Running) -> None:
    target = over_http(gateway, "/mcp/tools")
    found = inspect(
        node, gateway, *target, "--method", "tools/call", "--tool-name", "text_hash", "--tool-arg", "text=abc"
    )
    assert "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" in json.dumps(found)


def test_the_inspector_lists_and_calls_over_stdio(node: Node, gateway: Running) -> None:
    target = over_stdio(gateway)
    assert "runs__list" in names(inspect(node, gateway, *target, "--method", "tools/list"))
    found = inspect(node, gateway, *target, "--method", "tools/call", "--tool-name", "runs__list")
    assert found["content"] and not found.get("isError")
