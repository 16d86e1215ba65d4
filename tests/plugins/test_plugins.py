"""Plugins: off until enabled, through the same catalog, lock, policy and record, and never a reason to stop."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from omni_mcp.assembly import open_gateway
from omni_mcp.cli.root import cli
from omni_mcp.config import load_settings
from omni_mcp.contracts.call import Call, ClientFacts
from omni_mcp.contracts.errors import ConfigError
from omni_mcp.paths import bundled
from omni_mcp.testing import (
    ALLOW_ALL,
    ANN,
    LocalGateway,
    PromiseBroken,
    error_of,
    executor_promises,
    home_in,
    local_gateway,
    tool_promises,
    write_private,
)
from tests.plugins.package import SHOUT, install

CODE = bundled("sandbox") / "tools"
FULL = '[surface]\nmode = "full"\n'
TOOLS = '[plugins]\ntools = ["acme"]\n'
READERS = '@id("readers") permit (principal, action, resource) when { resource.read_only };'


@asynccontextmanager
async def gateway(directory: Path, settings: str, rules: str = ALLOW_ALL) -> Any:
    """Open a gateway with *settings* as its omni.toml."""
    home = home_in(directory)
    write_private(home.policies / "test.cedar", rules)
    write_private(home.settings_file, FULL + settings)
    async with open_gateway(load_settings(home.settings_file), home) as opened:
        yield LocalGateway(opened, home)


def runs(directory: Path, *words: str) -> Any:
    done = CliRunner(env={"OMNI_HOME": str(directory / "home")}).invoke(cli, [*words, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def states(rows: list[dict[str, Any]]) -> dict[str, str]:
    return {row["name"]: row["state"] for row in rows}


async def names(here: LocalGateway) -> list[str]:
    async with here.client() as client:
        return [one["name"] for one in await client.listed("tools") if one["name"].startswith("acme__")]


@pytest.mark.usefixtures("acme")
async def test_an_installed_plugin_is_off_and_known(tmp_path: Path) -> None:
    async with gateway(tmp_path, "") as here:
        assert await names(here) == []
        assert here.gateway.catalog.get("tool", "acme", "shout") is None
    rows = runs(tmp_path, "plugins")

    assert set(states(rows).values()) == {"off"}
    assert {row["package"] for row in rows} == {"acme-tools"}
    assert "acme_engine" not in sys.modules and "acme_tools" not in sys.modules


@pytest.mark.usefixtures("acme", "cells")
async def test_an_enabled_plugin_is_quarantined_until_accepted_and_then_runs_in_a_cell_and_is_on_record(
    tmp_path: Path,
) -> None:
    async with gateway(tmp_path, TOOLS, READERS) as here, here.client() as client:
        before = [await names(here), error_of(await client.call("acme__shout", {"text": "x"}))["code"]]
        event = await here.until("definition_quarantined")
        runs(tmp_path, "accept", "acme", "--all", "--read-only", "--yes")
        await here.gateway.reload_lock()
        listed = await client.listed("tools")
        result = await client.call("acme__shout", {"text": "abc"})
        wrong = await client.call("acme__shout", {"txt": "abc"})
        outcome = await here.until("tool_result")

    assert before == [[], "policy_denied"]
    assert event.payload is not None and event.payload["server"] == "acme"
    [shown] = [one for one in listed if one["name"] == "acme__shout"]
    assert shown["_meta"]["io.omni-mcp/runs"]["entry_point"] == "shouting:shout"
    assert result["structuredContent"] == {"text": "ABC"}
    assert error_of(wrong)["code"] == "invalid_arguments"
    assert outcome.payload is not None and outcome.payload["where"] == "cell"
    assert "acme_tools" not in sys.modules


@pytest.mark.usefixtures("acme")
def test_an_enabled_plugin_can_be_accepted_before_any_gateway_has_run(tmp_path: Path) -> None:
    write_private(home_in(tmp_path).settings_file, FULL + TOOLS)
    [row] = [row for row in runs(tmp_path, "plugins") if row["tools"]]
    found = runs(tmp_path, "accept", row["name"], "--all", "--read-only", "--yes")

    assert [one["item"] for one in found["accepted"]] == ["tool/shout"]


@pytest.mark.usefixtures("acme")
async def test_the_labels_of_a_plugin_are_the_operators_and_not_its_own(tmp_path: Path) -> None:
    async with gateway(tmp_path, TOOLS, READERS) as here, here.client() as client:
        runs(tmp_path, "accept", "acme", "--all", "--yes", "--accept-risks")
        await here.gateway.reload_lock()
        refused = await client.call("acme__shout", {"text": "abc"})

    assert error_of(refused)["code"] == "policy_denied"  # its manifest says read_only, nobody vouched for it


async def test_one_more_file_beside_the_manifests_is_quarantined_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = install(tmp_path)
    monkeypatch.syspath_prepend(str(place))
    importlib.invalidate_caches()
    async with gateway(tmp_path, TOOLS) as here:
        runs(tmp_path, "accept", "acme", "--all", "--read-only", "--yes")
        await here.gateway.reload_lock()
        assert await names(here) == ["acme__shout"]
    (place / "acme_tools" / "manifests" / "words.py").write_text("# what shouting could import\n")
    async with gateway(tmp_path, TOOLS) as here:
        assert await names(here) == []


@pytest.mark.usefixtures("acme")
async def test_plugins_that_are_broken_missing_or_in_the_way_are_named_and_the_gateway_serves(tmp_path: Path) -> None:
    settings = (
        '[plugins]\ntools = ["acme", "acme-empty", "acme-inner", "nowhere", "runs"]\n'
        '[plugins.executors.acme-engine]\nbroken = "open"\n[plugins.executors.acme-closed]\n'
        "[plugins.executors.acme-gone]\n"
    )
    async with gateway(tmp_path, settings) as here:
        rows = here.gateway.status()["plugins"]
        async with here.client() as client:
            found = await client.call("tools__search_tools", {"query": "hash"})
    shown = CliRunner(env={"OMNI_HOME": str(tmp_path / "home")}).invoke(cli, ["plugins"])

    assert states(rows) == {
        "acme": "on", "acme-empty": "failed", "acme-inner": "failed", "nowhere": "missing", "runs": "missing",
        "acme-closed": "failed", "acme-engine": "failed", "acme-gone": "failed",
    }  # fmt: skip
    errors = {row["name"]: " ".join(row["errors"]) for row in rows}
    assert "no manifest" in errors["acme-empty"]
    assert "top-level" in errors["acme-inner"]
    assert "no room" in errors["acme-engine"]
    assert "inproc_safe" in errors["acme-closed"]
    assert "not_there" in errors["acme-gone"]
    assert "no installed package" in errors["nowhere"]
    assert not found.get("isError")
    assert shown.exit_code == 0 and "no manifest" in shown.output and "omni_mcp.executors" in shown.output


@pytest.mark.parametrize("said", ["colour = 1", "word = 7"])
@pytest.mark.usefixtures("acme")
async def test_settings_of_a_plugin_are_strict(said: str, tmp_path: Path) -> None:
    async with gateway(tmp_path, f"[plugins.executors.acme-engine]\n{said}\n") as here:
        [row] = [row for row in here.gateway.status()["plugins"] if row["name"] == "acme-engine"]

    assert row["state"] == "failed"
    assert "$.plugins.executors.acme-engine" in row["errors"][0]


@pytest.mark.usefixtures("acme")
async def test_an_executor_runs_what_is_allowed_and_nothing_else_and_the_resolver_says_why_it_is_the_one(
    tmp_path: Path,
) -> None:
    manifest = write_private(home_in(tmp_path).manifests / "echo.yaml", SHOUT.replace("id: shout", "id: echo"))
    write_private(manifest.with_name("shouting.py"), "def shout(arguments): return arguments\n")
    settings = '[plugins.executors.acme-engine]\nword = "mine"\n'
    async with gateway(tmp_path, settings, READERS) as here, here.client() as client:
        ran = await client.call("tools__echo", {"text": "x"})
        burst = await client.call("tools__echo", {"text": "burst"})
        denied = await client.call("tools__files_write", {"path": "x", "content": "y"})
        [why] = [one for one in here.gateway.status()["executors"] if one["key"] == "sandbox_job"]
        outcomes = sorted(word for words in (await here.outcomes()).values() for word in words)

    assert ran["content"][0]["text"] == "mine: echo"
    assert error_of(burst)["code"] == "internal"
    assert "fault of the plugin" not in str(burst)
    assert error_of(denied)["code"] == "policy_denied"
    assert (why["winner"], why["losers"]) == ("acme-engine", [{"provider": "bundled", "lost_in": "stack"}])
    assert outcomes == ["tool_error:internal", "tool_error:policy_denied", "tool_result"]


@pytest.mark.usefixtures("acme")
async def test_the_calls_of_an_executor_end_in_their_time_whatever_it_says_of_itself(tmp_path: Path) -> None:
    text = SHOUT.replace("id: shout", "id: echo").replace("golden:", "limits: {timeout_s: 0.1}\ngolden:")
    manifest = write_private(home_in(tmp_path).manifests / "echo.yaml", text)
    write_private(manifest.with_name("shouting.py"), "def shout(arguments): return arguments\n")
    async with gateway(tmp_path, "[plugins.executors.acme-engine]\n", READERS) as here, here.client() as client:
        async with asyncio.timeout(30):
            late = await client.call("tools__echo", {"text": "hang"})

    assert error_of(late)["code"] == "timeout"


@pytest.mark.usefixtures("acme", "cells")
async def test_what_the_operator_selects_runs_and_never_another_in_its_place(tmp_path: Path) -> None:
    engine = "[plugins.executors.acme-engine]\n"
    for selected in ("bundled", "nobody"):
        settings = f'[plugins.select]\nsandbox_job = "{selected}"\n' + engine
        async with gateway(tmp_path, settings) as here, here.client() as client:
            ran = await client.call("tools__text_hash", {"text": "x"})
        assert "structuredContent" in ran, ran


@pytest.mark.usefixtures("acme")
async def test_an_executor_that_fails_while_it_is_closed_keeps_nothing_from_closing(tmp_path: Path) -> None:
    async with gateway(tmp_path, '[plugins.executors.acme-engine]\nbroken = "close"\n') as here:
        log = here.gateway.log
    async with gateway(tmp_path, "") as again:
        codes = [event.code for event in await again.events()]

    assert log is not again.gateway.log
    assert "gateway_stopped" in codes


def a_call(**facts: Any) -> Call:
    return Call(
        id="c", run="r", principal=ANN, client=ClientFacts(), kind="tool", name="acme__shout",
        arguments={"text": "abc"}, profile="default", **facts,
    )  # fmt: skip


async def test_the_promises_of_an_executor_hold_for_a_good_one_and_break_for_bad_ones(acme: Path) -> None:
    engine = importlib.import_module("acme_engine")
    [tool] = tool_promises(acme / "acme_tools" / "manifests", code=CODE)
    good = a_call(tool=tool)
    await executor_promises(lambda: engine.plugin.open(engine.Settings()), good)

    class Careless:
        async def execute(self, call: Call) -> Any:
            return {"content": []}

    @asynccontextmanager
    async def careless() -> Any:
        yield Careless()

    class Trusting(engine.Runs):  # type: ignore[misc, name-defined]
        async def execute(self, call: Call) -> Any:
            return await super().execute(replace(call, tool=tool))

    @asynccontextmanager
    async def trusting() -> Any:
        yield Trusting("x")

    with pytest.raises(PromiseBroken, match="ends with an Answer"):
        await executor_promises(careless, good)
    with pytest.raises(PromiseBroken, match="without a definition"):
        await executor_promises(trusting, good)


def test_the_promises_of_tools_want_manifests_with_goldens(tmp_path: Path) -> None:
    with pytest.raises(PromiseBroken, match="there is a manifest"):
        tool_promises(tmp_path, code=CODE)
    (tmp_path / "shouting.py").write_text("def shout(arguments): return {}")
    (tmp_path / "shout.yaml").write_text(SHOUT.partition("golden:")[0])
    with pytest.raises(PromiseBroken, match="has a golden"):
        tool_promises(tmp_path, code=CODE)
    (tmp_path / "shout.yaml").write_text(SHOUT.replace("{text: abc}", "{txt: abc}"))
    with pytest.raises(ConfigError, match="does not fit the input schema"):
        tool_promises(tmp_path, code=CODE)


async def test_a_gateway_without_plugins_says_so() -> None:
    async with local_gateway(ALLOW_ALL) as here:
        assert here.gateway.status()["plugins"] == []
