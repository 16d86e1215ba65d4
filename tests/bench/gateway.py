"""The measured gateway: the real daemon in a process of its own, with one fake upstream behind it, and lean clients.

Run as a module it is that daemon, or a floor to compare it with: `--echo` is a web server that parses a body and
answers it, `--relay` one that passes the body on to another server and its answer back.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import uvicorn

from omni_mcp.assembly import open_gateway
from omni_mcp.config import Settings
from omni_mcp.daemon.run import run_daemon
from omni_mcp.logs import LineSink
from omni_mcp.paths import find_home
from omni_mcp.testing import Canary
from tests.clients.running import OMNI, Place, Running, new_place, serving

ROOT = Path(__file__).resolve().parent.parent.parent
RULES = '@id("bench") permit (principal, action, resource);'
SETTINGS = {
    "limits": {"calls_per_minute": 100_000_000, "events_per_run": 100_000_000, "pending_per_principal": 1000},
    "server": {"port": 0},
}
MODERN = "2026-07-28"
OLD = "2025-11-25"
INITIALIZED = b'{"jsonrpc":"2.0","method":"notifications/initialized"}'
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
Ask = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]


class Quiet(Canary):
    """The fake upstream of a benchmark: it answers and leaves no trace."""

    def _touch(self, line: str) -> None:
        self.calls.clear()


def main() -> int:
    """Be the daemon, or the floor."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", type=int, default=0, help="serve a floor on this inherited socket")
    parser.add_argument("--relay", type=int, default=0, help="port of the server behind it; without it, echo")
    parser.add_argument("--tools", type=int, default=1)
    given = parser.parse_args()
    if given.socket:
        app = Relay(given.relay) if given.relay else echo_app
        config = uvicorn.Config(app, log_level="error", loop="uvloop", http="httptools", access_log=False)
        uvicorn.Server(config).run(sockets=[socket.socket(fileno=given.socket)])
        return 0
    home = find_home()
    upstream = Quiet(Path(os.devnull), server="bench")
    for number in range(given.tools):
        upstream.tool("echo" if number == 0 else f"tool_{number}")
    opener = partial(open_gateway, sources=[upstream], executors=upstream.executors)
    sink = LineSink(file=None)
    try:
        return run_daemon(
            Settings.model_validate(SETTINGS), home, sink=sink, announce=lambda facts: None, opener=opener
        )
    finally:
        sink.close()


async def echo_app(scope: Any, receive: Any, send: Any) -> None:
    """Parse a body and answer it: what the web server alone costs."""
    if scope["type"] != "http":
        return
    request = orjson.loads(await body_of(receive))
    answer = {"jsonrpc": "2.0", "id": request["id"], "result": request["params"]}
    await reply(send, orjson.dumps(answer))


class Relay:
    """Passes bodies on over kept connections and reads nothing of them: the least that a proxy can do."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._free: list[HttpClient] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI entry."""
        if scope["type"] != "http":
            return
        body = await body_of(receive)
        if not self._free:
            client = HttpClient(self._port)
            await client.open()
            self._free.append(client)
        client = self._free.pop()
        answer = await client.post(body, "")
        self._free.append(client)
        await reply(send, answer)


async def body_of(receive: Any) -> bytes:
    """Return the whole body of a request."""
    body = b""
    while True:
        message = await receive()
        part: bytes = message.get("body", b"")
        body += part
        if not message.get("more_body"):
            return body


async def reply(send: Any, body: bytes) -> None:
    """Answer with JSON."""
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@contextmanager
def bench_gateway(*, tools: int = 1) -> Iterator[Running]:
    """Run the daemon in a fresh home in which everything is permitted."""
    with new_place(PYTHONPATH=str(ROOT)) as place:
        place.write_policy(RULES)
        command = [sys.executable, "-m", "tests.bench.gateway", "--tools", str(tools)]
        with serving(place, command=command) as running:
            yield running


@contextmanager
def floor_server(*, behind: int = 0) -> Iterator[tuple[int, int]]:
    """Run a floor: an echo, or a relay in front of the server at port *behind*. Yields its port and pid."""
    with listening() as (port, handle):
        command = [sys.executable, "-m", "tests.bench.gateway", "--socket", str(handle), "--relay", str(behind)]
        process = subprocess.Popen(command, pass_fds=[handle], env={**os.environ, "PYTHONPATH": str(ROOT)})
        try:
            yield port, process.pid
        finally:
            process.terminate()
            process.wait(10)


@contextmanager
def listening() -> Iterator[tuple[int, int]]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        yield listener.getsockname()[1], listener.fileno()


