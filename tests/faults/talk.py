"""The plainest clients that can make a call and tell an answer from a broken connection."""

from __future__ import annotations

import http.client
import json
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tests.clients.running import OMNI, Place, Running

VERSION = "2026-07-28"
ANSWER_LIMIT_S = 30.0


@dataclass(frozen=True, slots=True)
class Reply:
    """What the client knows afterwards. `message` None: the connection broke before an answer came."""

    mark: str
    message: dict[str, Any] | None

    @property
    def ok(self) -> bool:
        """Whether the tool answered."""
        return self.message is not None and not (self.message.get("result") or {"isError": True}).get("isError")

    @property
    def code(self) -> str:
        """Our code of a failed call; empty for an answer of the tool and for a broken connection."""
        if self.message is None or self.ok:
            return ""
        holder = self.message.get("result") or self.message["error"].get("data") or {}
        facts = (holder.get("_meta") or holder).get("io.omni-mcp/error") or holder
        return str(facts.get("code", ""))


def request(identifier: int, tool: str, arguments: dict[str, Any]) -> bytes:
    """Return one modern `tools/call`, which needs no session and so no words before it."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": VERSION,
        "io.modelcontextprotocol/clientInfo": {"name": "faults", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    params = {"name": tool, "arguments": arguments, "_meta": meta}
    return json.dumps({"jsonrpc": "2.0", "id": identifier, "method": "tools/call", "params": params}).encode()


def call_http(gateway: Running, tool: str, mark: str) -> Reply:
    """Make one call over HTTP."""
    headers = {
        **gateway.headers,
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": VERSION,
        "Mcp-Method": "tools/call",
        "Mcp-Name": tool,
    }
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=ANSWER_LIMIT_S)
    try:
        connection.request("POST", "/mcp", request(1, tool, {"mark": mark}), headers)
        return Reply(mark, json.loads(connection.getresponse().read()))
    except (OSError, http.client.HTTPException, ValueError):
        return Reply(mark, None)
    finally:
        connection.close()


def call_all_http(gateway: Running, tool: str, marks: Sequence[str]) -> list[Reply]:
    """Make a call for each mark, all at once."""
    with ThreadPoolExecutor(len(marks)) as pool:
        return list(pool.map(lambda mark: call_http(gateway, tool, mark), marks))


def call_all_lines(
    place: Place,
    tool: str,
    marks: Sequence[str],
    command: Sequence[str] = (OMNI, "stdio"),
    *,
    then_kill: Callable[[int], None] | None = None,
) -> list[Reply]:
    """Make a call for each mark over the stdin and stdout of *command*, all at once.

    *then_kill* gets the pid of *command* once every answer has come.
    """
    process = subprocess.Popen(
        [*command], env=place.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    with process:
        assert process.stdin is not None and process.stdout is not None
        answers: dict[int, dict[str, Any]] = {}
        try:
            with suppress(BrokenPipeError):  # it may be killed while it reads
                process.stdin.write(b"".join(request(n, tool, {"mark": mark}) + b"\n" for n, mark in enumerate(marks)))
                process.stdin.flush()
            answers = _read_answers(process, len(marks))
            if then_kill is not None:
                then_kill(process.pid)
        finally:
            with suppress(BrokenPipeError):
                process.stdin.close()
            _end(process)
    return [Reply(mark, answers.get(n)) for n, mark in enumerate(marks)]


def _read_answers(process: subprocess.Popen[bytes], count: int) -> dict[int, dict[str, Any]]:
    """Read until every request has its answer or nothing more comes; a hang is ended by the test's own limit."""
    assert process.stdout is not None
    answers: dict[int, dict[str, Any]] = {}
    while len(answers) < count and (line := process.stdout.readline()):
        message = json.loads(line)
        if "method" not in message and message.get("id") is not None:
            answers[message["id"]] = message
    return answers


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(ANSWER_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
