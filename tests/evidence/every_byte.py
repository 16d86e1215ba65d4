"""Changes a pack one byte at a time and asks whether that is noticed. Run: `python tests/evidence/every_byte.py`."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from omni_mcp.contracts.errors import LogCorrupt
from omni_mcp.engines.runlog.verify_pack import verify_pack

FLIPS = (0x01, 0x20, 0x80)  # the lowest bit, the case of a letter, the highest bit


def unnoticed(pack: bytes, file: Path, *, every: int = 1) -> list[tuple[int, int]]:
    """Return (offset, flip) of each change after which the pack still verifies."""
    found = []
    changed = bytearray(pack)
    for at in range(0, len(pack), every):
        for flip in FLIPS if every == 1 else (FLIPS[at % len(FLIPS)],):
            changed[at] ^= flip
            file.write_bytes(changed)
            changed[at] ^= flip
            try:
                if verify_pack(file).ok:
                    found.append((at, flip))
            except LogCorrupt:
                continue
    return found


def main() -> int:
    """Go through all bytes of a small pack."""
    from tests.evidence.conftest import worked

    with tempfile.TemporaryDirectory() as directory:
        evidence = asyncio.run(worked(Path(directory)))
        pack = evidence.pack(evidence.bob)
        print(f"{len(pack)} bytes, {len(FLIPS)} changes each", flush=True)
        found = unnoticed(pack, Path(directory) / "flipped.tar")
    for at, flip in found:
        print(f"byte {at} ^ {flip:#x} was not noticed")
    print(f"{len(found)} of {len(pack) * len(FLIPS)} changes were not noticed")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
