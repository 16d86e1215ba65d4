"""A server that breaks in every way on request, over stdio or HTTP. Standard library only, one file: it runs in a cell.

    python server.py [--http] [--tools N] [--names LENGTH] [--restless SECONDS] [--starts FILE]

Every tool is a fault of its name; `echo` is none. Over HTTP the answer to a call is an event stream, so that a line
here is an event there; the process that listens starts another one when the one that serves has died.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

VERSION = "2025-11-25"
SELF = str(uuid.uuid4())  # another one for each process
OPEN = {"type": "object", "additionalProperties": True}
DRIP_S = 0.02
FILLER = b"x" * (1 << 20)


class Out:
    """Where the answers to one call go; lines over stdio, events over HTTP."""

    def __init__(self, write: Callable[[bytes], None], *, before: bytes = b"", after: bytes = b"\n") -> None:
        self.raw = write
        self.before, self.after = before, after

    def line(self, data: bytes) -> None:
        self.raw(self.before + data + self.after)

    def say(self, message: dict[str, Any]) -> None:
        self.line(json.dumps({"jsonrpc": "2.0", **message}).encode())

    def text(self, id: Any, words: str) -> None:
        self.say({"id": id, "result": {"content": [{"type": "text", "text": words}]}})


Fault = Callable[[Any, dict[str, Any], Out], None]


def echo(id: Any, given: dict[str, Any], out: Out) -> None:
    out.text(id, str(given.get("text", "")))


def who(id: Any, given: dict[str, Any], out: Out) -> None:
    out.text(id, SELF)


def die(id: Any, given: dict[str, Any], out: Out) -> None:
    os._exit(3)


def hang(id: Any, given: dict[str, Any], out: Out) -> None:
    """Never answer; over HTTP the stream stays open until the caller has gone."""
    if out.before:
        time.sleep(float(given.get("seconds", 30)))


def slow_bytes(id: Any, given: dict[str, Any], out: Out) -> None:
    data = json.dumps({"jsonrpc": "2.0", "id": id, "result": {"content": [{"type": "text", "text": "drip"}]}})
    for byte in out.before + data.encode() + out.after:
        out.raw(bytes([byte]))


def slow_forever(id: Any, given: dict[str, Any], out: Out) -> None:
    out.raw(out.before + b'{"jsonrpc":"2.0","id":%d,"result":{"content":[{"type":"text","text":"' % id)
    ends_s = time.monotonic() + float(given.get("seconds", 5))
    while time.monotonic() < ends_s:
        out.raw(b"x")
        time.sleep(DRIP_S)
    out.raw(b'"}]}}' + out.after)


def half_and_wait(id: Any, given: dict[str, Any], out: Out) -> None:
    out.raw(out.before + b'{"jsonrpc":"2.0","id":%d,"result":{"content":[{"type":"te' % id)
    time.sleep(float(given.get("seconds", 5)))
    out.raw(b'xt"}' + out.after)


def half_and_die(id: Any, given: dict[str, Any], out: Out) -> None:
    out.raw(out.before + b'{"jsonrpc":"2.0","id":%d,"result":{"content":[{"type":"te' % id)
    os._exit(3)


def noise(id: Any, given: dict[str, Any], out: Out) -> None:
    for junk in (b"Listening on stdin!", b"\xff\xfe\xfd", b"{}", b"[]", b"17", b"", b"   ", b'{"jsonrpc":"1.0"}'):
        out.line(junk)
    out.line(b'{"jsonrpc":"2.0","id":null,"result":{}}')
    out.text(id, "through the noise")


def noise_forever(id: Any, given: dict[str, Any], out: Out) -> None:
    ends_s = time.monotonic() + float(given.get("seconds", 5))
    while time.monotonic() < ends_s:
        for _ in range(50):
            out.line(b"not JSON at all, and no end of it")
        time.sleep(DRIP_S)


def flood(id: Any, given: dict[str, Any], out: Out) -> None:
    said = b'{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"x"}}'
    lines = (out.before + said + out.after) * 100
    for _ in range(int(given.get("lines", 5000)) // 100):
        out.raw(lines)
    out.text(id, "flooded")


def utf8(id: Any, given: dict[str, Any], out: Out) -> None:
    out.line(b'{"jsonrpc":"2.0","result":{"content":[{"type":"text","text":"\xff\xfe"}]},"id":%d}' % id)


def wrong_id(id: Any, given: dict[str, Any], out: Out) -> None:
    out.text(999_999, "not yours")
    out.text("a string", "nor this")
    out.text(id, "mine")


def only_wrong_id(id: Any, given: dict[str, Any], out: Out) -> None:
    out.text(999_999, "not yours")
    hang(id, given, out)


def twice(id: Any, given: dict[str, Any], out: Out) -> None:
    out.text(id, "first")
    out.text(id, "second")


def nan(id: Any, given: dict[str, Any], out: Out) -> None:
    out.line(b'{"jsonrpc":"2.0","id":%d,"result":{"content":[],"structuredContent":{"x":NaN}}}' % id)


def deep(id: Any, given: dict[str, Any], out: Out) -> None:
    inner = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    out.line(b'{"jsonrpc":"2.0","id":%d,"result":{"content":[],"structuredContent":%s}}' % (id, inner))


def big(id: Any, given: dict[str, Any], out: Out) -> None:
    left = int(given["bytes"])
    out.raw(out.before + b'{"jsonrpc":"2.0","id":%d,"result":{"content":[{"type":"text","text":"' % id)
    if given.get("fresh"):
        out.raw(str(uuid.uuid4()).encode())
    while left > 0:
        out.raw(FILLER[:left])
        left -= len(FILLER)
    out.raw(b'"}]}}' + out.after)


FAULTS: dict[str, Fault] = {
    one.__name__: one
    for one in (
        echo, who, die, hang, slow_bytes, slow_forever, half_and_wait, half_and_die, noise, noise_forever, flood, utf8,
        wrong_id, only_wrong_id, twice, nan, deep, big,
    )
}  # fmt: skip


class Server:
    """What it offers and how it answers, on either transport."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._tick = 0

    def tools(self) -> list[dict[str, Any]]:
        """All tools: the faults, and what the options add."""
        names = [*FAULTS, *(f"tool_{number}" for number in range(self._options.tools))]
        if self._options.names:
            names += [f"{number}_".ljust(self._options.names, "n") for number in range(20)]
        if self._options.restless:
            names.append(f"tick_{self._tick}")
        return [{"name": name, "description": f"Does {name}.", "inputSchema": OPEN} for name in names]

    def changing(self, say: Callable[[dict[str, Any]], None]) -> None:
        """Offer another tool again and again, and say so."""
        while self._options.restless:
            time.sleep(self._options.restless)
            self._tick += 1
            say({"method": "notifications/tools/list_changed"})

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        """Answer anything but a call."""
        method = message.get("method")
        if method == "initialize":
            return {"result": {"protocolVersion": VERSION, "capabilities": {"tools": {"listChanged": True}},
                               "serverInfo": {"name": "faults", "version": "1"}}}  # fmt: skip
        if method == "tools/list":
            return {"result": {"tools": self.tools()}}
        if method in ("ping", "logging/setLevel"):
            return {"result": {}}
        return {"error": {"code": -32601, "message": "Method not found"}}

    def call(self, message: dict[str, Any], out: Out) -> None:
        """Run a fault; one whose caller has gone ends."""
        params = message["params"]
        with contextlib.suppress(OSError):
            FAULTS.get(params["name"], echo)(message["id"], params.get("arguments") or {}, out)


