"""A proxy of the tests on loopback: answers each request by a script, and keeps what it was asked."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omni_mcp.paths import bundled

Script = Callable[[int, str], bytes | None]  # (number from 1, request) -> what is sent; None: hang up at once
_CALL = """
import json, sys
sys.path[:0] = sys.argv[1:3]
import importlib, worker
code, answer = worker._call(sys.argv[3], json.loads(sys.stdin.read()))
print(answer.decode())
"""


def respond(status: int, body: bytes = b"", *, length: int | None = None, **headers: str) -> bytes:
    """Return a response; *length* is what it says of its body if that is a lie."""
    fields = {"Content-Length": str(len(body) if length is None else length)}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status} Some\r\n{head}Connection: close\r\n\r\n".encode("latin-1") + body


def denied(reason: str = "not_granted", *, status: int = 403, word: str = "egress-denied") -> bytes:
    """Return the refusal of the gateway's proxy."""
    return respond(status, json.dumps({"reason": reason}).encode(), X_Omni_Error=word)


@dataclass
class LoopbackProxy:
    """Listens until its context is left. What it `drips` is sent after the answer, five times a second, for ever."""

    script: Script
    keep_open: bool = False
    drips: bytes = b""
    requests: list[str] = field(default_factory=list)
    port: int = 0

    @contextmanager
    def listening(self) -> Iterator[LoopbackProxy]:
        held: list[socket.socket] = []
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.port = server.getsockname()[1]
            thread = threading.Thread(target=self._serve, args=(server, held), daemon=True)
            thread.start()
            yield self
            server.shutdown(socket.SHUT_RDWR)
            thread.join(20)
        for connection in held:
            connection.close()

    def _serve(self, server: socket.socket, held: list[socket.socket]) -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            self.requests.append(_whole(connection))
            answer = self.script(len(self.requests), self.requests[-1])
            if answer is not None:
                connection.sendall(answer)
            while self.drips and _sent(connection, self.drips):
                time.sleep(0.2)
            if self.keep_open:
                held.append(connection)
            else:
                connection.close()

    def call(self, function: str, arguments: dict[str, Any], room: Path) -> dict[str, Any]:
        """Call a tool's function in a process of its own; returns its result, or `{"error": ...}`."""
        places = [str(bundled("sandbox")), str(bundled("sandbox") / "tools")]
        done = subprocess.run(
            [sys.executable, "-I", "-c", _CALL, *places, f"http_tools:{function}"], cwd=room, timeout=60, text=True,
            input=json.dumps(arguments), capture_output=True, check=True,
            env={"PATH": os.environ["PATH"], "http_proxy": f"http://127.0.0.1:{self.port}"},
        )  # fmt: skip
        found: dict[str, Any] = json.loads(done.stdout)
        return found


def _sent(connection: socket.socket, data: bytes) -> bool:
    try:
        connection.sendall(data)
    except OSError:
        return False
    return True


def _whole(connection: socket.socket) -> str:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    while lengths and len(body) < int(lengths[0]):
        body += connection.recv(65536)
    return (head + b"\r\n\r\n" + body).decode("latin-1")