class HttpClient:
    """One kept connection that asks one thing at a time."""

    def __init__(self, port: int, *, token: str = "", version: str = MODERN, path: str = "/mcp") -> None:
        self._port = port
        self._path = path
        self._token = token
        self.version = version
        self._session = ""
        self._number = 0
        self.is_open = False

    async def open(self) -> None:
        """Connect, and shake hands if the version does that."""
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self.is_open = True
        if self.version == OLD:
            info = {"name": "bench", "version": "1"}
            await self.ask("initialize", {"protocolVersion": OLD, "capabilities": {}, "clientInfo": info})
            self._writer.write(
                self.framed(INITIALIZED, f"Mcp-Session-Id: {self._session}\r\n" if self._session else "")
            )
            await self._read_answer(202)

    async def close(self) -> None:
        """Hang up."""
        self._writer.close()
        await self._writer.wait_closed()

    def reset(self) -> None:
        """Hang up as a client does whose process has gone."""
        self._writer.transport.abort()

    async def end_session(self) -> None:
        """Say goodbye to the session of the handshake."""
        self._writer.write(self.head("DELETE").encode())
        head = await self._reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 2"), head

    def head(self, verb: str) -> str:
        """Return a request without a body, for the session."""
        return (
            f"{verb} /mcp HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nAccept: text/event-stream\r\n"
            f"Authorization: Bearer {self._token}\r\nMCP-Protocol-Version: {self.version}\r\n"
            f"Mcp-Session-Id: {self._session}\r\n\r\n"
        )

    async def ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Send one request and return its reply."""
        self._number += 1
        if self.version == MODERN:
            params = {**params, "_meta": {"io.modelcontextprotocol/protocolVersion": MODERN,
                                          "io.modelcontextprotocol/clientCapabilities": {}}}  # fmt: skip
        body = orjson.dumps({"jsonrpc": "2.0", "id": self._number, "method": method, "params": params})
        routing = f"MCP-Protocol-Version: {self.version}\r\n"
        if self.version == MODERN:
            routing += f"Mcp-Method: {method}\r\nMcp-Name: {params.get('name', '')}\r\n"
        elif self._session:
            routing += f"Mcp-Session-Id: {self._session}\r\n"
        answer: dict[str, Any] = orjson.loads(await self.post(body, routing))
        return answer

    async def post(self, body: bytes, routing: str) -> bytes:
        """Send one body with further headers and return the body of the answer."""
        self._writer.write(self.framed(body, routing))
        return await self._read_body()

    def framed(self, body: bytes, routing: str) -> bytes:
        """Return the whole request."""
        head = (
            f"POST {self._path} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nContent-Type: application/json\r\n"
            f"Accept: application/json, text/event-stream\r\nAuthorization: Bearer {self._token}\r\n"
            f"Content-Length: {len(body)}\r\n{routing}\r\n"
        )
        return head.encode() + body

    async def _read_body(self) -> bytes:
        media_type, body = await self._read_answer(200)
        if media_type != "text/event-stream":
            return body
        return next(line[5:] for line in body.splitlines() if line.startswith(b"data:") and line[5:].strip())

    async def _read_answer(self, status: int) -> tuple[str, bytes]:
        """Return media type and body of an answer that has to have this status."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        pairs = (line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        fields = {name.lower(): value for name, value in pairs}
        assert head.startswith(f"HTTP/1.1 {status}"), head
        self._session = fields.get("mcp-session-id", self._session)
        media_type = fields.get("content-type", "").partition(";")[0]
        if "chunked" not in fields.get("transfer-encoding", ""):
            return media_type, await self._reader.readexactly(int(fields.get("content-length", 0)))
        body = b""
        while size := int((await self._reader.readline()).strip(), 16):
            body += await self._reader.readexactly(size)
            await self._reader.readexactly(2)
        await self._reader.readline()
        return media_type, body


class ShimClient:
    """`omni-mcp stdio` in a process of its own; many requests at a time."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._number = 0
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def open(self) -> None:
        """Start the shim and shake hands."""
        self.process = await asyncio.create_subprocess_exec(
            OMNI, "stdio", env=self._place.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            limit=16 * 1024 * 1024,
        )  # fmt: skip
        self._reading = asyncio.create_task(self._read())
        info = {"name": "bench", "version": "1"}
        await self.ask("initialize", {"protocolVersion": OLD, "capabilities": {}, "clientInfo": info})

    async def close(self) -> None:
        """Say goodbye as a client does: by closing its side."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        await self.process.wait()
        await self._reading

    async def ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Send one request and return its reply."""
        self._number += 1
        number = self._number
        self._waiting[number] = asyncio.get_running_loop().create_future()
        assert self.process.stdin is not None
        frame = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
        self.process.stdin.write(orjson.dumps(frame) + b"\n")
        return await self._taken(number)

    async def _taken(self, number: int) -> dict[str, Any]:
        try:
            return await self._waiting[number]
        finally:
            del self._waiting[number]

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            message = orjson.loads(line)
            waiting = self._waiting.get(message.get("id"))
            if waiting is not None and "method" not in message:
                waiting.set_result(message)


@asynccontextmanager
async def http_clients(port: int, count: int, *, token: str = "", version: str = MODERN) -> AsyncIterator[list[Ask]]:
    """Open *count* connections."""
    clients = [HttpClient(port, token=token, version=version) for _ in range(count)]
    for client in clients:
        await client.open()
    yield [client.ask for client in clients]
    for client in clients:
        await client.close()


@asynccontextmanager
async def shim_clients(place: Place, count: int) -> AsyncIterator[list[Ask]]:
    """Open one shim that *count* askers share, as one desktop client does."""
    client = ShimClient(place)
    await client.open()
    yield [client.ask] * count
    await client.close()


def cpu_s(pid: int) -> float:
    """Return the processor time of a process so far, its threads included and its children not."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def rss_kib(pid: int) -> int:
    """Return the resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise LookupError(f"process {pid} shows no memory")


def many_files() -> None:
    """A client for many connections needs as many descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard) if soft < hard else (soft, hard))


if __name__ == "__main__":
    sys.exit(main())
