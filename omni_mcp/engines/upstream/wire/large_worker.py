"""The process that parses large messages of servers: bytes in one file, a checked value without its long texts out.

    python -m omni_mcp.engines.upstream.wire.large_worker FD

Each request is one datagram with two descriptors, the message and an empty file for the answer; each reply is one byte.
The answer: eight bytes with the length of a JSON head, the head, then the long texts one after another.
"""

from __future__ import annotations

import mmap
import os
import resource
import socket
import sys
from typing import Any

import orjson

from omni_mcp.protocol.frames import BadFrame, parse

LONG_TEXT = 64 * 1024  # characters; what is shorter stays where it is
MEMORY_BYTES = 3 * 1024 * 1024 * 1024
DONE, FAILED = b"+", b"-"


def split(data: bytes, limit_bytes: int) -> tuple[bytes, list[bytes]]:
    """Return the head of the answer and the long texts.

    The head is `{"value": …, "texts": [[path, size], …]}` or `{"fault": {"code", "reason", "message"}}`.
    """
    try:
        value = parse(data, limit_bytes=limit_bytes)
    except BadFrame as fault:
        return orjson.dumps({"fault": {"code": fault.code, "reason": fault.reason, "message": fault.message}}), []
    paths, texts = [], []
    for path, text in _take_long_texts(value):
        paths.append([path, len(text)])
        texts.append(text)
    return orjson.dumps({"value": value, "texts": paths}), texts


def _take_long_texts(root: Any) -> list[tuple[list[str | int], bytes]]:
    """Cut long texts out of *root*, which is changed; an empty text stays in their places."""
    found: list[tuple[list[str | int], bytes]] = []
    todo: list[tuple[list[str | int], Any]] = [([], root)]
    while todo:
        path, node = todo.pop()
        members = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, item in list(members):
            if isinstance(item, str) and len(item) >= LONG_TEXT:
                found.append(([*path, key], item.encode()))
                node[key] = ""
            elif isinstance(item, dict | list):
                todo.append(([*path, key], item))
    return found


def serve(channel: socket.socket) -> None:
    """Answer until the other side has gone."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    while True:
        asked, descriptors, _, _ = socket.recv_fds(channel, 64, 2)
        if not asked or len(descriptors) != 2:
            return
        message, answer = descriptors
        try:
            with mmap.mmap(message, 0, prot=mmap.PROT_READ) as view:
                head, texts = split(view[:], int(asked))
            with os.fdopen(answer, "wb", closefd=False) as file:
                file.write(len(head).to_bytes(8, "big") + head)
                file.writelines(texts)
            reply = DONE
        except MemoryError:
            reply = FAILED
        finally:
            os.close(message)
            os.close(answer)
        channel.send(reply)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
