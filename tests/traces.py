"""What somebody finds of words who takes the disk: any piece of one, in any spelling, in any file, open ones included.

Indexes keep words without their accents, without the letters that they share with the word before, or cut to stems; so
pieces are looked for, and not the text.
"""

from __future__ import annotations

import base64
import unicodedata
from collections.abc import Iterator
from pathlib import Path

PIECE = 5  # letters: words are chosen so that no piece of them is in anything else


class Traces:
    """Looks for what is left of *words*, but for the pieces that *elsewhere*, a text that stays, has as well."""

    def __init__(self, *words: str, elsewhere: str = "") -> None:
        pieces = {piece for word in words for bare in (word, _bare(word)) for piece in _spelled(bare)}
        self._pieces = {piece for piece in pieces if piece not in elsewhere.encode()}

    def below(self, directory: Path) -> dict[str, set[bytes]]:
        """Return the pieces that are found, by file."""
        found = {name: {piece for piece in self._pieces if piece in data} for name, data in _contents(directory)}
        return {name: pieces for name, pieces in found.items() if pieces}


def _bare(word: str) -> str:
    return "".join(letter for letter in unicodedata.normalize("NFKD", word) if not unicodedata.combining(letter))


def _spelled(word: str) -> Iterator[bytes]:
    for at in range(len(word) - PIECE + 1):
        piece = word[at : at + PIECE]
        yield from (piece.encode(), piece.encode("latin-1"), piece.encode("utf-16-le"), piece.encode().hex().encode())
        yield "".join(letter if letter.isascii() else f"\\u{ord(letter):04x}" for letter in piece).encode()
    for shift in range(3):  # base64 has three spellings of what stands inside a text
        yield base64.b64encode(b" " * shift + word.encode())[4:-4].lower()


def _contents(directory: Path) -> Iterator[tuple[str, bytes]]:
    """Yield what is in every file below *directory*, and in those that this process has open without a name."""
    for file in directory.rglob("*"):
        if file.is_file():
            yield file.relative_to(directory).as_posix(), file.read_bytes().lower()
    for link in Path("/proc/self/fd").iterdir():
        try:
            if "(deleted)" in str(link.readlink()) and link.is_file():
                yield f"open: {link.readlink()}", link.read_bytes().lower()
        except OSError:
            continue  # it was closed meanwhile, or is no file that can be read
