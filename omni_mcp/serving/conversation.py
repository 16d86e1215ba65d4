"""Conversation: one connection that carries whole messages both ways, in both eras: lines, and HTTP+SSE."""

from __future__ import annotations

import asyncio
from functools import partial

from omni_mcp.chain.crashpoint import reach
from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.errors import OmniError, Overloaded, RateLimited
from omni_mcp.contracts.json import JsonValue
from omni_mcp.protocol.eras import BATCH_VERSION
from omni_mcp.protocol.frames import BadFrame, Frame, Request, Response, frame_of
from omni_mcp.protocol.outcome import rpc_error
from omni_mcp.protocol.rpc import INVALID_REQUEST, Reply, error_reply
from omni_mcp.protocol.sender import Sender, sender_of
from omni_mcp.serving.calls import KINDS
from omni_mcp.serving.edge import Edge
from omni_mcp.serving.parsing import parsed
from omni_mcp.serving.room import Claim
from omni_mcp.serving.runbook import CloseReason
from omni_mcp.serving.session import Outlet, Session, Transport

BATCH_LIMIT = 100
INLINE = frozenset({"initialize", "server/discover", "ping", "logging/setLevel"})  # answered before the next message


def batch_of(value: JsonValue, version: str) -> list[JsonValue] | None:
    """Return the members of a batch, None for a single message.

    Raises:
        BadFrame: the version has no batches, or this one is empty or too long.
    """
    if not isinstance(value, list):
        return None
    if version != BATCH_VERSION:
        raise BadFrame(INVALID_REQUEST, "batch", f"only {BATCH_VERSION} has batches; send one message at a time")
    if not 0 < len(value) <= BATCH_LIMIT:
        raise BadFrame(INVALID_REQUEST, "batch_size", f"a batch has between 1 and {BATCH_LIMIT} messages")
    return value


def whom_to_tell(session: Session | None, fault: BadFrame, head: bytes, tail: bytes = b"") -> int | str | None:
    """Return the id of a request that was refused, None where it cannot be known.

    A refused answer to a question of *session* has no such id: it is as if the client had refused the question.
    """
    sender = sender_of(head, tail)
    if not sender.is_answer:
        return _free_id(session, sender)
    if session is not None and sender.id is not None:
        session.take_answer(Response(sender.id, error={"code": fault.code, "message": fault.message}))
    return None


def _free_id(session: Session | None, sender: Sender) -> int | str | None:
    """Return the id of a refused request; None for one under way, whose sender would take it for over."""
    return None if session is not None and sender.id in session.calls else sender.id


