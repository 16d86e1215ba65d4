"""A broken policy, manifest or setting is refused with file, line and path, and what was in force stays in force."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from omni_mcp.config import LimitSettings, Settings, load_settings
from omni_mcp.contracts.errors import ConfigError
from omni_mcp.contracts.openapi import OpenApiSettings
from omni_mcp.testing import ALLOW_ALL, WAIT_S, Canary, LocalGateway, error_of, home_in, local_gateway, write_private

BROKEN_POLICY = '@id("good") permit (principal, action, resource);\n\npermit (principal, action resource);\n'
MANIFEST = """manifest: 1
id: words
version: 1.0.0
title: Words
description: Counts.
input_schema: {type: object}
binding: {kind: sandbox_job, entry_point: "files:files_list", workspace: none}
"""
BROKEN_MANIFEST = MANIFEST.replace("version: 1.0.0", "version: one") + "colour: red\n"
DOCUMENT = """openapi: 3.1.0
info: {title: Shop, version: "1"}
paths:
  /one:
    get: {operationId: getOne, responses: {"200": {description: One.}}}
"""
BROKEN_SETTINGS = "[limits]\ncalls_per_minute = 5\ncals_per_minute = 6\n"


def a_canary(tmp_path: Path) -> Canary:
    canary = Canary(tmp_path / "touched")
    canary.tool("one")
    return canary


async def problems(here: LocalGateway, what: str) -> list[str]:
    """Wait until a file is refused; returns the problems that stand in the record, which `status` shows too."""
    while True:
        event = await here.until("config_rejected", count=1)
        payload = event.payload or {}
        if payload["what"] == what:
            break
    status = here.gateway.status()
    shown = status["catalog" if what == "manifests" else what]["problems"]
    assert shown
    assert set(payload["problems"]) <= set(map(str, shown))
    return list(payload["problems"])


async def test_a_policy_that_is_broken_at_the_start_denies_everything_and_says_where(tmp_path: Path) -> None:
    home = home_in(tmp_path)
    write_private(home.policies / "mine.cedar", BROKEN_POLICY)
    canary = a_canary(tmp_path)
    async with local_gateway(canary=canary, directory=tmp_path, cells=False) as here, here.client() as client:
        assert error_of(await client.call("canary__one"))["code"] == "policy_denied"
        assert await client.listed("tools") == []
        assert any("mine.cedar:3" in problem for problem in await problems(here, "policy"))
        assert here.gateway.status()["policy"]["denies_all"] is True
        assert canary.touched == []


@pytest.mark.parametrize("mode", [0o666, 0o602, 0o660])
async def test_a_policy_that_others_may_write_denies_everything(mode: int, tmp_path: Path) -> None:
    home = home_in(tmp_path)
    file = write_private(home.policies / "mine.cedar", ALLOW_ALL)
    file.chmod(mode)
    canary = a_canary(tmp_path)
    async with local_gateway(canary=canary, directory=tmp_path, cells=False) as here, here.client() as client:
        assert error_of(await client.call("canary__one"))["code"] == "policy_denied"
        assert any("mine.cedar" in problem for problem in await problems(here, "policy"))
        assert canary.touched == []


async def test_a_manifest_that_is_broken_at_the_start_leaves_the_shipped_tools_and_says_where(tmp_path: Path) -> None:
    home = home_in(tmp_path)
    write_private(home.manifests / "words.yaml", BROKEN_MANIFEST)
    async with local_gateway(ALLOW_ALL, directory=tmp_path, cells=False) as here, here.client() as client:
        found = await problems(here, "manifests")
        assert any("words.yaml:3" in problem and "$.version" in problem for problem in found)
        assert any("words.yaml:8" in problem and "$.colour" in problem for problem in found)
        names = {tool["name"] for tool in await client.listed("tools")}
        assert "tools__text_hash" in names
        assert "tools__words" not in names
        write_private(home.manifests / "words.yaml", MANIFEST)
        await here.until("catalog_changed")
        assert "tools__words" in {tool["name"] for tool in await client.listed("tools")}
        assert here.gateway.status()["catalog"]["problems"] == []


BAD_SETTINGS: list[tuple[str, int, str]] = [
    (BROKEN_SETTINGS, 3, "$.limits.cals_per_minute"),
    ("[limits]\ncalls_per_minute = 0\n", 2, "$.limits.calls_per_minute"),
    ("[server]\nport = 'one'\n", 2, "$.server.port"),
    ("colour = 1\n", 1, "$.colour"),
    ("[limits\n", 1, ""),
    ('[secrets]\ntoken = 5\n', 2, "$.secrets.token"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "path"), BAD_SETTINGS)
def test_a_broken_setting_is_refused_with_its_place(text: str, line: int, path: str, tmp_path: Path) -> None:
    file = tmp_path / "omni.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load_settings(file)
    [problem] = refused.value.problems
    assert (problem.file, problem.line, problem.path) == (str(file), line, path)


def test_settings_hold_references_to_secrets_and_never_values(tmp_path: Path) -> None:
    async def start(reference: str) -> None:
        async with local_gateway(settings=Settings(secrets={"token": reference}), directory=tmp_path, cells=False):
            raise AssertionError("it opened")

    for reference in ("hunter2-the-value", "env:OMNI_TEST_NOT_SET", f"file:{tmp_path}/missing"):
        with pytest.raises(ConfigError) as refused:
            asyncio.run(start(reference))
        assert refused.value.problems[0].path == "$.secrets.token"


async def test_a_policy_that_breaks_while_it_runs_changes_nothing_until_it_is_mended(tmp_path: Path) -> None:
    canary = a_canary(tmp_path)
    async with (
        local_gateway(ALLOW_ALL, canary=canary, cells=False) as here,
        here.client(version="2025-11-25") as client,
    ):
        version = here.gateway.status()["policy"]["version"]
        here.write_policy(BROKEN_POLICY)
        assert any("test.cedar:3" in problem for problem in await problems(here, "policy"))
        assert here.gateway.status()["policy"]["version"] == version
        assert not (await client.call("canary__one"))["isError"], "the last good one stays in force"
        client.heard.clear()
        here.write_policy('@id("none") permit (principal, action, resource == Omni::Tool::"canary__two");')
        await here.until("policy_changed")
        assert here.gateway.status()["policy"]["problems"] == []
        await asyncio.wait_for(client.heard.wait(), WAIT_S)
        assert "notifications/tools/list_changed" in [note["method"] for note in client.notifications]
        assert error_of(await client.call("canary__one"))["code"] == "policy_denied"


async def test_a_manifest_that_breaks_while_it_runs_leaves_the_catalog_as_it_was(tmp_path: Path) -> None:
    home = home_in(tmp_path)
    write_private(home.manifests / "words.yaml", MANIFEST)
    async with local_gateway(ALLOW_ALL, directory=tmp_path, cells=False) as here, here.client() as client:
        before = here.gateway.catalog.version
        write_private(home.manifests / "words.yaml", BROKEN_MANIFEST)
        assert any("words.yaml:3" in problem for problem in await problems(here, "manifests"))
        assert here.gateway.catalog.version == before
        assert "tools__words" in {tool["name"] for tool in await client.listed("tools")}
        (home.manifests / "words.yaml").unlink()
        changed = await here.until("catalog_changed")
        assert (changed.payload or {})["removed"] == ["tool tools/words"]
        assert here.gateway.status()["catalog"]["problems"] == []


async def test_settings_that_break_while_it_runs_are_reported_and_stay_as_they_were(tmp_path: Path) -> None:
    home = home_in(tmp_path)
    settings = Settings(limits=LimitSettings(calls_per_minute=2))
    async with local_gateway(
        ALLOW_ALL, canary=a_canary(tmp_path), settings=settings, directory=tmp_path, cells=False
    ) as here:
        write_private(home.settings_file, BROKEN_SETTINGS)
        [problem] = await problems(here, "settings")
        assert "omni.toml:3" in problem
        async with here.client() as client:
            codes = [error_of(await client.call("canary__one")).get("code") for _ in range(3)]
        assert codes == [None, None, "rate_limited"]


async def test_a_reload_that_is_asked_for_names_every_problem_at_once(tmp_path: Path) -> None:
    async with local_gateway(ALLOW_ALL, directory=tmp_path, cells=False) as here:
        here.write_policy(BROKEN_POLICY)
        write_private(here.home.manifests / "words.yaml", BROKEN_MANIFEST)
        with pytest.raises(ConfigError) as refused:
            await here.gateway.reload()
        files = {os.path.basename(problem.file) for problem in refused.value.problems}
        assert files == {"test.cedar", "words.yaml"}


BROKEN = {"policy": BROKEN_POLICY, "manifest": BROKEN_MANIFEST, "servers": "[servers", "lock": '{"omni_lock": 2}',
          "settings": BROKEN_SETTINGS, "document": "openapi: 3.1.0\ninfo: [\n"}  # fmt: skip
GOOD = {"policy": '@id("two") permit (principal, action, resource);', "manifest": MANIFEST,
        "servers": '[servers.up]\nurl = "http://127.0.0.1:9/mcp"\n',
        "lock": '{"omni_lock": 1, "paused": {"up": {"by": "ann", "at": "2026-11-21T12:00:00Z"}}}',
        "settings": "[limits]\ncalls_per_minute = 5\n",
        "document": DOCUMENT.replace("getOne", "getTwo")}  # fmt: skip


@pytest.mark.parametrize("broken", [*GOOD, ""])
async def test_a_part_that_is_broken_keeps_its_last_good_one_and_holds_no_other_back(
    broken: str, tmp_path: Path
) -> None:
    home = home_in(tmp_path)
    files = {
        "policy": home.policies / "test.cedar", "manifest": home.manifests / "words.yaml",
        "servers": home.config / "servers.toml", "lock": home.lock_file, "settings": home.settings_file,
        "document": home.config / "shop.yaml",
    }  # fmt: skip
    write_private(files["document"], DOCUMENT)
    shop = OpenApiSettings(document="shop.yaml", base_url="https://shop.example.org")
    async with local_gateway(
        ALLOW_ALL, directory=tmp_path, settings=Settings(openapi={"shop": shop}), cells=False
    ) as here:
        before = here.gateway.policy_version
        for part, text in GOOD.items():
            write_private(files[part], BROKEN[part] if part == broken else text)
        refused: set[str] = set()
        try:
            await here.gateway.reload()
        except ConfigError as error:
            refused = {os.path.basename(problem.file) for problem in error.problems}
        status, catalog = here.gateway.status(), here.gateway.catalog
        in_force = {
            "policy": here.gateway.policy_version != before,
            "manifest": catalog.get("tool", "tools", "words") is not None,
            "servers": "up" in status["servers"],
            "lock": "up" in status["paused"],
            "settings": not status["settings"]["problems"],
            "document": catalog.get("tool", "shop", "getTwo") is not None,
        }
        kept = catalog.get("tool", "shop", "getOne") is not None

    assert in_force == {part: part != broken for part in GOOD}
    assert refused == ({files[broken].name} if broken else set())
    assert kept is (broken == "document")


@pytest.mark.parametrize(
    "value", ["*", "https://*", "*.example.org", "app.example.org", "https://app.example.org/path"]
)
def test_an_origin_is_one_exact_origin(value: str, tmp_path: Path) -> None:
    file = write_private(tmp_path / "omni.toml", f"[server]\norigins = [{value!r}]\n")
    with pytest.raises(ConfigError) as refused:
        load_settings(file)
    assert "omni.toml:2: $.server.origins.0" in str(refused.value)


async def test_settings_that_change_while_it_runs_are_named_as_waiting_for_the_next_start(tmp_path: Path) -> None:
    home = home_in(tmp_path)
    write_private(home.settings_file, "[limits]\ncalls_per_minute = 9\n")
    async with local_gateway(ALLOW_ALL, directory=tmp_path, cells=False) as here:
        async with asyncio.timeout(30):
            here.gateway.upkeep.check_settings()
            write_private(home.settings_file, "[limits]\ncalls_per_minute = 8\n")
            while here.gateway.status()["settings"]["at_next_start"] != ["limits.calls_per_minute"]:
                await asyncio.sleep(0.05)
