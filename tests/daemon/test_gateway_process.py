"""The life of a gateway: one per user, started by whoever comes first, drained when told, gone when nobody is left."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from gateway_world import OMNI, WAIT_S, World, a_world, connect, descendants, is_alive, serving, until

from omni_mcp import __version__
from omni_mcp.datalock import read_note

QUICK = "[server]\nport = 0\nidle_stop_s = 0.5\n"


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with a_world() as made:
        yield made


async def test_ten_clients_at_once_start_one_gateway_and_leave_nothing_behind(world: World) -> None:
    world.write_settings(QUICK)
    clients = await asyncio.gather(*(connect(world) for _ in range(10)))
    status = world.status()
    assert (status["clients"], status["from_shim"]) == (10, True)
    listening = [line for line in (world.home.data / "gateway.log").read_text().splitlines() if '"listening"' in line]
    assert len(listening) == 1
    family = descendants(status["pid"])
    assert all(client.process.pid not in family for client in clients)
    assert [await client.leave() for client in clients] == [0] * 10
    await until(lambda: not any(map(is_alive, family)))
    assert not world.home.socket.exists() and not world.home.runtime_file.exists()
    assert read_note(world.home.daemon_lock) is None
    assert world.events("gateway")[-2]["payload"]["reason"] == "no client for 0.5 s"


async def test_the_gateway_outlives_the_client_that_started_it_also_when_that_one_is_killed(world: World) -> None:
    first, second = await connect(world), await connect(world)
    os.killpg(os.getpgid(first.process.pid), 0)  # it shares our group; the gateway must not
    pid = world.status()["pid"]
    assert os.getsid(pid) != os.getsid(0)
    first.process.kill()
    await first.process.communicate()
    await until(lambda: world.status()["clients"] == 1)
    assert (await second.ask("ping"))["result"] == {}
    assert world.status()["pid"] == pid
    assert await second.leave() == 0


async def test_a_second_gateway_is_refused_and_told_which_process_holds_the_directory(world: World) -> None:
    async with serving(world) as first:
        second = await asyncio.to_thread(world.omni, "serve", "--port", "0", check=False)
        assert second.returncode == 1
        assert f"process {first.pid}" in second.stderr
        embedded = await asyncio.to_thread(world.omni, "stdio", "--embedded", check=False)
        assert (embedded.returncode, embedded.stdout) == (1, "")
        assert f"process {first.pid}" in embedded.stderr
        assert world.status()["pid"] == first.pid


async def test_a_gateway_that_was_killed_is_replaced_at_once(world: World) -> None:
    async with serving(world) as first:
        client = await connect(world)
        first.kill()
        await first.wait()
        assert await client.leave() in (0, 1)
    assert world.home.socket.exists()  # what a killed process leaves
    again = await connect(world)
    assert world.status()["from_shim"] is True
    assert await again.leave() == 0


async def test_sigterm_ends_an_idle_gateway_with_its_end_on_record(world: World) -> None:
    async with serving(world) as gateway:
        client = await connect(world)
        begun = time.monotonic()
        gateway.terminate()
        assert await asyncio.wait_for(gateway.wait(), WAIT_S) == 0
        assert time.monotonic() - begun < 10
        assert await client.leave() == 1
    last = world.events("gateway")
    assert [event["code"] for event in last[-2:]] == ["gateway_stopped", "run_closed"]
    assert last[-2]["payload"]["reason"] == "SIGTERM"
    assert not world.home.socket.exists()


async def test_a_call_under_way_at_sigterm_is_cancelled_within_the_limit_with_its_outcome_on_record(world: World) -> None:
    world.allow_tools()
    async with serving(world) as gateway:
        client = await connect(world)
        waiting = await client.send("tools/call", name="tools__files_write", arguments={"path": "a", "text": "b"})
        await until(lambda: world.status()["pending_approvals"] == 1)
        begun = time.monotonic()
        gateway.terminate()
        answer = await client.answer(waiting)
        assert await asyncio.wait_for(gateway.wait(), WAIT_S) == 0
        assert time.monotonic() - begun < 10
        assert "error" in answer or answer["result"]["isError"]
        await client.leave()
    outcomes = [event for event in world.events("session") if event["kind"] in ("tool_result", "tool_error")]
    assert [event["payload"]["code"] for event in outcomes] == ["cancelled"]
    assert world.events("gateway")[-2]["payload"]["cancelled_calls"] == 1


async def test_a_call_that_ends_while_the_gateway_drains_is_answered(world: World) -> None:
    world.allow_tools()
    async with serving(world) as gateway:
        client = await connect(world)
        waiting = await client.send("tools/call", name="tools__files_write", arguments={"path": "a", "text": "b"})
        await until(lambda: world.status()["pending_approvals"] == 1)
        approval = json.loads(world.omni("approvals", "list", "--json").stdout)
        question = approval["approvals"][0]["id"] if isinstance(approval, dict) else approval[0]["id"]
        gateway.terminate()
        await until(lambda: world.status().get("draining") is True)
        world.omni("approvals", "deny", question, "--yes")
        answer = await client.answer(waiting)
        assert "approval_denied" in json.dumps(answer)
        assert await asyncio.wait_for(gateway.wait(), WAIT_S) == 0
        await client.leave()


async def test_a_second_sigterm_does_not_wait_for_running_calls(world: World) -> None:
    world.allow_tools()
    async with serving(world) as gateway:
        client = await connect(world)
        await client.send("tools/call", name="tools__files_write", arguments={"path": "a", "text": "b"})
        await until(lambda: world.status()["pending_approvals"] == 1)
        gateway.terminate()
        await until(lambda: world.status().get("draining") is True)
        begun = time.monotonic()
        gateway.terminate()
        assert await asyncio.wait_for(gateway.wait(), WAIT_S) == 0
        assert time.monotonic() - begun < 5
        await client.leave()


async def test_a_client_that_leaves_during_a_call_has_it_cancelled_on_record(world: World) -> None:
    world.allow_tools()
    async with serving(world):
        client = await connect(world)
        await client.send("tools/call", name="tools__files_write", arguments={"path": "a", "text": "b"})
        await until(lambda: world.status()["pending_approvals"] == 1)
        assert await client.leave() == 0
        await until(lambda: world.status()["open_calls"] == 0)
    outcomes = [event for event in world.events("session") if event["kind"] in ("tool_result", "tool_error")]
    assert [event["payload"]["code"] for event in outcomes] == ["cancelled"]


async def test_sighup_reads_the_policies_again_and_a_broken_one_changes_nothing(world: World) -> None:
    async with serving(world) as gateway:
        before = world.status()["policy"]["version"]
        world.allow_tools()
        gateway.send_signal(signal.SIGHUP)
        await until(lambda: world.status()["policy"]["version"] != before)
        good = world.status()["policy"]["version"]
        (world.home.policies / "broken.cedar").write_text("permit (")
        (world.home.policies / "broken.cedar").chmod(0o600)
        gateway.send_signal(signal.SIGHUP)
        await until(lambda: bool(world.status()["policy"]["problems"]))
        assert world.status()["policy"]["version"] == good


async def test_the_first_start_mints_a_token_and_its_revocation_acts_on_the_next_request(world: World) -> None:
    async with serving(world):
        url, token = world.status()["url"], world.home.token_file.read_text().strip()
        assert world.home.token_file.stat().st_mode & 0o777 == 0o600
        assert fetch_status(url, token)[0] == 200
        assert fetch_status(url, None)[0] == 401
        assert fetch_status(url, token + "x")[0] == 401
        world.omni("keys", "revoke", "first")
        assert fetch_status(url, token)[0] == 401
        made = world.omni("keys", "create", "laptop", "--agent", "coder", "--expires", "1h").stdout.strip()
        assert fetch_status(url, made)[0] == 200
        assert made not in world.omni("keys", "list").stdout


@pytest.mark.parametrize("path", ["/api/events", "/api/runs/1/events", "/api/approvals/1/approve", "/api/status", "/api/x"])
async def test_events_and_decisions_posted_by_a_client_are_forbidden_and_nothing_is_stored(world: World, path: str) -> None:
    async with serving(world):
        url, token = world.status()["url"], world.home.token_file.read_text().strip()
        before = len(world.events("gateway"))
        body = json.dumps({"kind": "tool_result", "payload": {"is_error": False}}).encode()
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            status, headers, answer = fetch(url.removesuffix("/mcp") + path, token, body, method)
            assert status == 403 and headers["X-Request-ID"]
            assert answer["detail"]
        assert len(world.events("gateway")) == before


async def test_the_status_over_http_is_the_one_over_the_socket(world: World) -> None:
    async with serving(world):
        over_socket = world.status()
        code, over_http = fetch_status(over_socket["url"], world.home.token_file.read_text().strip())
        assert code == 200
        assert over_http["policy"] == over_socket["policy"] and over_http["catalog"] == over_socket["catalog"]


async def test_status_says_what_runs_and_exits_1_when_nothing_does(world: World) -> None:
    nothing = world.omni("status", "--json", check=False)
    assert nothing.returncode == 1 and json.loads(nothing.stdout)["running"] is False
    async with serving(world) as gateway:
        facts = json.loads(world.omni("status", "--json").stdout)
        assert (facts["running"], facts["pid"], facts["version"]) == (True, gateway.pid, __version__)
        assert facts["port"] == json.loads(world.home.runtime_file.read_text())["port"] != 0
        assert facts["socket"] == str(world.home.socket)
        assert f"{gateway.pid}" in world.omni("status").stdout


async def test_without_a_socket_the_gateway_serves_http_and_status_finds_it(world: World) -> None:
    world.environment["XDG_RUNTIME_DIR"] = str(world.root)
    world.home.runtime.mkdir(mode=0o700)
    world.home.socket.write_text("in the way")
    process = await asyncio.create_subprocess_exec(
        *OMNI, "serve", "--port", "0", env=world.environment, stderr=subprocess.DEVNULL
    )
    await until(lambda: "url" in (read_note(world.home.daemon_lock) or {}))
    facts = json.loads(world.omni("status", "--json").stdout)
    assert facts["running"] is True and facts["socket"] is None
    client = await connect(world, greet=False)
    assert await client.leave() != 0
    process.terminate()
    assert await asyncio.wait_for(process.wait(), WAIT_S) == 0
    assert world.home.socket.read_text() == "in the way"


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::"])
async def test_an_address_that_others_can_reach_is_refused(world: World, host: str) -> None:
    done = await asyncio.to_thread(world.omni, "serve", "--port", "0", "--host", host, check=False)
    assert done.returncode == 1
    assert "--behind-proxy" in done.stderr
    assert not world.home.log_file.exists()


async def test_a_port_that_is_taken_is_an_error_for_a_person_and_none_for_a_client(world: World) -> None:
    async with serving(world):
        port = world.status()["port"]
        async with a_world() as other:
            other.write_settings(f"[server]\nport = {port}\n")
            refused = await asyncio.to_thread(other.omni, "serve", check=False)
            assert refused.returncode == 1 and f"{port}" in refused.stderr and "--port" in refused.stderr
            client = await connect(other)
            assert other.status()["port"] not in (0, port)
            assert await client.leave() == 0


async def test_broken_settings_are_told_to_the_client_that_wanted_a_gateway(world: World) -> None:
    world.write_settings("[server]\nprot = 1\n")
    client = await connect(world, greet=False)
    assert client.process.stderr is not None
    said = (await client.process.stderr.read()).decode()
    assert await client.leave() == 1
    assert "omni.toml:2" in said and "prot" in said and "gateway.log" in said


async def test_a_gateway_whose_stderr_nobody_reads_serves_and_ends(world: World) -> None:
    process = await asyncio.create_subprocess_exec(
        *OMNI, "serve", "--port", "0", "--log-level", "debug", env=world.environment, stderr=subprocess.PIPE, limit=1
    )
    await until(lambda: bool(world.status()))
    client = await connect(world)
    url = world.status()["url"]
    for _ in range(200):
        await asyncio.to_thread(fetch_status, url, None)
    assert (await client.ask("ping"))["result"] == {}
    process.terminate()
    begun = time.monotonic()
    await until(lambda: not is_alive(process.pid))
    assert time.monotonic() - begun < 10
    await client.leave()
    await process.communicate()


async def test_an_embedded_gateway_serves_its_one_client_and_writes_nothing_else_to_stdout(world: World) -> None:
    client = await connect(world, "--embedded")
    assert (await client.ask("ping"))["result"] == {}
    note = json.loads(world.omni("status", "--json").stdout)
    assert (note["embedded"], note["pid"]) == (True, client.process.pid)
    family = descendants(client.process.pid)
    assert await client.leave() == 0
    assert not any(map(is_alive, family))
    assert all(message["jsonrpc"] == "2.0" for message in client.seen)
    assert world.events("gateway")[-2]["payload"]["reason"] == "client_left"


async def test_an_embedded_gateway_takes_files_for_its_pipes(world: World) -> None:
    hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    given, got = world.root / "in", world.root / "out"
    given.write_text(
        "".join(
            json.dumps({"jsonrpc": "2.0", **message}) + "\n"
            for message in (
                {"id": 1, "method": "initialize", "params": hello},
                {"method": "notifications/initialized"},
                {"id": 2, "method": "tools/list"},
            )
        )
    )
    with given.open() as stdin, got.open("w") as stdout:
        done = subprocess.run([*OMNI, "stdio", "--embedded"], stdin=stdin, stdout=stdout, env=world.environment, timeout=WAIT_S)
    assert done.returncode == 0
    assert [json.loads(line)["id"] for line in got.read_text().splitlines()] == [1, 2]


async def test_an_embedded_gateway_ends_at_sigterm(world: World) -> None:
    client = await connect(world, "--embedded")
    client.process.terminate()
    assert await asyncio.wait_for(client.process.wait(), WAIT_S) == 0
    assert world.events("gateway")[-2]["payload"]["reason"] == "SIGTERM"
    await client.leave()


async def test_an_outdated_gateway_of_a_client_is_drained_and_replaced(world: World) -> None:
    program = "import omni_mcp; omni_mcp.__version__ = '0.0.1'\nimport sys\nfrom omni_mcp.cli.main import main\n"
    program += "sys.argv = ['omni-mcp', 'serve', '--from-shim', '--port', '0']\nmain()\n"
    old = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, env=world.environment, stderr=subprocess.DEVNULL
    )
    await until(lambda: world.status().get("version") == "0.0.1")
    clients = await asyncio.gather(connect(world), connect(world))
    assert await asyncio.wait_for(old.wait(), WAIT_S) == 0
    assert (world.status()["version"], world.status()["clients"]) == (__version__, 2)
    assert [await client.leave() for client in clients] == [0, 0]


@pytest.mark.skipif(os.getuid() != 0, reason="only root has other users' processes to try with")
async def test_the_agents_name_is_part_of_who_calls(world: World) -> None:
    async with serving(world):
        client = await connect(world, "--agent", "coder", "--server", "tools")
        await client.call("text_hash", text="x")
        assert await client.leave() == 0
    call = next(event for event in world.events("session") if event["kind"] == "tool_call")
    assert call["payload"]["principal"] == f'Agent::"coder"/{os.getuid()}@default'
    assert call["payload"]["profile"] == "tools"


async def test_an_unknown_server_is_refused_before_anything_is_served(world: World) -> None:
    async with serving(world):
        client = await connect(world, "--server", "nowhere", greet=False)
        assert client.process.stderr is not None
        assert b"no profile or server 'nowhere'" in await client.process.stderr.read()
        assert await client.leave() == 1


def fetch(url: str, token: str | None, body: bytes | None = None, method: str = "GET") -> tuple[int, Any, dict[str, Any]]:
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    request = urllib.request.Request(url, data=body, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
            return answer.status, answer.headers, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, json.loads(error.read())


def fetch_status(url: str, token: str | None) -> tuple[int, dict[str, Any]]:
    code, _, body = fetch(url.removesuffix("/mcp") + "/api/status", token)
    return code, body


