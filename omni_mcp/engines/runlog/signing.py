"""The key pair of the evidence that leaves this machine: Ed25519, the private half in the gateway's own directory.

Heads in the database carry an HMAC, which only their own key can check. Whoever gets a pack, an anchor or a golden file
has no such key; a signature needs the public half alone, which travels inside, and whose fingerprint they were told.
"""

from __future__ import annotations

import hashlib
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from omni_mcp.contracts.errors import LogCorrupt
from omni_mcp.contracts.json import JsonObject, canonical
from omni_mcp.paths import make_private_dir, write_private

SIGNING_KEY_FILE = "audit-signing.key"
ALGORITHM = "Ed25519"
KEY_BYTES, SIGNATURE_BYTES = 32, 64
_FINGERPRINT = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
_HEX = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What was signed by whom: the public key, and the signature over the bytes. Both as lower-case hex in JSON."""

    key: bytes
    value: bytes

    @property
    def fingerprint(self) -> str:
        """What people compare: sha256 of the public key."""
        return fingerprint_of(self.key)

    def as_json(self) -> JsonObject:
        return {"algorithm": ALGORITHM, "key": self.key.hex(), "signature": self.value.hex()}

    def fits(self, what: str, data: bytes) -> bool:
        """Whether this is the signature of *data*, made for *what*."""
        try:
            Ed25519PublicKey.from_public_bytes(self.key).verify(self.value, _framed(what, data))
        except (InvalidSignature, ValueError):
            return False
        return True


class SigningKey:
    """The private half; it is not shown by `repr`."""

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = self._key.public_key().public_bytes_raw()

    @property
    def fingerprint(self) -> str:
        """As of a `Signature` made with it."""
        return fingerprint_of(self.public)

    def sign(self, what: str, data: bytes) -> Signature:
        """Sign *data* as *what*: a signature for one purpose never fits another."""
        return Signature(key=self.public, value=self._key.sign(_framed(what, data)))


def fingerprint_of(key: bytes) -> str:
    """Return the fingerprint of a public key: 64 hex digits."""
    return hashlib.sha256(key).hexdigest()


def parsed_fingerprint(text: str) -> str | None:
    """Return a fingerprint as people write it, with or without `sha256:`; None if it is none."""
    found = _FINGERPRINT.fullmatch(text.strip().lower())
    return found[1] if found else None


def find_signing_key(directory: Path) -> SigningKey | None:
    """Return the key kept in *directory*, or None if there is none.

    Raises:
        LogCorrupt: the file is readable by others, or no key.
    """
    file = directory / SIGNING_KEY_FILE
    try:
        seed = file.read_bytes()
    except FileNotFoundError:
        return None
    if len(seed) != KEY_BYTES:
        raise LogCorrupt("the signing key is damaged", detail=f"{file} must hold {KEY_BYTES} bytes; restore it")
    if stat.S_IMODE(file.stat().st_mode) & 0o077:
        raise LogCorrupt("the signing key is readable by others", detail=f"run: chmod 600 {file}")
    return SigningKey(seed)


def get_signing_key(directory: Path) -> SigningKey:
    """Return the key kept in *directory*; the first time it is made, with mode 0600.

    Raises:
        LogCorrupt: the file is readable by others, or no key.
        OSError: it cannot be written.
    """
    found = find_signing_key(directory)
    if found is None:
        make_private_dir(directory)
        write_private(directory / SIGNING_KEY_FILE, Ed25519PrivateKey.generate().private_bytes_raw())
        found = find_signing_key(directory)
    assert found is not None
    return found


def read_signature(found: object) -> Signature | None:
    """Return the signature in a JSON value as `Signature.as_json` writes it; None for anything else."""
    if not isinstance(found, dict) or found.keys() != {"algorithm", "key", "signature"}:
        return None
    key, value = found["key"], found["signature"]
    if found["algorithm"] != ALGORITHM or not _is_hex(key, KEY_BYTES) or not _is_hex(value, SIGNATURE_BYTES):
        return None
    return Signature(key=bytes.fromhex(key), value=bytes.fromhex(value))


def signed_document(key: SigningKey, what: str, document: JsonObject) -> bytes:
    """Return *document* and its signature as one line of canonical JSON."""
    return canonical({"document": document, **key.sign(what, canonical(document)).as_json()}) + b"\n"


def _is_hex(value: object, size: int) -> bool:
    return isinstance(value, str) and len(value) == 2 * size and _HEX.fullmatch(value) is not None


def _framed(what: str, data: bytes) -> bytes:
    return b"omni-mcp signature 1\0" + what.encode() + b"\0" + data
