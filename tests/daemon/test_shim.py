"""The shim relays bytes both ways, knows what is open when the gateway dies, and is cheap to start.

The gateway here is a stand-in behind the real socket: what the shim does must not depend on what is behind it.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from omni_mcp import __version__
from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.json import JsonObject
from omni_mcp.paths import Home, find_home, make_private_dir
from omni_mcp.serving.socket import SocketFace, serve_socket

SHIM = [sys.executable, "-m", "omni_mcp.cli.main", "stdio"]
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
def home() -> Iterator[Home]:
    directory = Path(tempfile.mkdtemp(prefix="omni-t-"))
    place = find_home({"OMNI_HOME": str(directory), "XDG_RUNTIME_DIR": str(directory / "run")})
    make_private_dir(place.data)
    make_private_dir(place.runtime)
    yield place
    shutil.rmtree(directory)


def environment(home: Home) -> dict[str, str]:
    return {**os.environ, "OMNI_HOME": str(home.config), "XDG_RUNTIME_DIR": str(home.runtime.parent)}


@asynccontextmanager
async def gateway(
    home: Home, handle: Handler, *, version: str = __version__, from_shim: bool = False
) -> AsyncIterator[SocketFace]:
    async def serve(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, principal: Principal, profile: str
    ) -> None:
        await handle(reader, writer)

    async def ping() -> JsonObject:
        return {}

    about = {"version": version, "from_shim": from_shim}
    async with serve_socket(home.socket, serve, {"ping": ping}, about=about) as face:
        yield face


async def start_shim(home: Home, *options: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *SHIM, *options, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(home),
        limit=64 * 1024 * 1024,
    )  # fmt: skip


async def answer_each(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        message = json.loads(line)
        writer.write(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": message["params"]}).encode() + b"\n")
        await writer.drain()


def request(identifier: Any, **params: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": identifier, "method": "x", "params": params}).encode() + b"\n"


async def test_what_a_client_asks_comes_back_and_its_leaving_is_a_success(home: Home) -> None:
    async with gateway(home, answer_each):
        shim = await start_shim(home)
        out, err = await shim.communicate(b"".join(request(number) for number in range(100)))
    assert [json.loads(line)["id"] for line in out.splitlines()] == list(range(100))
    assert (shim.returncode, err) == (0, b"")


async def test_megabytes_cross_unchanged_in_both_directions_at_once(home: Home) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()

    sent = b"".join(request(number, text=os.urandom(300_000).hex()) for number in range(10))
    async with gateway(home, echo):
        shim = await start_shim(home)
        out, _ = await shim.communicate(sent)
    assert shim.returncode == 0
    assert out == sent


async def test_a_gateway_that_ends_cleanly_after_the_client_left_may_still_say_something(home: Home) -> None:
    async def last_words(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.write(b"late answer\n")

    async with gateway(home, last_words):
        shim = await start_shim(home)
        out, _ = await shim.communicate(request(1))
    assert (shim.returncode, out) == (0, b"late answer\n")


async def test_when_the_gateway_dies_each_open_request_gets_an_error(home: Home) -> None:
    got_all = asyncio.Event()

    async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = [json.loads(await reader.readline()) for _ in range(6)]
        writer.write(json.dumps({"jsonrpc": "2.0", "id": lines[0]["id"], "result": {}}).encode() + b"\n")
        writer.write(b'{"jsonrpc": "2.0", "id": 99, "method": "roots/list"}\n{"half": ')
        got_all.set()

    sent = [
        request("a"),
        request(2, text="x" * 200_000),
        request("2"),
        request(4),
        json.dumps({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 4}}).encode()
        + b"\n",
        json.dumps({"jsonrpc": "2.0", "id": 77, "result": {}}).encode()
        + b"\n",  # an answer of the client opens nothing
    ]
    async with gateway(home, die):
        shim = await start_shim(home)
        assert shim.stdin is not None
        shim.stdin.writelines(sent)
        await got_all.wait()
        assert shim.stdout is not None and shim.stderr is not None
        out, err = await shim.stdout.read(), await shim.stderr.read()
        await shim.wait()
    lines = out.splitlines()
    assert json.loads(lines[0])["result"] == {}
    assert lines[2] == b'{"half": '
    errors = [json.loads(line) for line in lines[3:]]
    assert [error["id"] for error in errors] == [2, "2"]
    assert all(error["error"]["code"] == -32603 for error in errors)
    assert all(error["error"]["data"]["code"] == "outcome_unknown" for error in errors)
    assert shim.returncode == 1
    assert b"the gateway ended (2 requests were open)" in err


async def test_a_client_that_closes_its_end_of_stdout_ends_the_conversation(home: Home) -> None:
    ended = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello\n")
        assert await reader.read() == b""
        ended.set()

    async with gateway(home, talk):
        source, sink = os.pipe()
        shim = await asyncio.create_subprocess_exec(*SHIM, stdin=subprocess.PIPE, stdout=sink, env=environment(home))
        os.close(sink)
        assert await asyncio.to_thread(os.read, source, 100) == b"hello\n"
        os.close(source)
        await asyncio.wait_for(ended.wait(), 30)
        assert await shim.wait() == 0
        assert shim.stdin is not None
        shim.stdin.close()


async def test_a_client_that_does_not_read_holds_up_the_gateway_and_not_the_shims_memory(home: Home) -> None:
    written = 0
    stuck = asyncio.Event()

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        while True:
            writer.write(b"x" * 65535 + b"\n")
            written += 65536
            try:
                await asyncio.wait_for(writer.drain(), 0.5)
            except TimeoutError:
                break
        stuck.set()
        await reader.read()

    async with gateway(home, flood):
        shim = await start_shim(home)
        assert shim.stdout is not None
        shim.stdout._transport.pause_reading()  # type: ignore[attr-defined]  # a client that stopped reading
        await asyncio.wait_for(stuck.wait(), 30)
        resident = int(Path(f"/proc/{shim.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        shim.kill()
        shim.stdout._transport.resume_reading()  # type: ignore[attr-defined]
        await shim.communicate()
    assert written < 4 * 1024 * 1024
    assert resident < 64 * 1024 * 1024


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--port", "1"], b"unknown option '--port'"),
        (["--agent"], b"needs a name"),
        (["--agent="], b"needs a name"),
        (["tools"], b"unknown option 'tools'"),
        (["--profile", "a", "--server=b"], b"exclude each other"),
    ],
)
async def test_a_wrong_command_line_is_a_usage_error_and_starts_nothing(
    home: Home, options: list[str], said: bytes
) -> None:
    shim = await start_shim(home, *options)
    out, err = await shim.communicate(b"")
    assert (shim.returncode, out) == (2, b"")
    assert said in err and b"usage: omni-mcp stdio" in err
    assert list(home.data.iterdir()) == []


async def test_a_refused_hello_is_told_on_stderr_and_nothing_is_written_to_stdout(home: Home) -> None:
    async with gateway(home, answer_each):
        shim = await start_shim(home, "--agent", 'a"b')
        out, err = await shim.communicate(request(1))
    assert (shim.returncode, out) == (1, b"")
    assert b"the gateway refused: an agent's name" in err


async def test_a_runtime_directory_that_others_can_write_to_is_not_trusted(home: Home) -> None:
    async with gateway(home, answer_each):
        home.runtime.chmod(0o777)
        shim = await start_shim(home)
        out, err = await shim.communicate(request(1))
        home.runtime.chmod(0o700)
    assert (shim.returncode, out) == (1, b"")
    assert b"chmod 700" in err


async def test_a_newer_gateway_and_one_that_a_person_started_are_used_as_they_are(home: Home) -> None:
    for version, from_shim in (("999.0.0", True), ("0.0.1", False)):
        async with gateway(home, answer_each, version=version, from_shim=from_shim):
            shim = await start_shim(home)
            out, _ = await shim.communicate(request(1))
        assert shim.returncode == 0 and json.loads(out)["id"] == 1


async def test_the_gateway_is_found_without_the_login_sessions_directory(home: Home) -> None:
    home.daemon_lock.write_text(json.dumps({"pid": 1, "socket": str(home.socket)}))
    env = {key: value for key, value in environment(home).items() if key != "XDG_RUNTIME_DIR"}
    async with gateway(home, answer_each):
        shim = await asyncio.create_subprocess_exec(
            *SHIM, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env
        )
        out, err = await shim.communicate(request(1))
    assert (shim.returncode, err) == (0, b"") and json.loads(out)["id"] == 1


def test_the_shim_loads_nothing_heavy() -> None:
    program = "import sys, omni_mcp.cli.shim; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "omni_mcp.cli.launch" in loaded
    assert not loaded & {"click", "asyncio", "pydantic", "orjson", "typer", "structlog", "subprocess", "logging", "ssl"}
    assert {name for name in loaded if name.startswith("omni_mcp")} == {
        "omni_mcp", "omni_mcp.cli", "omni_mcp.cli.shim", "omni_mcp.cli.launch", "omni_mcp.cli.linetap",
        "omni_mcp.paths", "omni_mcp.datalock", "omni_mcp.contracts", "omni_mcp.contracts.errors",
    }  # fmt: skip