class Conversation:
    """Takes messages as they come, answers them as they are done, and ends them all when the client leaves."""

    def __init__(
        self,
        edge: Edge,
        outlet: Outlet,
        *,
        principal: Principal,
        profile: str,
        transport: Transport,
        frame_limit_bytes: int,
    ) -> None:
        self._edge = edge
        self._outlet = outlet
        self._limit = frame_limit_bytes
        self.session = edge.open(principal=principal, profile=profile, transport=transport, outlet=outlet)
        self._replying: set[asyncio.Task[None]] = set()

    async def take(self, data: bytes) -> None:
        """Take one message. A bad one is answered with an error and costs nothing else."""
        try:
            value = await parsed(data, limit_bytes=self._limit)
            batch = batch_of(value, self.session.version)
        except BadFrame as fault:
            self.refuse(fault, data)
            return
        if batch is not None:
            self._take_batch(batch, len(data))
            return
        try:
            frame = frame_of(value)
        except BadFrame as fault:
            self.refuse(fault)
            return
        await self._take_frame(frame, len(data))

    def refuse(self, fault: BadFrame, head: bytes = b"", tail: bytes = b"") -> None:
        """Answer bytes that are no message, so that whoever sent them, or waits for them, hears why.

        Args:
            head, tail: as `sender_of`, where there is no frame.
        """
        if head:
            fault.id = whom_to_tell(self.session, fault, head, tail)
        self._outlet.send(self._edge.reject(self.session.transport, fault).body)

    async def _take_frame(self, frame: Frame, size_bytes: int) -> None:
        if not isinstance(frame, Request):
            self._edge.take(self.session, frame)
            return
        claim = self._claimed(size_bytes, frame.id)
        if claim is None:
            return
        task = self._edge.begin(self.session, frame, self._outlet)
        task.add_done_callback(lambda _: claim.close())
        task.add_done_callback(partial(self._reply, frame))
        if frame.method in INLINE:
            await asyncio.wait([task])

    def _claimed(self, size_bytes: int, request_id: int | str | None) -> Claim | None:
        """Return the room that a request takes until it is answered; None if it was told that there is none."""
        claim = self._edge.room.claim(self.session.principal.key)
        try:
            claim.grow(size_bytes)
        except (RateLimited, Overloaded) as error:
            self.turn_away(error, request_id)
            return None
        return claim

    def turn_away_line(self, error: OmniError, head: bytes, tail: bytes) -> None:
        """Answer a line for which there is no room."""
        sender = sender_of(head, tail)
        self.turn_away(error, None if sender.is_answer else _free_id(self.session, sender))

    def turn_away(self, error: OmniError, request_id: int | str | None = None) -> None:
        """Answer a message for which there is no room."""
        self._edge.rejections.note(self.session.transport, "no_room")
        fault = rpc_error(error)
        self._outlet.send(error_reply(request_id, fault.code, fault.message, fault.data).body)

    def _reply(self, frame: Request, task: asyncio.Task[Reply]) -> None:
        if not task.cancelled():  # a cancelled request gets no answer (MCP, basic/utilities/cancellation)
            self._outlet.send(task.result().body)
            if frame.method in KINDS:
                reach("replied")

    def _take_batch(self, batch: list[JsonValue], size_bytes: int) -> None:
        """Each member is its own request, with its own call; the answers go back together."""
        claim = self._claimed(size_bytes, None)
        if claim is None:
            return
        replies: list[Reply] = []
        tasks: list[asyncio.Task[Reply]] = []
        for member in batch:
            try:
                frame = frame_of(member)
                if isinstance(frame, Request) and frame.method == "initialize":
                    raise BadFrame(INVALID_REQUEST, "batch_initialize", "initialize cannot be in a batch", id=frame.id)
            except BadFrame as fault:
                replies.append(self._edge.reject(self.session.transport, fault))
                continue
            if isinstance(frame, Request):
                tasks.append(self._edge.begin(self.session, frame, self._outlet))
            else:
                self._edge.take(self.session, frame)
        gathering = asyncio.get_running_loop().create_task(self._reply_together(tasks, replies))
        self._replying.add(gathering)
        gathering.add_done_callback(lambda _: claim.close())
        gathering.add_done_callback(self._replying.discard)

    async def _reply_together(self, tasks: list[asyncio.Task[Reply]], replies: list[Reply]) -> None:
        body = await gathered(tasks, replies)
        if body:
            self._outlet.send(body)

    async def finish(self, *, grace_s: float) -> None:
        """Let what is nearly done be answered; for a client that has said all it wants to say."""
        if self.session.calls and grace_s > 0:
            await asyncio.wait(list(self.session.calls.values()), timeout=grace_s)

    async def end(self, reason: CloseReason = "client_left") -> None:
        """Cancel what is under way, wait until that is on record, and close the session."""
        await self._edge.close(self.session, reason)
        if self._replying:
            await asyncio.wait(list(self._replying))


async def gathered(tasks: list[asyncio.Task[Reply]], replies: list[Reply]) -> bytes:
    """Wait for the answers of a batch and return them as one JSON array; empty if nobody is owed one."""
    if tasks:
        await asyncio.wait(tasks)
    done = [*replies, *(task.result() for task in tasks if not task.cancelled())]
    return b"[" + b",".join(reply.body for reply in done) + b"]" if done else b""
