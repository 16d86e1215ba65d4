"""A client script: what is sent, line by line, what a question is answered with, and the raw bytes that come back."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from omni_mcp.protocol.eras import META_CAPABILITIES, META_VERSION, MODERN_VERSIONS

Json = dict[str, Any]
WAIT_S = 60.0
MODERN, HANDSHAKE = MODERN_VERSIONS[-1], "2025-11-25"
LINE_BYTES = 4 * 1024 * 1024
ANSWERS: dict[str, Json] = {
    "elicitation/create": {"action": "accept", "content": {"name": "Ann"}},
    "sampling/createMessage": {"role": "assistant", "model": "m", "content": {"type": "text", "text": "said"}},
    "roots/list": {"roots": [{"uri": "file:///here"}]},
}
CAPABILITIES: Json = {"elicitation": {}, "sampling": {}, "roots": {}}


@dataclass(slots=True)
class Script:
    """Requests in order. Those that a modern server answers with `input_required` are sent again with the answers."""

    modern: bool
    requests: list[tuple[str, Json]] = field(default_factory=list)
    answers: Mapping[str, Json] = field(default_factory=lambda: dict(ANSWERS))

    def add(self, method: str, **params: Any) -> Script:
        self.requests.append((method, params))
        return self

    def call(self, name: str, meta: Json | None = None, **arguments: Any) -> Script:
        more = {"_meta": meta} if meta else {}
        return self.add("tools/call", name=name, arguments=arguments, **more)


@dataclass(frozen=True, slots=True)
class Heard:
    """What a client got: each line as it came."""

    lines: tuple[bytes, ...]
    stderr: str
    code: int

    @property
    def raw(self) -> bytes:
        return b"".join(self.lines)

    @property
    def replies(self) -> list[Json]:
        return [message for line in self.lines if "id" in (message := json.loads(line)) and "method" not in message]


async def run_script(command: Sequence[str], environment: Mapping[str, str], script: Script) -> Heard:
    """Run *command* and hold the script's conversation with it, then close its input and wait for its end."""
    process = await asyncio.create_subprocess_exec(
        *command, env=dict(environment), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE, limit=LINE_BYTES,
    )  # fmt: skip
    talk = _Talk(process, script)
    try:
        async with asyncio.timeout(WAIT_S):
            stderr = asyncio.ensure_future(_all(process))
            with contextlib.suppress(EOFError):
                await talk.hold()
            assert process.stdin is not None
            process.stdin.close()
            code = await process.wait()
            return Heard(tuple(talk.lines), (await stderr).decode(), code)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _all(process: asyncio.subprocess.Process) -> bytes:
    assert process.stderr is not None
    return await process.stderr.read()


class _Talk:
    def __init__(self, process: asyncio.subprocess.Process, script: Script) -> None:
        self._process = process
        self._script = script
        self._number = 0
        self.lines: list[bytes] = []

    async def hold(self) -> None:
        if not self._script.modern:
            info = {"name": "script", "version": "1"}
            wanted = {"protocolVersion": HANDSHAKE, "capabilities": CAPABILITIES, "clientInfo": info}
            await self._request("initialize", wanted)
            await self._send({"jsonrpc": "2.0", "method": "notifications/initialized"})
        for method, params in self._script.requests:
            reply = await self._request(method, params)
            while (result := reply.get("result", {})).get("resultType") == "input_required":
                answers = {
                    key: self._script.answers[one["method"]] for key, one in result.get("inputRequests", {}).items()
                }
                again = {**params, "inputResponses": answers, "requestState": result["requestState"]}
                reply = await self._request(method, again)

    async def _request(self, method: str, params: Json) -> Json:
        self._number += 1
        number = self._number
        if self._script.modern:
            envelope = {META_VERSION: MODERN, META_CAPABILITIES: CAPABILITIES}
            params = {**params, "_meta": {**envelope, **params.get("_meta", {})}}
        await self._send({"jsonrpc": "2.0", "id": number, "method": method, "params": params})
        while True:
            message = await self._receive()
            if "method" in message and "id" in message:
                answer = self._script.answers[message["method"]]
                await self._send({"jsonrpc": "2.0", "id": message["id"], "result": answer})
            elif message.get("id") == number and "method" not in message:
                return message

    async def _send(self, message: Json) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        await self._process.stdin.drain()

    async def _receive(self) -> Json:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise EOFError
        self.lines.append(line)
        message: Json = json.loads(line)
        return message
