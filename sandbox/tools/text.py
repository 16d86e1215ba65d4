"""The text tools: hash, and encode or decode in the common forms."""

from __future__ import annotations

import base64
import binascii
import gzip
import hashlib
import urllib.parse
import zlib
from collections.abc import Callable

from failure import ToolFailure
from files import content_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

OUTPUT_LIMIT = 4 * 1024 * 1024


def text_hash(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the hex digest of a text or of bytes."""
    data = content_of(arguments, "text", "base64")
    algorithm = arguments.get("algorithm", "sha256")
    digest = hashlib.new(algorithm, data, usedforsecurity=False).hexdigest()
    return {"algorithm": algorithm, "hex": digest, "size": len(data)}


def text_encode(arguments: dict[str, Any]) -> dict[str, Any]:
    """Encode or decode; what is not UTF-8 comes back as base64."""
    form, decodes = arguments["form"], arguments.get("direction", "encode") == "decode"
    data = content_of(arguments, "text", "base64")
    try:
        result = (_DECODERS if decodes else _ENCODERS)[form](data)
    except (binascii.Error, ValueError, EOFError, OSError, zlib.error) as error:
        raise ToolFailure(f"the input is not {form}: {error}") from error
    if len(result) > OUTPUT_LIMIT:
        raise ToolFailure(f"the result is larger than {OUTPUT_LIMIT} bytes")
    try:
        return {"text": result.decode(), "size": len(result)}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(result).decode(), "size": len(result)}


def _gunzip(data: bytes) -> bytes:
    """Decompress base64 of gzip, and stop as soon as the result is over the limit: a small bomb costs little."""
    engine = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    result = engine.decompress(base64.b64decode(data, validate=True), OUTPUT_LIMIT + 1)
    if len(result) > OUTPUT_LIMIT:
        raise ToolFailure(f"the decompressed text is larger than {OUTPUT_LIMIT} bytes")
    if not engine.eof or engine.unused_data:
        raise ValueError("the data ends too early or goes on after its end")
    return result


def _unquote(data: bytes) -> bytes:
    text = data.decode("ascii")
    return urllib.parse.unquote_to_bytes(text)


_ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "base64": base64.b64encode,
    "base64url": lambda data: base64.urlsafe_b64encode(data).rstrip(b"="),
    "hex": lambda data: data.hex().encode(),
    "url": lambda data: urllib.parse.quote(data, safe="").encode(),
    "gzip": lambda data: base64.b64encode(gzip.compress(data, mtime=0)),  # no time: equal input, equal output
}
_DECODERS: dict[str, Callable[[bytes], bytes]] = {
    "base64": lambda data: base64.b64decode(data, validate=True),
    "base64url": lambda data: base64.b64decode(data + b"=" * (-len(data) % 4), altchars=b"-_", validate=True),
    "hex": lambda data: bytes.fromhex(data.decode("ascii")),
    "url": _unquote,
    "gzip": _gunzip,
}
