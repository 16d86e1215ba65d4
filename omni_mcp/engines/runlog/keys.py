"""The keys of the run log: one authenticates the heads of its chains, one names raw arguments without showing them,
and one wraps the keys under which bodies are sealed."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from omni_mcp.contracts.errors import LogCorrupt
from omni_mcp.contracts.json import JsonValue, canonical
from omni_mcp.paths import make_private_dir, sync_directory

KEY_BYTES = 32
HEAD_KEY_FILE, ARGUMENTS_KEY_FILE, BODIES_KEY_FILE = "log-head.key", "log-arguments.key", "log-bodies.key"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class LogKeys:
    """All three; they are not shown by `repr`."""

    head: bytes
    arguments: bytes
    bodies: bytes
    _heads: hmac.HMAC = field(init=False, compare=False)  # begun once, and copied for each use
    _arguments: hmac.HMAC = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_heads", hmac.new(self.head, digestmod="sha256"))
        object.__setattr__(self, "_arguments", hmac.new(self.arguments, digestmod="sha256"))

    def __repr__(self) -> str:
        return "LogKeys(…)"

    def head_mac(self, name: str, count: int, digest: bytes) -> bytes:
        """Authenticate a head: the run's id (or `*` for the global head), its number of events and its hash."""
        mac = self._heads.copy()
        mac.update(b"omni-mcp head 1\0%d\0%s\0%s" % (count, digest, name.encode()))
        return mac.digest()

    def arguments_hmac(self, arguments: JsonValue) -> str:
        """Return the keyed hash under which raw arguments are recorded: `contracts.json.keyed_digest` of them."""
        mac = self._arguments.copy()
        mac.update(canonical(arguments))
        return f"hmac-sha256:{mac.hexdigest()}"

    def key_for(self, purpose: str) -> bytes:
        """Return a key of its own for a purpose. No arguments have it as their keyed hash: theirs are over JSON."""
        return hmac.new(self.arguments, b"omni-mcp key 1\0" + purpose.encode(), hashlib.sha256).digest()


def find_keys(directory: Path) -> LogKeys | None:
    """Return the keys kept in *directory*, or None if there are none.

    Raises:
        LogCorrupt: a key file is readable by others, or not a key.
    """
    if not (directory / HEAD_KEY_FILE).exists():
        return None
    head = _read_key(directory / HEAD_KEY_FILE)
    return LogKeys(
        head=head, arguments=_read_or_make(directory / ARGUMENTS_KEY_FILE),
        bodies=_read_or_make(directory / BODIES_KEY_FILE),
    )  # fmt: skip


def make_keys(directory: Path) -> LogKeys:
    """Make the keys with mode 0600 in *directory* (0700) and return them."""
    make_private_dir(directory)
    arguments, bodies = (_read_or_make(directory / name) for name in (ARGUMENTS_KEY_FILE, BODIES_KEY_FILE))
    return LogKeys(arguments=arguments, bodies=bodies, head=_read_or_make(directory / HEAD_KEY_FILE))


def _read_or_make(file: Path) -> bytes:
    if not file.exists():
        part = file.with_suffix(".new")
        part.unlink(missing_ok=True)
        descriptor = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        try:
            os.write(descriptor, os.urandom(KEY_BYTES))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        part.rename(file)  # a key is there whole or not at all
        sync_directory(file.parent)
    return _read_key(file)


def _read_key(file: Path) -> bytes:
    key = file.read_bytes()
    if len(key) != KEY_BYTES:
        raise LogCorrupt("a key of the run log is damaged", detail=f"{file} must hold {KEY_BYTES} bytes; restore it")
    if stat.S_IMODE(file.stat().st_mode) & 0o077:
        raise LogCorrupt("a key of the run log is readable by others", detail=f"run: chmod 600 {file}")
    return key
