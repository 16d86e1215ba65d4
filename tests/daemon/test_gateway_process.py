"""The life of a gateway: one per user, started by whoever comes first, drained when told, gone when nobody is left."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator

import pytest

from omni_mcp import __version__
from omni_mcp.config import ServerSettings
from omni_mcp.contracts.errors import ConfigError
from omni_mcp.daemon.address import check_address
from omni_mcp.datalock import read_note
from omni_mcp.paths import make_private_dir
from tests.daemon.gateway_world import OMNI, WAIT_S, World, a_world, connect, descendants, is_alive, serving, until

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
        assert time.monotonic() - begun < 30
        assert await client.leave() == 1
    last = world.events("gateway")
    assert [event["code"] for event in last[-2:]] == ["gateway_stopped", "run_closed"]
    assert last[-2]["payload"]["reason"] == "SIGTERM"
    assert not world.home.socket.exists()


@pytest.mark.slow
async def test_a_call_under_way_at_sigterm_is_cancelled_within_the_limit_with_its_outcome_on_record(
    world: World,
) -> None:
    world.allow_tools()
    async with serving(world) as gateway:
        client = await connect(world)
        waiting = await client.send("tools/call", name="tools__files_write", arguments={"path": "a", "text": "b"})
        await until(lambda: world.status()["pending_approvals"] == 1)
        begun = time.monotonic()
        gateway.terminate()
        answer = await client.answer(waiting)
        assert await asyncio.wait_for(gateway.wait(), WAIT_S) == 0
        assert time.monotonic() - begun < 30
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


async def test_status_says_what_runs_and_exits_1_when_nothing_does(world: World) -> None:
    nothing = world.omni("status", "--json", check=False)
    assert nothing.returncode == 1 and json.loads(nothing.stdout)["running"] is False
    async with serving(world) as gateway:
        facts = json.loads(world.omni("status", "--json").stdout)
        assert (facts["running"], facts["pid"], facts["version"]) == (True, gateway.pid, __version__)
        assert facts["port"] == json.loads(world.home.runtime_file.read_text())["port"] != 0
        assert facts["socket"] == str(world.home.socket)
        shown = world.omni("status").stdout
        assert f"{gateway.pid}" in shown and "sandbox_job" in shown
        assert (
            not re.search(r"[{}']|True|False|None|_s  |\d:\d\d\.\d", shown) and max(map(len, shown.splitlines())) < 250
        )


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


async def test_an_address_that_others_can_reach_is_refused(world: World) -> None:
    refused = await asyncio.to_thread(world.omni, "serve", "--port", "0", "--host", "0.0.0.0", check=False)
    assert refused.returncode == 1
    assert "--behind-proxy" in refused.stderr
    assert not world.home.log_file.exists()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "::ffff:192.0.2.1", "example.org", ""])
def test_only_loopback_needs_no_proxy(host: str) -> None:
    with pytest.raises(ConfigError, match="behind-proxy"):
        check_address(ServerSettings(host=host))
    check_address(ServerSettings(host=host, behind_proxy=True))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_is_bound_without_more_ado(host: str) -> None:
    check_address(ServerSettings(host=host))


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
    make_private_dir(world.home.data)
    (world.home.data / "gateway.log").write_text("a line of last week\n")
    world.write_settings("[server]\nprot = 1\n")
    client = await connect(world, greet=False)
    assert client.process.stderr is not None
    said = (await client.process.stderr.read()).decode()
    assert await client.leave() == 1
    assert "omni.toml:2" in said and "prot" in said and "gateway.log" in said
    assert "last week" not in said


async def test_a_gateway_whose_stderr_is_full_from_the_start_serves_and_ends(world: World) -> None:
    source, sink = os.pipe()
    fcntl.fcntl(sink, fcntl.F_SETPIPE_SZ, 4096)
    os.write(sink, bytes(4096))  # not one byte more goes in without blocking
    process = await asyncio.create_subprocess_exec(*OMNI, "serve", "--port", "0", env=world.environment, stderr=sink)
    os.close(sink)
    await until(lambda: bool(world.status()))
    client = await connect(world)
    assert (await client.ask("ping"))["result"] == {}
    begun = time.monotonic()
    process.terminate()
    assert await asyncio.wait_for(process.wait(), WAIT_S) == 0
    assert time.monotonic() - begun < 30
    assert os.read(source, 8192) == bytes(4096)
    os.close(source)
    await client.leave()


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
        done = subprocess.run(
            [*OMNI, "stdio", "--embedded"], stdin=stdin, stdout=stdout, env=world.environment, timeout=WAIT_S
        )
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
