"""A multipart body with one file in it, read as it comes: nothing of it is held but the piece that is looked at."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from omni_mcp.contracts.errors import BadRequest
from omni_mcp.serving.asgi import ClientGone, Exchange

FIELD = "file"
HEAD_LIMIT_BYTES = 8 * 1024
PIECE_BYTES = 256 * 1024
NAME_LIMIT_CHARS = 255
ANY_TYPE = "application/octet-stream"

_BOUNDARY = re.compile(
    r"""multipart/form-data\s*;\s*boundary=("?)([A-Za-z0-9'()+_,./:=?-]{1,70})\1\s*""", re.IGNORECASE
)
_PARAMETER = re.compile(r';\s*([A-Za-z*]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s;"]+))')
_MEDIA_TYPE = re.compile(r"[a-z0-9!#$&^_.+-]{1,100}/[a-z0-9!#$&^_.+-]{1,100}(;\s*charset=[a-z0-9_-]{1,40})?")

Write = Callable[[bytes], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class FilePart:
    """What the client says of its file; neither is trusted."""

    name: str | None
    media_type: str


async def read_file(exchange: Exchange, write: Write) -> FilePart:
    """Pass the bytes of the one part `file` to *write* and return what was said of it.

    Raises:
        BadRequest: it is no such body.
        ClientGone: it never ended.
    """
    found = _BOUNDARY.fullmatch(exchange.headers.get("content-type", ""))
    if found is None:
        raise BadRequest("send multipart/form-data with one part named `file`", data={"path": "Content-Type"})
    body = _Body(exchange)
    mark = b"--" + found[2].encode()
    if await body.until(mark, HEAD_LIMIT_BYTES) != b"" or await body.take(2) != b"\r\n":
        raise _malformed()
    part = file_part(await body.until(b"\r\n\r\n", HEAD_LIMIT_BYTES))
    async for piece in body.pieces(b"\r\n" + mark):
        await write(piece)
    if await body.take(2) != b"--":
        raise BadRequest("send one part and no more")
    if (await body.rest()).strip(b" \t\r\n"):
        raise _malformed()
    return part


def file_part(head: bytes) -> FilePart:
    """Return what the headers of a part say.

    Raises:
        BadRequest: it is not the part `file`.
    """
    try:
        lines = head.decode("utf-8").split("\r\n")
    except UnicodeDecodeError as fault:
        raise _malformed() from fault
    fields: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or name.lower() in fields:
            raise _malformed()
        fields[name.lower()] = value.strip()
    disposition = fields.get("content-disposition", "")
    parameters = {key.lower(): quoted or plain for key, quoted, plain in _PARAMETER.findall(disposition)}
    if disposition.partition(";")[0].strip().lower() != "form-data" or parameters.get("name") != FIELD:
        raise BadRequest(f"the part must be named {FIELD!r}")
    media_type = fields.get("content-type", ANY_TYPE).lower()
    return FilePart(
        name=_plain_name(parameters.get("filename", "")),
        media_type=media_type if _MEDIA_TYPE.fullmatch(media_type) else ANY_TYPE,
    )


def _plain_name(name: str) -> str | None:
    """A name is shown and never a path: what stands before the last separator goes."""
    last = re.split(r"[/\\]", name.replace('\\"', '"'))[-1]
    shown = "".join(letter for letter in last if letter.isprintable())[:NAME_LIMIT_CHARS]
    return shown or None


def _malformed() -> BadRequest:
    return BadRequest("the multipart body is malformed")


class _Body:
    """The body of a request, a piece at a time."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._held = bytearray()
        self._over = False

    async def _more(self) -> None:
        """Hold more of the body.

        Raises:
            BadRequest: it is over.
        """
        if self._over:
            raise _malformed()
        message = await self._exchange.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        self._held += message.get("body", b"")
        self._over = not message.get("more_body")

    async def take(self, count: int) -> bytes:
        """Return the next *count* bytes."""
        while len(self._held) < count:
            await self._more()
        taken = bytes(self._held[:count])
        del self._held[:count]
        return taken

    async def until(self, mark: bytes, limit_bytes: int) -> bytes:
        """Return what stands before *mark*, and pass over both."""
        while (at := self._held.find(mark)) < 0:
            if len(self._held) > limit_bytes:
                raise _malformed()
            await self._more()
        if at > limit_bytes:
            raise _malformed()
        before = bytes(self._held[:at])
        del self._held[: at + len(mark)]
        return before

    async def pieces(self, mark: bytes) -> AsyncIterator[bytes]:
        """Yield what stands before *mark*, and pass over it."""
        while (at := self._held.find(mark)) < 0:
            ready = len(self._held) - len(mark) + 1  # the mark may begin in what is kept
            if ready >= PIECE_BYTES:
                yield bytes(self._held[:ready])
                del self._held[:ready]
            await self._more()
        if at:
            yield bytes(self._held[:at])
        del self._held[: at + len(mark)]

    async def rest(self) -> bytes:
        """Return what is left, of which there may only be a line's end."""
        while not self._over:
            if len(self._held) > HEAD_LIMIT_BYTES:
                raise _malformed()
            await self._more()
        return bytes(self._held)
