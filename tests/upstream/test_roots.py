"""A server that takes its directories from its client gets those of the caller, and of nobody else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from omni_mcp.engines.sandbox.launcher import base_interpreter
from omni_mcp.testing import ANN, BOB
from tests.upstream.town import a_town
from tests.upstream.world import ROOT, python_server, world

RAW = ROOT / "tests/upstream/servers/raw.py"
CAN: dict[str, Any] = {"roots": {"listChanged": True}}
TAKES = python_server("raw", '{"asks_roots": true}')
OWN = python_server("raw", '{"asks_roots": true}', stateful=True)


def roots(name: str) -> dict[str, Any]:
    return {"roots": [{"uri": f"file:///{name}"}]}


def has(name: str) -> Any:
    return lambda method, params: roots(name)


async def directories(client: Any) -> Any:
    """Call the tool that says what the server was told; a modern client answers what it is asked first."""
    result = await client.call("up__directories")
    if result.get("resultType") == "input_required":
        answers = dict.fromkeys(result["inputRequests"], client.says)
        result = await client.call("up__directories", inputResponses=answers, requestState=result["requestState"])
    return json.loads(result["content"][0]["text"])


@pytest.mark.parametrize("server", [TAKES, OWN])
@pytest.mark.parametrize("version", ["2024-11-05", "2025-11-25", "2026-07-28"])
async def test_a_server_that_asks_before_any_call_has_the_directories_of_its_caller(server: Any, version: str) -> None:
    async with world({"up": server}) as here:
        async with here.client(version=version, capabilities=CAN, answer=has("ann")) as client:
            client.says = roots("ann")
            assert await directories(client) == roots("ann")


async def test_two_clients_of_one_principal_each_have_their_own_directories() -> None:
    async with world({"up": TAKES}) as here:
        async with (
            here.client(version="2025-11-25", capabilities=CAN, answer=has("one")) as one,
            here.client(version="2025-11-25", capabilities=CAN, answer=has("two")) as two,
            here.client(capabilities=CAN) as modern,
            here.client(version="2025-11-25") as none,
        ):
            modern.says = roots("three")
            for _ in range(2):
                assert await directories(one) == roots("one")
                assert await directories(two) == roots("two")
                assert await directories(modern) == roots("three")
                assert await directories(none) == {"roots": []}
        assert len(here.children.started) == 4


async def test_changed_directories_hold_from_the_next_call_on() -> None:
    now = ["before"]
    async with world({"up": TAKES}) as here:
        async with here.client(version="2025-11-25", capabilities=CAN, answer=lambda *_: roots(now[0])) as client:
            before = await directories(client)
            now[0] = "after"
            await client.notify("notifications/roots/list_changed")
            after = await directories(client)

    assert (before, after) == (roots("before"), roots("after"))


async def test_callers_with_the_same_directories_share_a_server_unless_it_is_stateful() -> None:
    for server, processes in ((TAKES, 2), (OWN, 3)):
        async with world({"up": server}) as here:
            async with (
                here.client(version="2025-11-25", principal=ANN, capabilities=CAN, answer=has("same")) as ann,
                here.client(version="2025-11-25", principal=BOB, capabilities=CAN, answer=has("same")) as bob,
            ):
                assert await directories(ann) == await directories(bob) == roots("same")
            assert len(here.children.started) == processes


async def test_a_server_that_asks_during_a_call_only_runs_once() -> None:
    async with world({"up": python_server("raw", "{}")}) as here:
        async with here.client(version="2025-11-25", capabilities=CAN, answer=has("ann")) as client:
            told = await client.call("up__roots")
        started = len(here.children.started)

    assert json.loads(told["content"][0]["text"]) == roots("ann") and started == 1


@pytest.mark.usefixtures("cells")
async def test_a_gateway_that_starts_anew_knows_that_a_server_asks(tmp_path: Path) -> None:
    python, script = base_interpreter().binary, RAW.read_text()
    options = '{"asks_roots": true}'
    servers = f"[servers.up]\ncommand = '{python}'\nargs = ['-I', '-S', '-c', '''{script}''', '{options}']\n"
    for _ in range(2):
        async with a_town(tmp_path, servers) as town:
            if "up__directories" not in town.names():
                await town.accepted("up")
            async with town.here.client(version="2025-11-25", capabilities=CAN, answer=has("ann")) as client:
                assert await directories(client) == roots("ann")
