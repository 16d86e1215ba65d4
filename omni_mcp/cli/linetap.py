"""Looks at lines of JSON that pass by and says which message each is, without keeping a long line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

HEAD_BYTES = 64 * 1024
TAIL_BYTES = 512

_VALUE = rb'("(?:[^"\\]|\\.)*"|-?[0-9]+)'
_HEAD_ID = re.compile(rb'\s*\{\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?"id"\s*:\s*' + _VALUE)
_TAIL_ID = re.compile(rb'[,\s]"id"\s*:\s*' + _VALUE + rb"\s*\}\s*$")
_HEAD_METHOD = re.compile(rb'\s*\{(?:\s*"(?:jsonrpc|id)"\s*:\s*' + _VALUE + rb'\s*,)*\s*"method"\s*:\s*"([^"\\]*)"')


class LineTap:
    """Cuts a stream into lines and yields the messages in them.

    Lines up to `HEAD_BYTES` are parsed. Of a longer one only its two ends are kept, and an `id` and a `method` are
    found where libraries write them, at either end of the outermost object; a line that hides them yields nothing.
    """

    def __init__(self) -> None:
        self._head = bytearray()
        self._tail = b""
        self._length = 0

    @property
    def in_the_middle(self) -> bool:
        """Whether the last line is not ended yet."""
        return self._length > 0

    def feed(self, data: bytes) -> Iterator[Any]:
        """Take the next bytes and yield what the lines that end in them say; what is not JSON yields nothing."""
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            self._add(data[start:end])
            message = self._message()
            self._head.clear()
            self._tail, self._length = b"", 0
            start = end + 1
            if message is not None:
                yield message
        self._add(data[start:])

    def _add(self, part: bytes) -> None:
        self._length += len(part)
        room = HEAD_BYTES - len(self._head)
        if room > 0:
            self._head += part[:room]
        if self._length > HEAD_BYTES:
            self._tail = (self._tail + part)[-TAIL_BYTES:]

    def _message(self) -> Any:
        if self._length <= HEAD_BYTES:
            try:
                return json.loads(bytes(self._head))
            except (ValueError, RecursionError):
                return None
        identifier = _HEAD_ID.match(self._head) or _TAIL_ID.search(self._tail)
        if identifier is None:
            return None
        message: dict[str, Any] = {"id": json.loads(identifier[1])}
        method = _HEAD_METHOD.match(self._head)
        if method:
            message["method"] = method[2].decode("utf-8", "replace")
        return message
