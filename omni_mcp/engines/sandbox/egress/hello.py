"""The ClientHello: which server name a TLS client asks for, read from the first bytes that it sends.

Sources: RFC 8446 (4.1.2, 5.1), RFC 6066 (3), RFC 9849 (encrypted ClientHello).
"""

from __future__ import annotations

from dataclasses import dataclass

MOST_HELLO_BYTES = 32 << 10
_MOST_RECORD_BYTES = 1 << 14
_MOST_RECORDS = 16
_HANDSHAKE = 22
_CLIENT_HELLO = 1
_SERVER_NAME = 0
_ENCRYPTED_HELLO = 0xFE0D


class NotTls(ValueError):
    """The bytes do not begin with a ClientHello that has one meaning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """`server_name` is in lower case, empty where none is sent. `hidden`: another name may be inside, encrypted."""

    server_name: str
    hidden: bool


def find_hello(data: bytes) -> Hello | None:
    """Return what the ClientHello at the beginning of *data* says, or None while it is not whole.

    Raises:
        NotTls: no continuation can make it a ClientHello.
    """
    message, at = b"", 0
    for _ in range(_MOST_RECORDS):
        head = data[at : at + 5]
        if not bytes((_HANDSHAKE, 3)).startswith(head[:2]):
            raise NotTls
        if len(head) < 5:
            return None
        length = int.from_bytes(head[3:5], "big")
        if not 0 < length <= _MOST_RECORD_BYTES:
            raise NotTls
        whole = len(data) >= at + 5 + length
        message += data[at + 5 : at + 5 + length]
        at += 5 + length
        size = int.from_bytes(message[1:4], "big")
        if message[:1] not in (b"", bytes((_CLIENT_HELLO,))) or (len(message) >= 4 and size > MOST_HELLO_BYTES):
            raise NotTls
        if len(message) >= 4 + size and len(message) >= 4:
            return _read(message[4 : 4 + size])
        if not whole:
            return None
    raise NotTls


class _Bytes:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def rest(self) -> bytes:
        """What is not taken yet."""
        return self._data[self._at :]

    def take(self, count: int) -> bytes:
        if self._at + count > len(self._data):
            raise NotTls
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> _Bytes:
        return _Bytes(self.take(self.number(size)))

    def __bool__(self) -> bool:
        return self._at < len(self._data)


def _read(body: bytes) -> Hello:
    hello = _Bytes(body)
    hello.take(2 + 32)  # version and random
    hello.vector(1)  # session id
    hello.vector(2)  # cipher suites
    hello.vector(1)  # compression
    extensions: dict[int, bytes] = {}
    every = hello.vector(2) if hello else hello
    while every:
        kind = every.number(2)
        content = every.vector(2).rest()
        if kind in extensions:
            raise NotTls
        extensions[kind] = content
    if hello:
        raise NotTls
    return Hello(server_name=_name(extensions.get(_SERVER_NAME)), hidden=_ENCRYPTED_HELLO in extensions)


def _name(extension: bytes | None) -> str:
    if extension is None:
        return ""
    outer = _Bytes(extension)
    names = outer.vector(2)
    kind, name = names.number(1), names.vector(2).rest()
    if kind != 0 or names or outer or not name or not name.isascii():
        raise NotTls
    return name.decode().lower()
