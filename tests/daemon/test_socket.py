"""The local socket lets the owner in by what the kernel says, one hello first, and is bounded in every direction."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.errors import AlreadyRunning, ConfigError
from omni_mcp.contracts.json import JsonObject
from omni_mcp.serving.socket import SocketFace, SocketLimits, serve_socket

HELLO = {"omni": 1, "agent": None, "profile": None, "server": None, "version": "9.9.9"}


class Echo:
    """Stands for the edge: says who came, then sends back what it gets."""

    async def __call__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, principal: Principal, profile: str
    ) -> None:
        writer.write(json.dumps({"key": principal.key, "profile": profile}).encode() + b"\n")
        while line := await reader.read(65536):
            writer.write(line)


async def _status() -> JsonObject:
    return {"state": "fine"}


async def _broken() -> JsonObject:
    raise ValueError("a secret detail")


@pytest.fixture
def place() -> Iterator[Path]:
    """A short private directory: the paths that pytest makes can be too long for a socket."""
    directory = Path(tempfile.mkdtemp(prefix="omni-t-"))
    yield directory / "gateway.sock"
    directory.chmod(0o700)
    shutil.rmtree(directory)


@asynccontextmanager
async def listening(place: Path, **options: Any) -> AsyncIterator[SocketFace]:
    control = {"status": _status, "broken": _broken}
    about = {"version": "1.2.3", "from_shim": False}
    async with serve_socket(place, Echo(), control, about=about, **options) as face:
        yield face


async def converse(place: Path, *lines: bytes) -> list[Any]:
    """Send *lines*, close our side, and return all that came back."""
    reader, writer = await asyncio.open_unix_connection(place)
    writer.writelines(lines)
    writer.write_eof()
    try:
        return [json.loads(line) for line in (await reader.read()).splitlines()]
    finally:
        writer.close()
        await writer.wait_closed()


def line(message: object) -> bytes:
    return json.dumps(message).encode() + b"\n"


async def test_after_its_hello_a_client_is_served_as_the_user_the_kernel_names(place: Path) -> None:
    async with listening(place):
        ack, who, echoed = await converse(place, line(HELLO), line({"x": 1}))
    assert ack == {"omni": 1, "ok": True, "version": "1.2.3", "from_shim": False, "pid": os.getpid()}
    assert who == {"key": f'User::"{os.getuid()}"@default', "profile": "default"}
    assert echoed == {"x": 1}


async def test_an_agent_and_a_server_can_be_asked_for(place: Path) -> None:
    async with listening(place):
        _, who = await converse(place, line({**HELLO, "agent": "coder", "server": "tools"}))
    assert who == {"key": f'Agent::"coder"/{os.getuid()}@default', "profile": "tools"}


async def test_directory_and_socket_are_for_the_owner_alone_and_nothing_is_left(place: Path) -> None:
    async with listening(place):
        assert place.stat().st_mode & 0o777 == 0o600
        assert place.parent.stat().st_mode & 0o777 == 0o700
    assert not place.exists()


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o720, 0o702])
async def test_a_directory_that_others_can_write_to_is_refused(place: Path, mode: int) -> None:
    place.parent.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 700"):
        async with listening(place):
            pass
    assert not place.exists()


async def test_a_link_to_a_directory_is_refused(place: Path) -> None:
    link = place.parent / "link"
    link.symlink_to(place.parent)
    with pytest.raises(ConfigError):
        async with listening(link / "gateway.sock"):
            pass


async def test_a_path_too_long_for_a_socket_is_refused_with_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="XDG_RUNTIME_DIR"):
        async with listening(tmp_path / ("x" * 120) / "gateway.sock"):
            pass


async def test_a_second_listener_is_refused_and_the_first_stays(place: Path) -> None:
    async with listening(place):
        with pytest.raises(AlreadyRunning):
            async with listening(place):
                pass
        assert len(await converse(place, line(HELLO))) == 2


async def test_a_socket_that_a_dead_gateway_left_is_taken_over(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(place))
    assert place.exists()
    async with listening(place):
        assert len(await converse(place, line(HELLO))) == 2


async def test_a_file_in_the_place_of_the_socket_is_never_removed(place: Path) -> None:
    place.write_text("precious")
    with pytest.raises(ConfigError, match="not a socket"):
        async with listening(place):
            pass
    assert place.read_text() == "precious"


@pytest.mark.parametrize(
    ("first", "said"),
    [
        (b"GET / HTTP/1.1\r\n", "not JSON"),
        (b"\xff\xfe\n", "not JSON"),
        (b"[]\n", "object"),
        (b"{}\n", '"omni": 1'),
        (line({**HELLO, "omni": 2}), '"omni": 1'),
        (line({**HELLO, "omni": True, "root": 1}), "unknown field"),
        (line({**HELLO, "uid": 0}), "unknown field 'uid'"),
        (line({**HELLO, "agent": 5}), "must be text"),
        (line({**HELLO, "agent": 'x"y'}), "agent's name"),
        (line({**HELLO, "profile": "a", "server": "b"}), "not for both"),
        (line({**HELLO, "profile": "secret"}), "no profile"),
        (line({"omni": 1, "control": "shutdown"}), "no such control"),
        (line({"omni": 1, "control": ["status"]}), "no such control"),
        (line({"omni": 1, "control": "status", "more": 1}), "no such control"),
        (line({**HELLO, "version": "v" * 5000}), "too long"),
        (b"x" * 400_000, "too long"),
    ],
)
async def test_a_wrong_first_line_gets_a_clear_error_and_the_next_client_is_served(
    place: Path, first: bytes, said: str
) -> None:
    async with listening(place, has_profile=lambda name: name != "secret") as face:
        answers = await converse(place, first)
        assert [answer["ok"] for answer in answers] == [False]
        assert said in answers[0]["error"]
        assert len(await converse(place, line(HELLO))) == 2
        assert face.refused == 1 and face.clients == 0


async def test_a_peer_that_says_nothing_is_told_to_go(place: Path) -> None:
    async with listening(place, limits=SocketLimits(hello_timeout_s=0.05)):
        reader, writer = await asyncio.open_unix_connection(place)
        answer = json.loads(await reader.read())
        writer.close()
        await writer.wait_closed()
    assert (answer["ok"], answer["error"]) == (False, "no hello came in time")


async def test_over_the_cap_a_client_is_turned_away_until_another_leaves(place: Path) -> None:
    async with listening(place, limits=SocketLimits(connections=2)) as face:
        clients = [await asyncio.open_unix_connection(place) for _ in range(2)]
        for reader, writer in clients:
            writer.write(line(HELLO))
            await reader.readline()
            await reader.readline()
        assert face.clients == 2 and face.idle_s == 0.0
        (refusal,) = await converse(place, line(HELLO))
        assert (refusal["code"], refusal["ok"]) == ("overloaded", False)
        clients[0][1].close()
        await clients[0][1].wait_closed()
        while face.clients == 2:
            await asyncio.sleep(0)
        assert len(await converse(place, line(HELLO))) == 2
        clients[1][1].close()
        await clients[1][1].wait_closed()


async def test_a_draining_gateway_keeps_its_clients_and_takes_no_new_ones(place: Path) -> None:
    async with listening(place) as face:
        reader, writer = await asyncio.open_unix_connection(place)
        writer.write(line(HELLO))
        await reader.readline()
        await reader.readline()
        face.stop_accepting()
        (refusal,) = await converse(place, line(HELLO))
        assert (refusal["ok"], refusal["draining"]) == (False, True)
        writer.write(b"still here\n")
        assert await reader.readline() == b"still here\n"
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()


async def test_control_requests_are_answered_and_a_fault_gives_nothing_away(place: Path) -> None:
    async with listening(place) as face:
        (answer,) = await converse(place, line({"omni": 1, "control": "status"}))
        assert (answer["ok"], answer["state"], answer["version"]) == (True, "fine", "1.2.3")
        (broken,) = await converse(place, line({"omni": 1, "control": "broken"}))
        assert broken["ok"] is False and "secret" not in json.dumps(broken)
        assert face.clients == 0


STRANGER = """
import json, socket, sys
link = socket.socket(socket.AF_UNIX)
try:
    link.connect(sys.argv[1])
