"""Yard: the real daemon in front of servers that an operator defined and accepted, in a temporary home."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omni_mcp.contracts.events import OUTCOME_KINDS
from omni_mcp.contracts.ids import iso_time
from omni_mcp.contracts.manifest import Labels
from omni_mcp.engines.catalog.acceptance import accept, answer_to, waiting_of
from omni_mcp.engines.catalog.lock_listing import KeptListing, listings_dir, load_listings
from omni_mcp.engines.catalog.lockfile import LockFile
from omni_mcp.engines.runlog.reader import LogReader
from omni_mcp.engines.sandbox.launcher import base_interpreter
from omni_mcp.server_definition import ServerDefinition, Servers
from omni_mcp.servers_file import save_servers, servers_file_of
from omni_mcp.testing import word_of
from tests.clients.running import Place, Running, new_place, serving

PROGRAM = Path(__file__).with_name("server.py")
ALLOW_ALL = '@id("all") permit (principal, action, resource);'
WRITES = Labels(read_only=False, destructive=False, egress=False, reads_private=False, reads_untrusted=False)
READS = Labels(read_only=True, destructive=False, egress=False, reads_private=False, reads_untrusted=False)
MODERN = "2026-07-28"
PAGES_LIMIT = 200
LOOK_AGAIN_S = 0.05
LISTED_LIMIT_S = 60.0
GENEROUS = "[limits]\ncalls_per_minute = 100000000\npending_per_principal = 1000\nevents_per_run = 100000000\n"
SURFACE = '[surface]\nmode = "full"\n'


@dataclass(frozen=True, slots=True)
class Yard:
    """A home with servers in it; `running` is the daemon."""

    place: Place
    running: Running

    @property
    def pid(self) -> int:
        """Of the daemon."""
        return self.running.process.pid

    def status(self) -> dict[str, Any]:
        """What `omni-mcp status` says."""
        found: dict[str, Any] = self.place.run_json("status")
        return found

    def outcomes(self) -> dict[str, list[str]]:
        """Return how each call on record ended: one word each, unless a promise is broken."""
        ended: dict[str, list[str]] = {}
        at = 0
        with LogReader(self.place.home.log_file) as log:
            while events := log.events_since(at):
                at = events[-1].gid
                for event in events:
                    if event.kind == "tool_call" and event.call:
                        ended.setdefault(event.call, [])
                    elif event.kind in OUTCOME_KINDS and event.call:
                        ended.setdefault(event.call, []).append(word_of(event))
        return ended

    def outcome_counts(self) -> Counter[int]:
        """Return how many calls have how many outcomes; `{1: n}` when all is well."""
        return Counter(len(words) for words in self.outcomes().values())


def stdio(*arguments: str, mounts: Sequence[Mapping[str, Any]] = (), **facts: Any) -> ServerDefinition:
    """The server of this directory as a command that runs in a cell."""
    command = {"command": base_interpreter().binary, "args": ["-I", "-S", str(PROGRAM), *arguments]}
    seen = [{"source": str(PROGRAM)}, *mounts]
    return ServerDefinition.model_validate({**command, "mounts": seen, **facts})


@contextmanager
def over_http(*arguments: str, **facts: Any) -> Iterator[ServerDefinition]:
    """The same server over HTTP, in processes of their own beside the gateway."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(PROGRAM), "--http", *arguments], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        yield ServerDefinition.model_validate({"url": f"http://127.0.0.1:{port}/mcp", **facts})
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@contextmanager
def open_yard(
    servers: Mapping[str, ServerDefinition], *, labels: Labels = WRITES, settings: str = GENEROUS + SURFACE,
    policy: str = ALLOW_ALL,
) -> Iterator[Yard]:  # fmt: skip
    """Run the daemon in front of *servers*, with all that they offered at first accepted and in force."""
    with ExitStack() as stack:
        place = stack.enter_context(new_place())
        prepare(place, servers, settings=settings, policy=policy)
        running = stack.enter_context(serving(place))
        until_listed(place, servers)
        accept_listed(place, labels)
        yard = Yard(place, running)
        until(lambda: offers_all(yard, servers), "accepted tools in force", place)
        yield yard


