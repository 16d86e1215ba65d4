"""A server as the pool speaks with it: its end, its last words and what may have been missing reach the operator."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from omni_mcp.contracts.errors import SandboxUnavailable
from omni_mcp.engines.sandbox.launcher import base_interpreter
from omni_mcp.engines.sandbox.server_child import ServerEnded, start_child
from omni_mcp.engines.sandbox.servers import ServerLaunch, Tail
from tests.servers.world import World, given, owned

pytestmark = pytest.mark.sandbox

ECHO = "import sys\nfor line in sys.stdin: print(line.strip().upper(), flush=True)\n"


def python(code: str, **fields: object) -> ServerLaunch:
    argv = (base_interpreter().binary, "-I", "-S", "-c", code)
    return ServerLaunch(**{"name": "small", "argv": argv, **fields})  # type: ignore[arg-type]


async def line_of(child: object) -> bytes:
    said = b""
    async with asyncio.timeout(30):
        while not said.endswith(b"\n"):
            more = await child.read()  # type: ignore[attr-defined]
            assert more
            said += more
    return said


async def test_a_server_answers_and_ends_well_when_its_input_ends(plain_world: World) -> None:
    async with plain_world.start(python(ECHO)) as running:
        running.child.write(b"one\n")
        assert await line_of(running.child) == b"ONE\n"
        assert await running.child.stop() == "it ended with exit status 0"
        assert await running.child.stop() == "it ended with exit status 0"


async def test_a_server_may_tidy_up_when_its_input_ends(plain_world: World, tmp_path: Path) -> None:
    place = owned_directory(tmp_path)
    code = f"{ECHO}open({str(place / 'saved')!r}, 'w').write('all')\n"
    async with plain_world.start(python(code, directories=(given(place),))) as running:
        running.child.write(b"one\n")
        await line_of(running.child)

    assert (place / "saved").read_text() == "all"


async def test_a_server_that_does_not_end_is_killed(plain_world: World) -> None:
    code = f"import signal, time\nsignal.signal(15, signal.SIG_IGN)\n{ECHO}while True: time.sleep(60)\n"
    async with plain_world.start(python(code)) as running:
        running.child.write(b"one\n")
        await line_of(running.child)
        assert await running.child.stop() == "it did not end by itself and was killed"
        assert await running.child.read() == b""


async def test_more_than_a_pipe_holds_waits_until_the_server_reads(plain_world: World) -> None:
    code = "import sys\nsys.stdin.readline()\nprint(len(sys.stdin.readline()), flush=True)\n"
    async with plain_world.start(python(code)) as running:
        running.child.write(b"x" * 3_000_000 + b"\n")
        assert running.child.unread_bytes > 0
        running.child.write(b"y" * 2_000_000 + b"\n")
        assert await line_of(running.child) == b"2000001\n"
        assert running.child.unread_bytes == 0


async def test_the_last_words_of_a_server_are_in_the_reason_without_its_secret(plain_world: World) -> None:
    code = "import os, sys\nprint('no such key:', os.environ['KEY'], file=sys.stderr)\nsys.exit(4)\n"
    tail = Tail()
    child = await start_child(
        plain_world.cells, python(code, environment={"KEY": "hunter2"}), tail=tail,
        mask=lambda text: text.replace("hunter2", "[KEY]"),
    )  # fmt: skip
    with pytest.raises(ServerEnded) as ended:
        await child.read()
    told = await child.stop()

    assert str(ended.value) == told
    assert told.startswith("it ended with exit status 4") and "no such key: [KEY]" in told
    assert "hunter2" not in told and "hunter2" in tail.text()


async def test_a_long_story_fits_into_a_record(plain_world: World) -> None:
    code = "import sys\nfor n in range(400): print('line', n, 'x' * 200, file=sys.stderr)\nsys.exit(1)\n"
    async with plain_world.start(python(code)) as running:
        with pytest.raises(ServerEnded) as ended:
            await running.child.read()

    assert len(str(ended.value)) < 2000 and "line 399" in str(ended.value)


async def test_a_server_that_closes_its_input_is_noticed_while_it_lives(plain_world: World) -> None:
    code = "import os, time\nos.close(0)\nprint('closed', flush=True)\nwhile True: time.sleep(60)\n"
    async with plain_world.start(python(code)) as running:
        assert await line_of(running.child) == b"closed\n"
        running.child.write(b"anybody there?\n")
        with pytest.raises(ServerEnded, match="it closed its input"):
            await running.child.read()
        assert running.child.unread_bytes == 0


async def test_a_server_that_takes_too_much_memory_says_so(plain_world: World) -> None:
    if plain_world.sandbox.isolation().posture != "full":
        pytest.skip("no cgroup counts here")
    code = "held = [bytearray(1 << 20) for _ in range(4000)]\n"
    async with plain_world.start(python(code)) as running:
        with pytest.raises(ServerEnded, match=r"memory.*limits\.memory_mib"):
            await running.child.read()


async def test_a_cancelled_start_leaves_nothing(plain_world: World) -> None:
    mark = f"mark-{os.urandom(8).hex()}"
    start = asyncio.ensure_future(
        start_child(plain_world.cells, python(f"{ECHO}# {mark}"), mask=str)
    )  # fmt: skip
    await asyncio.sleep(0)  # it has begun
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start

    assert not [pid for pid in os.listdir("/proc") if pid.isdigit() and mark in command_of(pid)]


def command_of(pid: str) -> str:
    try:
        return Path("/proc", pid, "cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (("not-there",), "there is no command 'not-there' in the cell"),
        (("/root/somewhere/tool",), "there is no command '/root/somewhere/tool' in the cell"),
        (("/etc/passwd",), "the command '/etc/passwd' may not be executed in the cell"),
    ],
)
async def test_a_command_that_cannot_be_started_is_named(
    plain_world: World, argv: tuple[str, ...], reason: str
) -> None:
    async with plain_world.start(replace(python(""), argv=argv)) as running:
        with pytest.raises(ServerEnded) as ended:
            await running.child.read()

    assert str(ended.value).startswith(reason) and "`read`" in str(ended.value)


async def test_an_unknown_profile_is_refused_with_those_that_there_are(plain_world: World) -> None:
    reason = await plain_world.refusal(python(ECHO, profile="nodejs"))

    assert "'nodejs'" in reason and "npx" in reason and "server" in reason


@pytest.mark.parametrize("writable", [True, False])
async def test_a_missing_directory_is_named(plain_world: World, tmp_path: Path, writable: bool) -> None:
    place = tmp_path / "gone"

    assert str(place) in await plain_world.refusal(python(ECHO, directories=(given(place, writable=writable),)))


async def test_what_an_operator_is_told_does_not_reach_a_client(plain_world: World, tmp_path: Path) -> None:
    with pytest.raises(SandboxUnavailable) as refused:
        async with plain_world.start(python(ECHO, directories=(given(tmp_path / "gone"),))):
            pass

    assert refused.value.message == "the server cannot be started here"


@pytest.mark.skipif(os.geteuid() != 0, reason="only a root gateway runs servers as others")
async def test_a_directory_of_roots_may_be_read_and_not_written(plain_world: World, tmp_path: Path) -> None:
    place = tmp_path / "roots"
    place.mkdir(mode=0o755)
    (place / "note.txt").write_text("hello")
    code = f"print(open({str(place / 'note.txt')!r}).read(), flush=True)\n"

    refused = await plain_world.refusal(python(code, directories=(given(place),)))
    async with plain_world.start(python(code, directories=(given(place, writable=False),))) as running:
        said = await line_of(running.child)

    assert f"{place} belongs to root" in refused and "chown" in refused
    assert said == b"hello\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only a root gateway runs servers as others")
async def test_directories_of_two_users_are_refused_with_both(plain_world: World, tmp_path: Path) -> None:
    places = [tmp_path / "one", tmp_path / "two"]
    for uid, place in zip((1234, 1235), places, strict=True):
        place.mkdir()
        os.chown(place, uid, uid)

    reason = await plain_world.refusal(python(ECHO, directories=tuple(map(given, places))))

    assert "several users (1234, 1235)" in reason


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_an_ordinary_user_cannot_give_what_is_not_theirs(plain_world: World) -> None:
    reason = await plain_world.refusal(python(ECHO, directories=(given(Path("/opt")),)))

    assert "cannot write to /opt" in reason


async def test_a_kept_home_of_another_user_leads_to_its_place(plain_world: World, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only a root gateway runs servers as others")
    quick = replace(python(""), name="moved", profile="npx", argv=("/bin/true",))
    for uid in (1234, 1235):
        place = tmp_path / str(uid)
        place.mkdir()
        os.chown(place, uid, uid)
        reason = await plain_world.refusal(replace(quick, directories=(given(place),)))

    assert str(plain_world.homes / "moved") in reason and "remove it" in reason


def owned_directory(tmp_path: Path) -> Path:
    place = tmp_path / "given"
    place.mkdir()
    return owned(place)
