"""The process that handles large messages of servers: bytes in one file, a checked value without its long texts out.

    python -m omni_mcp.engines.upstream.wire.large_worker FD

Each request is one datagram with three descriptors: what is asked (JSON), the message, and an empty file for the
answer; each reply is one byte. The answer: eight bytes with the length of a JSON head, the head, then other bytes one
after another. The request `parse` is answered here; the program above this one (`omni_mcp.upstreams.large_program`)
adds `look`, which takes a masker and schemas.
"""

from __future__ import annotations

import mmap
import os
import resource
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import orjson

from omni_mcp.contracts.json import JsonObject
from omni_mcp.engines.upstream.faults import MESSAGE_LIMIT
from omni_mcp.protocol.frames import FRAME_LIMIT_BYTES, BadFrame, Response, frame_of, parse
from omni_mcp.protocol.rpc import INVALID_REQUEST

LONG_TEXT = 64 * 1024  # characters; what is shorter stays where it is
MEMORY_BYTES = 3 * 1024 * 1024 * 1024
NICENESS = 5  # callers that wait for something small go first
ASK, GIVE_BACK = b"?", b"!"
DONE, FAILED = b"+", b"-"
MEMBERS = ("content", "contents", "messages")

Answered = tuple[JsonObject, list[bytes]]
Handle = Callable[[JsonObject, bytes], Answered]


def answer_parse(asked: JsonObject, data: bytes) -> Answered:
    """Parse *data* strictly.

    The head is `{"value": …, "texts": [[path, size], …]}`, `{"cut": {"id", "shape"}}` for a result that stays where it
    is, or `{"fault": {"code", "reason", "message", "id"}}`.
    """
    try:
        value = parse(data, limit_bytes=asked["limit_bytes"])
        cut = _cut(value, len(data)) if len(data) > asked["cut_bytes"] else None
    except BadFrame as fault:
        told = {"code": fault.code, "reason": fault.reason, "message": fault.message, "id": fault.id}
        return {"fault": told}, []
    return ({"cut": cut}, []) if cut is not None else taken_apart(value)


def taken_apart(value: Any) -> Answered:
    """Return *value* with its long texts behind the head."""
    root = {"value": value}
    paths, texts = [], []
    for path, text in _take_long_texts(root):
        paths.append([path, len(text)])
        texts.append(text)
    return {**root, "texts": paths}, texts


def _cut(value: Any, size_bytes: int) -> JsonObject | None:
    """Return what the gateway has to know of a result to wait with the rest; None for what it needs whole.

    Raises:
        BadFrame: it is no message; or more than a client could be sent of something that is no result.
    """
    if isinstance(value, dict):
        frame = frame_of(value)
        if isinstance(frame, Response) and frame.result is not None:
            if frame.result.get("resultType", "complete") == "complete":
                return {"id": frame.id, "shape": _shape(frame.result)}
        elif isinstance(frame, Response) and frame.error is not None and size_bytes > FRAME_LIMIT_BYTES:
            _shorten(value["error"])
            return None
    if size_bytes > FRAME_LIMIT_BYTES:
        raise BadFrame(INVALID_REQUEST, "too_large", f"what is no result may have {FRAME_LIMIT_BYTES} bytes")
    return None


def _shape(result: JsonObject) -> JsonObject:
    """Return what says whether *result* is one: a list of objects becomes an empty one, and any other value null."""
    shape: JsonObject = {"resultType": "complete"} if "resultType" in result else {}
    for name in MEMBERS:
        if name in result:
            items = result[name]
            fit = isinstance(items, list) and all(isinstance(item, dict) for item in items)
            shape[name] = [] if fit else None
    if "isError" in result:
        shape["isError"] = bool(result["isError"])
    return shape


def _shorten(error: JsonObject) -> None:
    message = error.get("message")
    kept = {"code": error.get("code"), "message": message[:MESSAGE_LIMIT] if isinstance(message, str) else None}
    error.clear()
    error.update(kept)


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


def serve(channel: socket.socket, handlers: Mapping[str, Handle]) -> None:
    """Answer until the other side has gone."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        os.nice(NICENESS)
    while True:
        word, files, _, _ = socket.recv_fds(channel, 64, 3)
        if word == GIVE_BACK:  # the last descriptor of it, where others wait for nothing
            for file in files:
                os.close(file)
            continue
        if word != ASK or len(files) != 3:
            return
        try:
            _handle(handlers, *files)
            reply = DONE
        except MemoryError:
            reply = FAILED
        finally:
            for file in files:
                os.close(file)
        channel.send(reply)


def _handle(handlers: Mapping[str, Handle], asking: int, message: int, answer: int) -> None:
    with mmap.mmap(asking, 0, prot=mmap.PROT_READ) as view:
        asked = orjson.loads(view[:])
    size = os.fstat(message).st_size
    data = os.pread(message, size - asked["start"], asked["start"])  # a mapping would fault in each of its pages
    head, more = handlers[asked["what"]](asked, data)
    encoded = orjson.dumps(head)
    with os.fdopen(answer, "wb", closefd=False) as file:
        file.write(len(encoded).to_bytes(8, "big") + encoded)
        file.writelines(more)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), {"parse": answer_parse})