def prepare(place: Place, servers: Mapping[str, ServerDefinition], *, settings: str, policy: str) -> None:
    """Write what an operator would write before the first start."""
    place.write_policy(policy)
    place.home.settings_file.write_text(settings)
    place.home.settings_file.chmod(0o600)
    save_servers(servers_file_of(place.home), Servers(servers=dict(servers)))


def until_listed(place: Place, servers: Mapping[str, ServerDefinition], *, limit_s: float = LISTED_LIMIT_S) -> None:
    """Wait until the gateway knows what every server offers."""
    until(lambda: load_listings(listings_dir(place.home.data)).keys() >= servers.keys(), "listings", place, limit_s)


def accept_listed(place: Place, labels: Labels) -> None:
    """Say yes to everything that waits, as `omni-mcp accept` does."""
    accept_kept(place, load_listings(listings_dir(place.home.data)).values(), labels)


def accept_kept(place: Place, listings: Any, labels: Labels) -> None:
    """Say yes to everything in *listings*."""
    lock = LockFile(place.home.lock_file)
    answers = [
        answer_to(one, one.difference(), labels)
        for kept in listings
        for one in waiting_of(lock.read(), kept.server, KeptListing.definitions(kept), kept.launch)
    ]
    lock.edit(lambda now: accept(now, answers, by="1000", at=iso_time(time.time_ns())))


def offers_all(yard: Yard, servers: Mapping[str, ServerDefinition]) -> bool:
    """Whether a client is offered something of every server."""
    return {tool["name"].split("__")[0] for tool in listed(yard.running)} >= servers.keys()


def listed(running: Running) -> list[dict[str, Any]]:
    """Return all tools that a client is offered; from the first page again where they change meanwhile."""
    tools: list[dict[str, Any]] = []
    cursor: dict[str, Any] = {}
    for _ in range(PAGES_LIMIT):
        reply = ask(running, "tools/list", cursor)
        if "error" in reply:
            tools, cursor = [], {}
            continue
        page = reply["result"]
        tools += page["tools"]
        if "nextCursor" not in page:
            return tools
        cursor = {"cursor": page["nextCursor"]}
    raise TimeoutError(f"no list came to its end within {PAGES_LIMIT} pages")


def ask(running: Running, method: str, params: Mapping[str, Any], *, limit_s: float = 60.0) -> dict[str, Any]:
    """Make one modern request over HTTP and return the reply."""
    meta = {"io.modelcontextprotocol/protocolVersion": MODERN, "io.modelcontextprotocol/clientCapabilities": {}}
    message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": meta}}
    headers = {
        **running.headers, "Content-Type": "application/json", "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": MODERN, "Mcp-Method": method, "Mcp-Name": str(params.get("name", "")),
    }  # fmt: skip
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=limit_s)
    try:
        connection.request("POST", "/mcp", json.dumps(message).encode(), headers)
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    if answer.getheader("content-type", "").startswith("text/event-stream"):
        body = next(line[5:] for line in body.splitlines() if line.startswith(b"data:") and line[5:].strip())
    reply: dict[str, Any] = json.loads(body)
    return reply


def until(
    condition: Callable[[], bool], what: str, place: Place | None = None, limit_s: float = LISTED_LIMIT_S
) -> None:
    """Wait for what other processes do and nobody announces."""
    ends_s = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > ends_s:
            told = (place.root / "gateway.log").read_text()[-2000:] if place else ""
            raise TimeoutError(f"waited {limit_s:g} s for {what}\n{told}")
        time.sleep(LOOK_AGAIN_S)


def text_of(reply: Mapping[str, Any]) -> str:
    """Return the texts of a result."""
    return "".join(block.get("text", "") for block in reply["result"]["content"])


@contextmanager
def directory_of_nobody_else() -> Iterator[Path]:
    """Make a directory that a server in a cell can be given to write."""
    place = Path(tempfile.mkdtemp(prefix="omni-y-"))
    if os.geteuid() == 0:
        os.chown(place, 1234, 1234)
    place.chmod(0o700)
    try:
        yield place
    finally:
        shutil.rmtree(place)


def as_json(value: object) -> str:
    """For messages of failed tests."""
    return json.dumps(value, indent=1, default=str)[:3000]
