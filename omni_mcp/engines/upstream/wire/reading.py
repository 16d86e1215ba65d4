"""What a server sends becomes frames for its receiver: strictly, in order, at a pace that leaves others their turn."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable

from omni_mcp.contracts.json import JsonValue
from omni_mcp.engines.upstream.wire.large import LargeParser, LargeResponse
from omni_mcp.engines.upstream.wire.seam import FRAME_LIMIT_BYTES, Misasked, Receiver
from omni_mcp.engines.upstream.wire.spool import SPOOL_BYTES, Spool, ends_of
from omni_mcp.protocol.frames import BadFrame, Frame, RequestId, Response, frame_of, parse
from omni_mcp.protocol.rpc import INVALID_REQUEST

OFF_LOOP_BYTES = SPOOL_BYTES  # 1 ms of parsing and checking; more is work for another process
UNASKED_PER_S = 2000  # frames that nobody awaits; above that the server has to wait
TURN_FRAMES = 32  # handled before others get a turn: about 1 ms
BATCH_LIMIT = 256

_HEAD = re.compile(rb'\s*\{\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?"id"\s*:\s*(\d{1,15})\s*[,}]')
_NUMBER = re.compile(r"[0-9]{1,15}")
_TAIL = re.compile(rb'"id"\s*:\s*(\d{1,15})\s*(?:,\s*"jsonrpc"\s*:\s*"2\.0"\s*)?\}\s*\Z')


class FrameReader:
    """Parses what comes over one wire and hands it on."""

    def __init__(
        self, receiver: Receiver, *, large: LargeParser, limit_bytes: int = FRAME_LIMIT_BYTES,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._receiver = receiver
        self._large = large
        self._limit = limit_bytes
        self._now_s = now_s
        self._since_turn = 0
        self._unasked = 0.0
        self._counted_s = now_s()

    async def take(self, data: bytes | Spool, within: int | None = None) -> None:
        """Parse one message and hand it on; junk is told and otherwise ignored."""
        try:
            frames = await self._frames(data)
        except BadFrame as fault:
            claimed = fault.id if fault.id is not None else claimed_id(*ends_of(data))
            if isinstance(data, Spool):
                data.drop()
            self._receiver.junk(fault.reason, claimed)
            await self._pace(wanted=False)
            return
        for frame in frames:
            await self._pace(wanted=self._receiver.take(frame, within))

    async def take_last(self, data: bytes | Spool) -> None:
        """As `take`, where the wire has ended: what was cut off is no message, and no junk either."""
        try:
            frames = await self._frames(data)
        except BadFrame:
            return
        for frame in frames:
            self._receiver.take(frame, None)

    async def refuse(self, head: bytes, tail: bytes) -> None:
        """Tell of a message that was too large to be kept."""
        self._receiver.junk("too_large", claimed_id(head, tail))
        await self._pace(wanted=False)

    async def _frames(self, data: bytes | Spool) -> list[Frame]:
        if isinstance(data, bytes) and len(data) <= OFF_LOOP_BYTES:
            return frames_of(parse(data, limit_bytes=self._limit))
        found = await self._large.parse(data, limit_bytes=self._limit)
        return [found] if isinstance(found, LargeResponse) else frames_of(found)

    async def _pace(self, *, wanted: bool) -> None:
        self._since_turn += 1
        if self._since_turn >= TURN_FRAMES:
            self._since_turn = 0
            await asyncio.sleep(0)
        if wanted:
            return
        now = self._now_s()
        self._unasked = max(0.0, self._unasked - (now - self._counted_s) * UNASKED_PER_S) + 1
        self._counted_s = now
        if self._unasked > UNASKED_PER_S:
            await asyncio.sleep(0.05)


def hand_on_small(receiver: Receiver, data: bytes, within: int) -> None:
    """As `FrameReader.take`, for the one message of an answer of its own that is not large."""
    try:
        frames = frames_of(parse(data, limit_bytes=OFF_LOOP_BYTES))
    except BadFrame as fault:
        receiver.junk(fault.reason, fault.id if fault.id is not None else claimed_id(*ends_of(data)))
        return
    for frame in frames:
        receiver.take(frame, within)


def frames_of(value: JsonValue) -> list[Frame]:
    """Check the envelope of one message; a batch gives several frames.

    Raises:
        BadFrame: as `omni_mcp.protocol.frames`.
    """
    if not isinstance(value, list):
        try:
            frame = frame_of(value)
        except BadFrame as fault:
            return [_put_right(value, fault)]
        if type(frame) is Response and type(frame.id) is str and _NUMBER.fullmatch(frame.id):
            frame.id = int(frame.id)  # ours are numbers; some servers write each id as text
        return [frame]
    if not 0 < len(value) <= BATCH_LIMIT:
        raise BadFrame(INVALID_REQUEST, "batch_size", f"a batch has 1 to {BATCH_LIMIT} members")
    return [frame_of(member) for member in value]


def _put_right(value: JsonValue, fault: BadFrame) -> Frame:
    """Return what serialisers mean that write absent parameters as null, or the id 5 as 5.0; a request is answered."""
    if isinstance(value, dict):
        if fault.reason == "bad_params" and value["params"] is None:
            return frame_of({name: member for name, member in value.items() if name != "params"})
        id = value.get("id")
        if fault.reason == "bad_id" and isinstance(id, float) and id.is_integer():
            return frames_of({**value, "id": int(id)})[0]
        if fault.id is not None and "method" in value:
            return Misasked(fault.id, "", code=fault.code, message=fault.message)
    raise fault


def claimed_id(head: bytes, tail: bytes) -> RequestId | None:
    """Return the request that an unreadable message claims to answer: ids stand first or last in what servers write."""
    found = _HEAD.match(head) or _TAIL.search(tail)
    return int(found[1]) if found else None
