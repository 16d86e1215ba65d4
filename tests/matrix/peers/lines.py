"""The hand-written server over stdio: `python -m tests.matrix.peers.lines VERSION`."""

from __future__ import annotations

import asyncio
import json
import sys

from tests.matrix.peers.brain import Json, Server


async def serve(version: str) -> None:
    """Serve the one client at the other end of the pipes until it closes its side."""
    server = Server(version)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 24)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)

    async def say(message: Json) -> None:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()

    server.standing = say
    tasks: set[asyncio.Task[None]] = set()
    while line := await reader.readline():
        task = asyncio.create_task(server.take(json.loads(line), say))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
