"""A desktop assistant's file, one command, and its servers work behind the gateway: with real npm, cells and processes.

The package comes from a source on loopback, so that no test waits for a network.
"""

from __future__ import annotations

import http.server
import io
import json
import os
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.clients.running import OMNI, Place, new_place
from tests.servers.behind import write_profiles

pytestmark = [pytest.mark.sandbox, pytest.mark.node, pytest.mark.timeout(600)]

COMMAND_S = 300.0
PROGRAM = """#!/usr/bin/env node
const tool = {name: "whoami", inputSchema: {type: "object"}};
const answers = {
  initialize: params => ({protocolVersion: params.protocolVersion, capabilities: {tools: {}},
                          serverInfo: {name: "fetched", version: "1.0.0"}}),
  "tools/list": () => ({tools: [tool]}),
  "tools/call": () => ({content: [{type: "text", text: "fetched and called"}]}),
  ping: () => ({}),
};
require("readline").createInterface({input: process.stdin}).on("line", line => {
  const message = JSON.parse(line);
  if (message.id === undefined) return;
  const answer = answers[message.method];
  const rest = answer ? {result: answer(message.params || {})} : {error: {code: -32601, message: "no such method"}};
  console.log(JSON.stringify({jsonrpc: "2.0", id: message.id, ...rest}));
}).on("close", () => process.exit(0));
"""


def package() -> bytes:
    """Return the tarball of a server without dependencies."""
    about = {"name": "fetched-server", "version": "1.0.0", "bin": {"fetched-server": "server.js"}}
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for name, text in (("package/package.json", json.dumps(about)), ("package/server.js", PROGRAM)):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text.encode()), 0o755
            archive.addfile(entry, io.BytesIO(text.encode()))
    return data.getvalue()


@contextmanager
def package_source() -> Iterator[str]:
    """Serve the package as a registry does; yields its address."""
    tarball = package()

    class Registry(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            here = f"http://127.0.0.1:{self.server.server_address[1]}"  # type: ignore[index] # a pair of host and port
            body = b""
            if self.path.endswith(".tgz"):
                body = tarball
            elif self.path == "/fetched-server":
                dist = {"tarball": f"{here}/fetched-server-1.0.0.tgz"}
                version = {"name": "fetched-server", "version": "1.0.0", "bin": {"fetched-server": "server.js"}}
                body = json.dumps(
                    {"name": "fetched-server", "dist-tags": {"latest": "1.0.0"},
                     "versions": {"1.0.0": {**version, "dist": dist}}}
                ).encode()  # fmt: skip
            self.send_response(200 if body else 404)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def omni(place: Place, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [OMNI, *words], env=place.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=COMMAND_S, check=False,
    )  # fmt: skip


def asked_by_the_client(place: Place, entry: dict[str, Any], *requests: dict[str, Any]) -> list[dict[str, Any]]:
    """Start *entry* as the client would, send *requests* one after the other, and return the answers."""
    environment = {**place.environment, **entry.get("env", {})}
    process = subprocess.Popen(
        [entry["command"], *entry["args"]], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    answers: list[dict[str, Any]] = []
    try:
        for number, request in enumerate(requests):
            process.stdin.write(json.dumps({"jsonrpc": "2.0", "id": number, **request}) + "\n")
            process.stdin.flush()
            while (answer := json.loads(process.stdout.readline())).get("id") != number:
                pass
            answers.append(answer)
    finally:
        process.stdin.close()
        process.wait(COMMAND_S)
        process.stdout.close()
    return answers


@pytest.fixture
def desktop(cells: None) -> Iterator[Place]:
    """A person with a home of their own, whose desktop assistant starts one package."""
    with new_place() as place:
        home = place.root / "person"
        file = home / ".config" / "Claude" / "claude_desktop_config.json"
        file.parent.mkdir(parents=True)
        entry = {"command": "npx", "args": ["-y", "fetched-server"]}
        file.write_text(json.dumps({"mcpServers": {"fetched": entry}}))
        place.extra.update({"HOME": str(home), "XDG_CONFIG_HOME": "", "XDG_DATA_HOME": ""})
        write_profiles(place)
        yield place
        omni(place, "drain")


def test_one_command_after_which_the_assistant_calls_its_server_through_the_gateway(desktop: Place) -> None:
    file = Path(desktop.extra["HOME"]) / ".config" / "Claude" / "claude_desktop_config.json"
    initialize = {
        "method": "initialize",
        "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "c", "version": "1"}},
    }
    with package_source() as source:
        Path(desktop.extra["HOME"], ".npmrc").write_text(f"registry={source}\n")
        imported = omni(desktop, "import", "--yes", "--packages", "--accept", "read-only", "--let", "read-only")
        moved = omni(desktop, "connect", "claude-desktop", "--move")
    entries = json.loads(file.read_text())["mcpServers"]
    call = {"method": "tools/call", "params": {"name": "fetched__whoami", "arguments": {}}}
    _, answer = asked_by_the_client(desktop, entries["omni"], initialize, call)

    assert imported.returncode == 0, imported.stdout + imported.stderr
    assert moved.returncode == 0 and set(entries) == {"omni"}, moved.stdout + moved.stderr
    # The source is gone by now: what was fetched stays.
    assert answer["result"]["content"][0]["text"] == "fetched and called", answer


def test_without_a_yes_nothing_is_fetched_and_the_named_command_is_all_that_is_missing(desktop: Place) -> None:
    with package_source() as source:
        Path(desktop.extra["HOME"], ".npmrc").write_text(f"registry={source}\n")
        said = omni(desktop, "import", "--yes").stdout
        before = omni(desktop, "servers", "test", "fetched")
        [command] = [line.partition("before that: ")[2] for line in said.splitlines() if "fetched from pack" in line]
        assert omni(desktop, *command.split()[1:]).returncode == 0
        after = omni(desktop, "servers", "test", "fetched")
    taken = omni(desktop, "servers", "set", "fetched", "--no-hosts")
    offline = omni(desktop, "servers", "test", "fetched")

    assert before.returncode == 1 and "omni-mcp servers set NAME --packages" in before.stdout, before.stdout
    assert after.returncode == 0, after.stdout
    assert taken.returncode == 0 and offline.returncode == 0, offline.stdout


def test_the_settings_of_a_checkout_do_not_say_where_packages_come_from(desktop: Place, tmp_path: Path) -> None:
    (tmp_path / ".npmrc").write_text("registry=http://evil.example.org/\n")
    Path(desktop.extra["HOME"], ".npmrc").write_text("registry=http://mine.example.org/\n")
    said = subprocess.run(
        [OMNI, "import", "--dry-run", "--json"], env=desktop.environment, cwd=tmp_path, capture_output=True, text=True,
        timeout=COMMAND_S, check=False,
    ).stdout  # fmt: skip
    assert json.loads(said)["packages"]["hosts"] == ["mine.example.org:80"]
    assert os.listdir(tmp_path) == [".npmrc"]
