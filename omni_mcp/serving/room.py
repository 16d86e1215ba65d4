"""Room: the memory that messages of clients may take while they are read, parsed and answered."""

from __future__ import annotations

from types import TracebackType

from omni_mcp.contracts.errors import Overloaded, RateLimited

ROOM_BYTES = 256 * 1024 * 1024  # over all clients
SHARE_BYTES = 64 * 1024 * 1024  # of one principal, so that it can only shut out itself


class Room:
    """Counts bytes for each principal and over all; what does not fit is refused before it is held."""

    def __init__(self, *, limit_bytes: int = ROOM_BYTES, share_bytes: int = SHARE_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._share_bytes = share_bytes
        self._taken_bytes = 0
        self._shares: dict[str, int] = {}

    @property
    def taken_bytes(self) -> int:
        """What is held now."""
        return self._taken_bytes

    def claim(self, who: str) -> Claim:
        """Return a claim of no bytes yet for the principal with the key *who*."""
        return Claim(self, who)

    def take(self, who: str, size_bytes: int) -> None:
        """Count *size_bytes* more; for claims.

        Raises:
            RateLimited: the principal holds its share already.
            Overloaded: the gateway is full.
        """
        mine = self._shares.get(who, 0) + size_bytes
        if mine > self._share_bytes:
            raise RateLimited(
                f"your messages under way hold more than {self._share_bytes} bytes; wait for an answer and try again",
                data={"retry_after_s": 1.0},
            )
        if self._taken_bytes + size_bytes > self._limit_bytes:
            raise Overloaded("the gateway holds too many requests; try again in a second")
        self._shares[who] = mine
        self._taken_bytes += size_bytes

    def give(self, who: str, size_bytes: int) -> None:
        """Count *size_bytes* less; for claims."""
        self._taken_bytes -= size_bytes
        self._shares[who] -= size_bytes
        if not self._shares[who]:
            del self._shares[who]


class Claim:
    """Part of the room, held for one message or one connection."""

    def __init__(self, room: Room, who: str) -> None:
        self._room = room
        self._who = who
        self._size_bytes = 0

    def grow(self, size_bytes: int) -> None:
        """Hold *size_bytes* more.

        Raises:
            RateLimited, Overloaded: there is no room; what was held before still is.
        """
        if size_bytes > 0:
            self._room.take(self._who, size_bytes)
            self._size_bytes += size_bytes

    def shrink_to(self, size_bytes: int) -> None:
        """Give back what is held over *size_bytes*."""
        spare = self._size_bytes - size_bytes
        if spare > 0:
            self._size_bytes = size_bytes
            self._room.give(self._who, spare)

    def close(self) -> None:
        """Give back everything."""
        self.shrink_to(0)

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._size_bytes:
            self._room.give(self._who, self._size_bytes)
            self._size_bytes = 0