def over_stdio(server: Server) -> None:
    """Serve lines until the input ends."""
    turn = threading.Lock()

    def write(data: bytes) -> None:
        with turn:
            view = memoryview(data)
            while view:
                view = view[os.write(1, view) :]

    out = Out(write)
    threading.Thread(target=server.changing, args=(out.say,), daemon=True).start()
    for line in sys.stdin.buffer:
        message = json.loads(line)
        if message.get("method") == "tools/call":
            threading.Thread(target=server.call, args=(message, out), daemon=True).start()
        elif "id" in message and "method" in message:
            out.say({"id": message["id"], **server.answer(message)})


def over_http(server: Server, listener: socket.socket) -> None:
    """Serve connections of a listening socket, a thread each."""
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve_connection, args=(server, connection), daemon=True).start()


def serve_connection(server: Server, connection: socket.socket) -> None:
    """Answer the requests of one connection."""
    with connection, connection.makefile("rb") as stream:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while (asked := read_request(stream)) is not None:
                answer_request(server, connection, *asked)
        except OSError:
            pass


def read_request(stream: Any) -> tuple[str, bytes] | None:
    """Return method and body of the next request; None at the end."""
    first = stream.readline().decode()
    if not first.strip():
        return None
    length = 0
    while line := stream.readline().decode().strip():
        name, _, value = line.partition(":")
        if name.lower() == "content-length":
            length = int(value)
    return first.split()[0], stream.read(length)


def answer_request(server: Server, connection: socket.socket, method: str, body: bytes) -> None:
    """Answer one request: a call with events, anything else with JSON or a bare status."""
    if method == "GET" and server._options.restless:
        out = events(connection)
        server.changing(out.say)
    message = json.loads(body) if method == "POST" else {}
    if message.get("method") == "tools/call":
        out = events(connection)
        server.call(message, out)
        connection.sendall(b"0\r\n\r\n")
    elif "id" in message and "method" in message:
        reply = json.dumps({"jsonrpc": "2.0", "id": message["id"], **server.answer(message)}).encode()
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(reply)}\r\n"
        connection.sendall(head.encode() + b"mcp-session-id: s\r\n\r\n" + reply)
    else:
        status = b"405 No" if method == "GET" else b"202 Accepted"
        connection.sendall(b"HTTP/1.1 %s\r\ncontent-length: 0\r\n\r\n" % status)


def events(connection: socket.socket) -> Out:
    """Begin an event stream in chunks."""
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")

    def chunk(data: bytes) -> None:
        if data:
            connection.sendall(b"%x\r\n%s\r\n" % (len(data), data))

    return Out(chunk, before=b"data: ", after=b"\n\n")


def always(server: Server, listener: socket.socket, started: Callable[[], None]) -> None:
    """Have one process after the other serve the socket."""
    parent = os.getpid()
    while os.getppid() != 1:
        child = os.fork()
        if child == 0:
            started()
            threading.Thread(target=end_with, args=(parent,), daemon=True).start()
            over_http(server, listener)
        os.waitpid(child, 0)


def end_with(parent: int) -> None:
    """End when the process that listens has ended."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(0)


def main() -> None:
    """Serve until the other side goes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--http", action="store_true", help="serve a free port of loopback and print it")
    parser.add_argument("--tools", type=int, default=0, help="this many more tools")
    parser.add_argument("--names", type=int, default=0, help="tools with names of this length, too")
    parser.add_argument("--restless", type=float, default=0, help="offer another tool every so many seconds")
    parser.add_argument("--starts", default="", help="add a line to this file at each start")
    options = parser.parse_args()

    def started() -> None:
        if options.starts:
            with open(options.starts, "a") as file:
                file.write(f"{os.getpid()}\n")

    server = Server(options)
    if not options.http:
        started()
        over_stdio(server)
        return
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        print(listener.getsockname()[1], flush=True)
        always(server, listener, started)


if __name__ == "__main__":
    main()
