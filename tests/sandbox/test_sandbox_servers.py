"""A server in a cell: it is spoken with over pipes, lives as long as it is wanted, and leaves nothing."""

from __future__ import annotations

import asyncio
import os

import pytest

from omni_mcp.contracts.errors import SandboxUnavailable
from omni_mcp.contracts.sandbox import Job
from omni_mcp.engines.sandbox.cells import BubblewrapSandbox
from tests.sandbox.conftest import PYTHON, limits

pytestmark = pytest.mark.sandbox

ECHO = """
import sys
print("ready", file=sys.stderr, flush=True)
for line in sys.stdin:
    print(line.strip().upper(), flush=True)
"""


def a_server(code: str, **fields: object) -> Job:
    return Job(profile="python", argv=(PYTHON, "-I", "-S", "-c", code), lasting=True, **fields)  # type: ignore[arg-type]


async def said_to(stdin: int, stdout: int, line: bytes) -> bytes:
    """Write *line* and return the line that comes back."""
    os.write(stdin, line)
    readable = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(stdout, readable.set)
    try:
        answer = b""
        while not answer.endswith(b"\n"):
            async with asyncio.timeout(30):
                await readable.wait()
            readable.clear()
            part = os.read(stdout, 4096)
            assert part, "the server has ended"
            answer += part
        return answer
    finally:
        loop.remove_reader(stdout)


async def test_a_server_answers_as_often_as_it_is_asked(each_sandbox: BubblewrapSandbox) -> None:
    said: list[bytes] = []
    async with each_sandbox.serve(a_server(ECHO), on_stderr=said.append) as served:
        answers = [await said_to(served.stdin, served.stdout, word) for word in (b"one\n", b"two\n")]

    assert answers == [b"ONE\n", b"TWO\n"]
    assert b"".join(said) == b"ready\n"
    assert (await served.ended).reason == "killed"


async def test_limits_of_one_call_do_not_end_a_server(each_sandbox: BubblewrapSandbox) -> None:
    tight = limits(timeout_s=0.2, cpu_s=0.2, output_limit_bytes=1024)
    busy = "import time\nt = time.process_time()\nwhile time.process_time() - t < 0.6: pass\n"
    async with each_sandbox.serve(a_server(busy + ECHO, limits=tight), on_stderr=lambda data: None) as served:
        for _ in range(3):
            answer = await said_to(served.stdin, served.stdout, b"x" * 1000 + b"\n")

            assert answer == b"X" * 1000 + b"\n"


async def test_a_server_that_takes_too_much_memory_ends_and_says_so(each_sandbox: BubblewrapSandbox) -> None:
    hungry = "import time\nheld = [bytearray(1 << 20) for _ in range(400)]\ntime.sleep(60)\n"
    job = a_server(hungry, limits=limits(memory_mib=64))
    async with each_sandbox.serve(job, on_stderr=lambda data: None) as served, asyncio.timeout(30):
        end = await served.ended

    assert end.reason == "memory" or (end.reason, end.exit_code) == ("exit", 1)  # MemoryError, where no cgroup counts


async def test_a_server_that_ends_is_seen_to_end(sandbox: BubblewrapSandbox) -> None:
    async with sandbox.serve(a_server("raise SystemExit(3)"), on_stderr=lambda data: None) as served:
        async with asyncio.timeout(30):
            end = await served.ended

        assert (end.reason, end.exit_code) == ("exit", 3)
        assert os.read(served.stdout, 1) == b""


async def test_whatever_a_server_started_ends_with_it(sandbox: BubblewrapSandbox) -> None:
    mark = f"mark-{os.urandom(8).hex()}"
    daemon = f"""
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execv("/bin/sh", ["sh", "-c", "trap '' TERM HUP; sleep 300 & wait", "{mark}"])
    os._exit(0)
"""
    async with sandbox.serve(a_server(daemon + ECHO), on_stderr=lambda data: None) as served:
        await said_to(served.stdin, served.stdout, b"x\n")
    left = [name for name in os.listdir("/proc") if name.isdigit() and mark in command_of(name)]

    assert left == []


def command_of(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().decode(errors="replace")
    except OSError:
        return ""


async def test_a_server_of_an_unknown_profile_is_refused(sandbox: BubblewrapSandbox) -> None:
    job = Job(profile="nothing", argv=("/bin/true",), lasting=True)
    with pytest.raises(SandboxUnavailable) as caught:
        async with sandbox.serve(job, on_stderr=lambda data: None):
            pass

    assert "nothing" in (caught.value.detail or "")
