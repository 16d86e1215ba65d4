"""`omni-mcp add` goes on: it looks at the server, has what it offers accepted, and lets calls through as it is told."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

from omni_mcp.engines.catalog.lockfile import LockFile
from omni_mcp.paths import Home
from omni_mcp.testing import home_in, write_private
from tests.upstream.servers.web import web_server
from tests.upstream.town import Shop

OMNI = [sys.executable, "-m", "omni_mcp.cli.main"]
COMMAND_S = 120.0  # a command takes two seconds of a processor, and on a loaded machine it gets little of one
TOOLS = [{"name": name, "description": name, "inputSchema": {"type": "object"}} for name in ("look", "write")]


async def omni(home: Home, *words: str) -> tuple[int, str, str]:
    """Run a command without a terminal; returns its exit code and what it said."""
    environment = {**os.environ, "OMNI_HOME": str(home.config), "NO_COLOR": "1"}
    process = await asyncio.create_subprocess_exec(
        *OMNI, *words, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), COMMAND_S)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def on_a_terminal(home: Home, answers: str, *words: str) -> tuple[int, str]:
    """Run a command on a terminal at which *answers* are typed; returns its exit code and what the person sees."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "OMNI_HOME": str(home.config), "NO_COLOR": "1"}
    os.write(ours, answers.encode())
    try:
        process = await asyncio.create_subprocess_exec(
            *OMNI, *words, env=environment, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        out, _ = await asyncio.wait_for(process.communicate(), COMMAND_S)
    finally:
        os.close(theirs)
        os.close(ours)
    assert process.returncode is not None
    return process.returncode, out.decode()


def accepted(home: Home) -> dict[str, bool]:
    """Return what omni.lock accepts, and whether somebody vouched that it only reads."""
    return {item: found.labels.read_only for _, item, _, found in LockFile(home.lock_file).read().versions()}


def rules(home: Home) -> list[str]:
    return sorted(file.name for file in home.policies.glob("allow-*.cedar"))


async def test_every_answer_can_be_given_beforehand(tmp_path: Path) -> None:
    home = home_in(tmp_path)
    async with web_server(Shop(tools=TOOLS).script()) as server:
        code, out, said = await omni(
            home, "add", "up", "--url", server.url, "--accept", "read-only", "--let", "read-only", "--json"
        )
    facts: dict[str, Any] = json.loads(out)

    assert code == 0, said
    assert accepted(home) == {"tool/look": True, "tool/write": True}
    assert facts["accepted"] == ["tool/look", "tool/write"] and facts["let"]["known_tools"] == 2
    [rule] = rules(home)
    assert "read-only" in rule and "2 are refused" in said  # before the rule was there


async def test_a_person_at_a_terminal_is_shown_each_tool_and_what_each_answer_means(tmp_path: Path) -> None:
    home = home_in(tmp_path)
    async with web_server(Shop(tools=TOOLS).script()) as server:
        code, shown = await on_a_terminal(home, "r\ns\nr\n", "add", "up", "--url", server.url)

    assert code == 0, shown
    assert accepted(home) == {"tool/look": True}
    assert len(rules(home)) == 1
    for text in ("What your answers mean", "tool/look: new", "tool/write: new", "no sandbox of ours", "[n]one"):
        assert text in shown


async def test_without_a_terminal_nothing_is_started_or_accepted_unless_that_is_said(tmp_path: Path) -> None:
    home = home_in(tmp_path)
    shop = Shop(tools=TOOLS)
    async with web_server(shop.script()) as server:
        code, _, said = await omni(home, "add", "up", "--url", server.url)
        asking = await omni(home, "add", "other", "--url", server.url, "--accept", "ask")

    assert (code, accepted(home), rules(home), shop.lists) == (0, {}, [], 0)
    assert "next: omni-mcp servers test up" in said
    assert asking[0] == 2 and "other" not in (home.config / "servers.toml").read_text()


async def test_a_server_that_does_not_answer_stays_added_and_the_exit_code_and_the_next_step_say_so(
    tmp_path: Path,
) -> None:
    home = home_in(tmp_path)
    async with web_server(Shop(tools=TOOLS).script()) as server:
        gone = server.url
    code, _, said = await omni(home, "add", "up", "--url", gone, "--accept", "all", "--let", "all")

    assert code == 1 and "omni-mcp servers test up" in said
    assert "[servers.up]" in (home.config / "servers.toml").read_text()
    assert (accepted(home), rules(home)) == ({}, [])


async def test_whoever_breaks_off_is_told_what_is_there_now_and_how_to_go_on_or_back(tmp_path: Path) -> None:
    home = home_in(tmp_path)
    async with web_server(Shop(tools=TOOLS).script()) as server:
        code, shown = await on_a_terminal(home, "a\n\x04", "add", "up", "--url", server.url)

    assert code == 1 and accepted(home) == {"tool/look": False}, shown
    for text in ("up stays added, 1 of it accepted", "omni-mcp accept up", "omni-mcp servers remove up"):
        assert text in shown


async def test_rules_that_stand_for_a_server_of_that_name_are_named_before_anything_is_accepted(tmp_path: Path) -> None:
    home = home_in(tmp_path)
    async with web_server(Shop(tools=TOOLS).script()) as server:
        assert (await omni(home, "allow", "up", "--server"))[0] == 0
        _, _, said = await omni(home, "add", "up", "--url", server.url, "--accept", "all")
        _, _, other = await omni(home, "add", "down", "--url", server.url, "--accept", "all")

    assert f"in force already, and hold for it: {rules(home)[0]}" in said and "in force already" not in other


async def test_that_calls_are_still_asked_about_is_said_once_with_the_way_out(tmp_path: Path) -> None:
    home = home_in(tmp_path)
    many = [{"name": f"tool{number}", "inputSchema": {"type": "object"}} for number in range(17)]
    async with web_server(Shop(tools=many).script()) as server:
        assert (await omni(home, "init", "--starter", "desktop"))[0] == 0
        _, _, said = await omni(home, "add", "up", "--url", server.url, "--accept", "all", "--let", "all")
        [line] = [line for line in said.splitlines() if "still asked about" in line]
        again = await omni(home, "accept", "up", "--all", "--again", "--read-only", "--yes")

    assert "of 17 of its 17 tools" in line and "and 12 more" in line
    assert "omni-mcp accept up TOOL --read-only" in said and "omni-mcp approvals grant 'up__*'" in said
    assert again[0] == 0 and all(accepted(home).values())


async def test_a_secret_of_another_server_that_is_not_set_here_is_no_reason_to_stop(tmp_path: Path) -> None:
    home = home_in(tmp_path)
    write_private(home.settings_file, '[secrets]\nother = "env:NOT_SET_IN_THIS_SHELL"\n')
    async with web_server(Shop(tools=TOOLS).script()) as server:
        code, _, err = await omni(home, "add", "up", "--url", server.url, "--accept", "read-only", "--let", "none")

    assert code == 0, err
    assert set(accepted(home)) == {"tool/look", "tool/write"}
