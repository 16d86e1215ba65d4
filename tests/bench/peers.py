"""Peers: other gateways in front of the same server, each installed in a throw-away environment with its version.

A peer that does not start is a failure with its last lines. Nothing of them is in our environment.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
ENVIRONMENTS = ROOT / ".work" / "peers"
INSTALL_LIMIT_S = 600
START_LIMIT_S = 90.0
LAST_LINES = 12
LOOK_AGAIN_S = 0.1
SECRET = "a-secret-of-this-benchmark-alone-0123456789"
FASTMCP = """
import sys
from fastmcp.server import create_proxy
create_proxy(sys.argv[1], name="proxy").run(
    transport="http", host="127.0.0.1", port=int(sys.argv[2]), path="/mcp", show_banner=False, log_level="error"
)
"""


class PeerFailed(Exception):
    """It could not be installed or did not start; the message holds its last lines."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One running peer: where it listens, which tool of it is the server's echo, and its processes."""

    name: str
    port: int
    path: str
    tool: str
    token: str
    pid: int


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of peer: the distribution it is, and what it is called here."""

    name: str
    distribution: str


KINDS = (
    Kind("FastMCP proxy", "fastmcp"), Kind("mcp-proxy", "mcp-proxy"), Kind("ContextForge", "mcp-contextforge-gateway"),
)  # fmt: skip


def environment_of(kind: Kind) -> Path:
    """Return the environment of a peer, made on first use.

    Raises:
        PeerFailed: pip failed.
    """
    place = ENVIRONMENTS / kind.distribution
    stamp = place / "installed"
    if not stamp.exists():
        shutil.rmtree(place, ignore_errors=True)
        for command in ([sys.executable, "-m", "venv", str(place)],
                        [str(place / "bin" / "pip"), "install", "-q", kind.distribution]):  # fmt: skip
            end = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_LIMIT_S, check=False)
            if end.returncode != 0:
                raise PeerFailed(f"{kind.name} could not be installed:\n{last_lines(end.stdout + end.stderr)}")
        stamp.touch()
    return place


def version_of(kind: Kind) -> str:
    """Return the version that is installed."""
    code = "import importlib.metadata as m, sys; print(m.version(sys.argv[1]))"
    python = str(environment_of(kind) / "bin" / "python")
    return subprocess.run([python, "-c", code, kind.distribution], capture_output=True, text=True).stdout.strip()


@contextmanager
def running(kind: Kind, upstream: str) -> Iterator[Peer]:
    """Run a peer in front of the server at *upstream*, one process, with its log at the level of errors.

    Raises:
        PeerFailed: it did not start.
    """
    place = environment_of(kind)
    with tempfile.TemporaryDirectory(prefix="omni-p-") as directory:
        port, said = free_port(), Path(directory) / "said"
        command, path, more = commands(kind, place, upstream, port, Path(directory))
        with said.open("wb") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=directory,
                env={**os.environ, **more},
            )  # fmt: skip
        try:
            until_listening(kind, process, port, said)
            tool, token = "echo", ""
            if kind.distribution == "mcp-contextforge-gateway":
                token = forge_token(place)
                path, tool = registered(kind, port, token, upstream, said)
            yield Peer(kind.name, port, path, tool, token, process.pid)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def commands(
    kind: Kind, place: Path, upstream: str, port: int, directory: Path
) -> tuple[Sequence[str], str, dict[str, str]]:
    """Return how a peer is started, at which path it serves, and its variables."""
    if kind.distribution == "fastmcp":
        return [str(place / "bin" / "python"), "-c", FASTMCP, upstream, str(port)], "/mcp", {}
    if kind.distribution == "mcp-proxy":
        words = [str(place / "bin" / "mcp-proxy"), "--host", "127.0.0.1", "--port", str(port), "--log-level", "ERROR"]
        behind = [sys.executable, "-m", "tests.bench.echo_server", "--stdio"]  # it serves commands, and no URL
        return [*words, "--pass-environment", "--", *behind], "/mcp", {"PYTHONPATH": str(ROOT)}
    settings = {
        "DATABASE_URL": f"sqlite:///{directory}/forge.db", "JWT_SECRET_KEY": SECRET, "AUTH_ENCRYPTION_SECRET": SECRET,
        "LOG_LEVEL": "ERROR", "MCPGATEWAY_UI_ENABLED": "false", "MCPGATEWAY_ADMIN_API_ENABLED": "true",
        "AUTH_REQUIRED": "true", "PLATFORM_ADMIN_EMAIL": "admin@example.com", "PLATFORM_ADMIN_PASSWORD": SECRET,
        "SSRF_ALLOW_LOCALHOST": "true", "SSRF_ALLOW_PRIVATE_NETWORKS": "true", "CACHE_TYPE": "memory",
        "RATE_LIMITING_ENABLED": "false", "TOOL_RATE_LIMIT": "1000",
        "REQUIRE_STRONG_SECRETS": "false", "HOST": "127.0.0.1", "PORT": str(port),
    }  # fmt: skip
    words = [str(place / "bin" / "mcpgateway"), "--host", "127.0.0.1", "--port", str(port)]
    return words, "/mcp/", settings


def forge_token(place: Path) -> str:
    """Have ContextForge's own command mint a token for its administrator."""
    command = [
        str(place / "bin" / "python"), "-m", "mcpgateway.utils.create_jwt_token", "--username", "admin@example.com",
        "--admin", "--exp", "600", "--secret", SECRET,
    ]  # fmt: skip
    end = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "JWT_SECRET_KEY": SECRET})
    if end.returncode != 0:
        raise PeerFailed(f"ContextForge minted no token:\n{last_lines(end.stderr)}")
    return end.stdout.split()[-1]


def registered(kind: Kind, port: int, token: str, upstream: str, said: Path) -> tuple[str, str]:
    """Register the server at ContextForge and make a virtual server of its tools; returns its path and the tool."""
    try:
        made = forge(port, token, "/gateways", {"name": "bench", "url": upstream, "transport": "STREAMABLEHTTP"})
        tools = [tool for tool in forge(port, token, "/tools", None) if "echo" in tool["name"]]
        server = forge(port, token, "/servers", {"server": {
            "name": "bench", "associated_tools": [tools[0]["id"]]}})  # fmt: skip
    except (urllib.error.URLError, OSError, KeyError, IndexError, ValueError, TypeError) as error:
        body = error.read().decode(errors="replace")[:1500] if isinstance(error, urllib.error.HTTPError) else ""
        raise PeerFailed(f"{kind.name} took no server: {error!r} {body}\n{last_lines(said.read_text())}") from error
    assert made
    return f"/servers/{server['id']}/mcp/", str(tools[0]["name"])


def forge(port: int, token: str, path: str, body: Any) -> Any:
    """Ask ContextForge's own API."""
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    data = json.dumps(body).encode() if body is not None else None
    with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers)) as answer:
        return json.load(answer)


def until_listening(kind: Kind, process: subprocess.Popen[bytes], port: int, said: Path) -> None:
    """Wait until a peer accepts connections."""
    ends_s = time.monotonic() + START_LIMIT_S
    while time.monotonic() < ends_s and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(LOOK_AGAIN_S)
    told = last_lines(said.read_text(errors="replace"))
    raise PeerFailed(f"{kind.name} did not start (exit status {process.poll()}):\n{told}")


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def last_lines(text: str) -> str:
    """Return the end of what a program said."""
    return "\n".join(text.strip().splitlines()[-LAST_LINES:])
