"""A stream of events that comes back by itself: each event once, in order, whatever happens to its connections."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from omni_mcp.client.connection import Connection
from omni_mcp.client.errors import ApiError, StreamEnded, Unreachable
from omni_mcp.contracts.api import EventShown

SILENCE_LIMIT_S = 40.0  # the gateway says something at least every 15 s
FIRST_WAIT_S, LAST_WAIT_S = 0.1, 5.0
LINE_LIMIT_BYTES = 64 * 1024 * 1024
_AGAIN = frozenset({"overloaded", "rate_limited", "log_unavailable", "internal"})
_FINAL = frozenset({"unauthenticated", "access_refused"})


@dataclass(frozen=True, slots=True)
class Streamed:
    """One event, and the id with which a later stream begins behind it."""

    id: str
    event: EventShown


@dataclass(frozen=True, slots=True)
class Block:
    """What stands between two empty lines of an event stream. `data` is None where there is none."""

    kind: str
    id: str | None
    data: str | None


def events(
    connection: Connection, path: str, *, last_id: str | None, query: dict[str, object] | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> Iterator[Streamed]:  # fmt: skip
    """Yield events until the run is closed; a broken connection is opened again behind the last event.

    Raises:
        ApiError: the stream cannot be had.
        StreamEnded: it may not be read any more.
    """
    wait_s = FIRST_WAIT_S
    while True:
        headers = {"Accept": "text/event-stream"} | ({} if last_id is None else {"Last-Event-ID": last_id})
        try:
            with connection.opened("GET", path, query=query, headers=headers, timeout_s=SILENCE_LIMIT_S) as answer:
                for block in blocks(answer):
                    if block.kind == "end":
                        if _is_over(block.data or ""):
                            return
                        break
                    last_id = block.id or last_id
                    if block.data is not None and block.id is not None:
                        wait_s = FIRST_WAIT_S
                        yield Streamed(block.id, EventShown.model_validate_json(block.data))
        except Unreachable:
            pass
        except ApiError as error:
            if error.code not in _AGAIN:
                raise
        pause(wait_s)
        wait_s = min(LAST_WAIT_S, wait_s * 2)


def _is_over(data: str) -> bool:
    """Whether an end is one for good.

    Raises:
        StreamEnded: and not because everything was read.
    """
    if '"run_closed"' in data:
        return True
    for reason in _FINAL:
        if f'"{reason}"' in data:
            raise StreamEnded(reason)
    return False


def blocks(answer: http.client.HTTPResponse) -> Iterator[Block]:
    """Yield what arrives whole; what is cut off is dropped, because it will come again.

    Raises:
        Unreachable: the connection broke.
    """
    kind, block_id, data = "message", None, None
    while True:
        try:
            line = answer.readline(LINE_LIMIT_BYTES)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise Unreachable(f"the stream broke: {error}") from error
        if not line.endswith(b"\n"):
            raise Unreachable("the stream broke")
        text = line.rstrip(b"\r\n").decode("utf-8", "replace")
        if not text:
            yield Block(kind, block_id, data)
            kind, block_id, data = "message", None, None
            continue
        name, _, value = text.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            kind = value
        elif name == "id":
            block_id = value
        elif name == "data":
            data = value if data is None else f"{data}\n{value}"
