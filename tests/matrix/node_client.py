"""The TypeScript SDKs' clients as `Caller`s: a Node.js process under remote control."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

from tests.matrix.caller import LIMIT_S, Caller, Json, Refused
from tests.matrix.client import META, MODERN
from tests.node.setup import Node

CLIENT, SERVER = "typescript_client.mjs", "typescript.mjs"
SCRIPTS = Path(__file__).resolve().parent / "peers"


class NodeClient(Caller):
    """One client of `kind` v1 or v2, in the mode that it is told."""

    def __init__(self, command: list[str], *, url: str, token: str, kind: str, mode: str) -> None:
        super().__init__()
        self._command = [*command, kind, url, token, mode]
        self._kind = kind
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Json]] = {}
        self._ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @property
    def not_found(self) -> int:
        """As the port. The v2 client says -32602 for either code that it got."""
        return -32602 if self._kind == "v2" else super().not_found

    async def open(self) -> None:
        """As the port."""
        self._process = await asyncio.create_subprocess_exec(
            *self._command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=1 << 24
        )
        self._reading = asyncio.create_task(self._read())
        async with asyncio.timeout(LIMIT_S):
            self.modern = await self._ready == MODERN

    async def close(self) -> None:
        """As the port."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(LIMIT_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        await self._reading

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            said: Json = json.loads(line)
            if "ready" in said:
                self._ready.set_result(said["ready"])
            elif "note" in said:
                self.take_note(said["note"])
            elif "asked" in said:
                self.asked.append(said["asked"])
            elif (waiting := self._waiting.pop(said["id"], None)) is not None and not waiting.done():
                waiting.set_result(said)
        gone = ConnectionError("the client's process has ended")
        waiting_still: list[asyncio.Future[Any]] = [self._ready, *self._waiting.values()]
        for future in waiting_still:
            if not future.done():
                future.set_exception(gone)

    async def _tell(self, do: str, **more: Any) -> Json:
        """Have the client do something and return what came of it."""
        id = next(self._numbers)
        waiting = self._waiting[id] = asyncio.get_running_loop().create_future()
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"id": id, "do": do, **more}).encode() + b"\n")
        async with asyncio.timeout(LIMIT_S):
            said = await waiting
        if "error" in said:
            raise Refused(said["error"]["code"], said["error"]["message"])
        return {"id": id, "ok": said["ok"]}

    async def _prepare(self) -> None:
        await self._tell("answers", given=self.answers)

    async def request(self, method: str, params: Json) -> Json:
        """As the port."""
        found: Json = (await self._tell("request", method=method, params=params))["ok"]
        return found

    def _call(self, tool: str, arguments: Json | None) -> Json:
        meta = {META + "logLevel": "debug"} if self.modern else {}
        return {"name": tool, "arguments": arguments or {}, **({"_meta": meta} if meta else {})}

    async def call(self, tool: str, arguments: Json | None = None, **meta: Any) -> Json:
        """As the port."""
        await self._prepare()
        token = meta.get("progressToken")
        found: Json = (await self._tell("call", params=self._call(tool, arguments), token=token))["ok"]
        return found

    async def begin(self, tool: str, arguments: Json, **meta: Any) -> int:
        """As the port."""
        token = meta.get("progressToken")
        begun: int = (await self._tell("begin", params=self._call(tool, arguments), token=token))["id"]
        return begun

    async def cancel(self, begun: int) -> None:
        """As the port."""
        await self._tell("cancel", begun=begun)

    async def subscribe(self, uri: str) -> None:
        """As the port."""
        await self._tell("subscribe", uri=uri)

    async def unsubscribe(self, uri: str) -> None:
        """As the port."""
        await self._tell("unsubscribe", uri=uri)


def node_command(node: Node, script: str, place: Path) -> list[str]:
    """Return the command of one of our scripts, linked into *place* beside the packages that it imports."""
    for name, target in ((script, SCRIPTS / script), ("node_modules", node.root / "node_modules")):
        if not (place / name).is_symlink():
            (place / name).symlink_to(target)
    return [str(node.binary), "--preserve-symlinks", "--preserve-symlinks-main", str(place / script)]
