"""The audit pack: what is in one, under which names, and what its manifest says.

    runs/RUN.jsonl       the events of a run in order, one canonical JSON object a line
    artifacts/SHA256     the bytes that those events refer to
    schemas/NAME.json    what an event looks like
    manifest.json        size and digest of each file, and the heads of the runs; what is signed
    signature.json       the public key, and the signature over the manifest

Nothing else, in a tar archive of exactly one spelling (tar.py).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import Annotated, Literal

from pydantic import Field

from omni_mcp.contracts.manifest import Closed

FORMAT: Literal["omni-mcp audit pack"] = "omni-mcp audit pack"
FORMAT_VERSION: Literal[1] = 1
MANIFEST, SIGNATURE = "manifest.json", "signature.json"
SIGNED_AS = "audit pack"
MANIFEST_LIMIT_BYTES = 512 * 1024 * 1024
SIGNATURE_LIMIT_BYTES = 4096
LINE_LIMIT_BYTES = 64 * 1024 * 1024
MARK_BYTES = 8
MEMBER_NAME = re.compile(
    r"manifest\.json|signature\.json|runs/[0-9a-z-]{1,64}\.jsonl|artifacts/[0-9a-f]{64}|schemas/[A-Za-z.]{1,64}\.json"
)

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, strict=True)]


class PackedFile(Closed):
    """A file of the pack."""

    size: Count
    sha256: Hash


class PackedRun(Closed):
    """The head of a run: how many events it had and where its chain ended.

    `mac` is what the gateway that wrote it can check. `marks` are the first 8 bytes of the sha256 of each line, in
    Base64: they say which lines are not those that were signed, whatever was changed in them.
    """

    run: str
    count: Count
    hash: Hash
    mac: Hash
    marks: str


class PackedHead(Closed):
    """The head of the whole log at that moment."""

    count: Count
    hash: Hash
    mac: Hash


class PackManifest(Closed):
    """Everything that a pack holds. `absent` are artifacts that events refer to and that were there no more."""

    format: Literal["omni-mcp audit pack"]
    version: Literal[1]
    contract: Count
    scope: Literal["all", "runs"]
    exported_at: str
    runs: tuple[PackedRun, ...]
    head: PackedHead | None
    absent: tuple[Hash, ...]
    files: dict[str, PackedFile]


def run_member(run: str) -> str:
    """Return the name of the file with the events of *run*."""
    return f"runs/{run}.jsonl"


def mark_of(line: bytes) -> bytes:
    """Return what the manifest keeps of one line."""
    return hashlib.sha256(line).digest()[:MARK_BYTES]


def marks_of(packed: PackedRun) -> list[bytes]:
    """Return the marks of all lines; nothing if they cannot be read."""
    try:
        found = base64.b64decode(packed.marks, validate=True)
    except (binascii.Error, ValueError):
        return []
    return [found[at : at + MARK_BYTES] for at in range(0, len(found), MARK_BYTES)]
