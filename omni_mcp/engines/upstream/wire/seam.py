"""The seam between what is said to a server and what carries it: messages out, frames in, and how either can fail."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from omni_mcp.contracts.call import Era
from omni_mcp.protocol.frames import Frame, Request, RequestId
from omni_mcp.protocol.rpc import INVALID_REQUEST

FRAME_LIMIT_BYTES = 128 * 1024 * 1024  # the largest message that a server may send


class WireFault(Exception):
    """A message did not get through, or the whole wire is gone.

    Args:
        reason: for the record and the operator; may quote the server.
        sent: whether the message may have reached the server, so that it may have taken effect.
        status: of an HTTP answer that was no success.
        session_lost: the server does not know our session any more; a new handshake mends it. It did nothing for the
            request that was told so, and what it did for others under way is not known.
        retry_after_s: when the server wants to be asked again.
    """

    def __init__(
        self, reason: str, *, sent: bool, status: int | None = None, session_lost: bool = False,
        retry_after_s: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__(reason)
        self.reason = reason
        self.sent = sent
        self.status = status
        self.session_lost = session_lost
        self.retry_after_s = retry_after_s


@dataclass(slots=True, kw_only=True)  # not frozen, which takes longer to make: each call has one
class Outgoing:
    """One encoded message, and what a transport with headers wants to know of it.

    `id` is set for a request of ours. `headers` are those that mirror the body (MCP 2026-07-28, basic/transports).
    """

    data: bytes
    id: int | None = None
    method: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Misasked(Request):
    """A request of the server that can only be answered with this error."""

    code: int = INVALID_REQUEST
    message: str = ""


class Receiver(Protocol):
    """Who hears what comes over a wire. No method waits or raises."""

    def take(self, frame: Frame, within: int | None) -> bool:
        """Take one frame. *within* is the request of ours whose own stream brought it, None where all share one.

        Returns whether it was awaited; frames that nobody awaited are what a flood is made of.
        """
        ...

    def junk(self, reason: str, id: RequestId | None) -> None:
        """Hear of bytes that are no frame. *id* is the request that they claim to answer, where that can be told."""
        ...

    def failed(self, id: int, fault: WireFault) -> None:
        """Hear that one request will not be answered."""
        ...

    def lost(self, fault: WireFault) -> None:
        """Hear that the wire is gone, and with it everything under way."""
        ...


class Wire(Protocol):
    """One way to carry messages to one server."""

    async def open(self, receiver: Receiver) -> None:
        """Connect; from now on *receiver* hears what comes.

        Raises:
            WireFault: the server cannot be reached.
        """
        ...

    def settle(self, era: Era, version: str) -> None:
        """Learn what was agreed on."""
        ...

    def stand(self) -> None:
        """Open the stream for what belongs to no request, where the transport has one apart (handshake HTTP)."""
        ...

    async def send(self, message: Outgoing) -> None:
        """Send one message. A request's failure after this returned is told to the receiver.

        Raises:
            WireFault: it was not, or may not have been, sent.
        """
        ...

    def forget(self, id: int) -> None:
        """Nobody awaits this request any more: let go of what it holds."""
        ...

    @property
    def closing_cancels(self) -> bool:
        """Whether `forget` alone tells the server that a request is cancelled (modern HTTP)."""
        ...

    @property
    def outlives_its_server(self) -> bool:
        """Whether a server that dies leaves this wire usable (HTTP), so that it shows in single requests only."""
        ...

    async def close(self) -> None:
        """Let go of the server; a child process is dead when this returns."""
        ...