except PermissionError:
    print("no way in")
else:
    link.sendall(json.dumps({"omni": 1, "control": "status"}).encode() + b"\\n")
    print(link.makefile().read())
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
@pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="needs an interpreter that another user can run")
@pytest.mark.parametrize("opened", [False, True])
async def test_another_user_gets_nothing_even_where_the_modes_let_them_in(place: Path, opened: bool) -> None:
    async with listening(place) as face:
        if opened:
            place.parent.chmod(0o711)
            place.chmod(0o666)
        process = await asyncio.create_subprocess_exec(
            "/usr/bin/python3", "-I", "-c", STRANGER, str(place), stdout=subprocess.PIPE, user=65534, group=65534,
            extra_groups=[], cwd="/",
        )  # fmt: skip
        out, _ = await process.communicate()
        assert process.returncode == 0
        if opened:
            answer = json.loads(out)
            assert (answer["ok"], answer["code"]) == (False, "unauthenticated")
            assert "state" not in answer and face.refused == 1
        else:
            assert out.strip() == b"no way in"


async def test_leaving_the_context_ends_clients_after_sending_what_was_written(place: Path) -> None:
    async with listening(place):
        reader, writer = await asyncio.open_unix_connection(place)
        writer.write(line(HELLO) + b"last words\n")
        await reader.readline()
        await reader.readline()
        assert await reader.readline() == b"last words\n"
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
