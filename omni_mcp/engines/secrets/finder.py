"""Says in one pass whether any of many needles may be in a text, at a cost that does not grow with their number.

A needle of at least ``2 * width - 1`` bytes covers one whole aligned block of ``width`` bytes wherever it stands. So it
is enough to look up the aligned blocks of the text in the set of all blocks that the needles contain. Found blocks are
confirmed by an exact search; the few needles too short for the widest blocks get narrower ones.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Literal

_FEW = 8  # needles: then looking for one after the other costs less than the blocks of a text of some hundred bytes
_WIDTHS: tuple[tuple[int, Literal["Q", "I", "H"]], ...] = ((8, "Q"), (4, "I"), (2, "H"))


class Finder:
    """Finds which of *needles* are in a text; exact, linear, and fast where there are none."""

    def __init__(self, needles: Iterable[str]) -> None:
        encoded = {needle: needle.encode("utf-8", "surrogatepass") for needle in needles}
        self._needles = tuple(sorted(encoded.items(), key=lambda pair: (-len(pair[0]), pair[0])))
        self._raw = tuple(encoded.values())
        groups: dict[int, set[int]] = {}
        for raw in encoded.values():
            width = next(width for width, _ in _WIDTHS if len(raw) >= 2 * width - 1)
            blocks = groups.setdefault(width, set())
            blocks.update(int.from_bytes(raw[at : at + width], sys.byteorder) for at in range(len(raw) - width + 1))
        self._filters = tuple((width, code, frozenset(groups[width])) for width, code in _WIDTHS if width in groups)

    def may_contain(self, text: bytes) -> bool:
        """Say False only if no needle is in *text*."""
        if len(self._needles) <= _FEW:
            return True
        for width, code, blocks in self._filters:
            whole = len(text) - len(text) % width
            if not blocks.isdisjoint(memoryview(text)[:whole].cast(code)):
                return True
        return False

    def is_any_in(self, text: bytes) -> bool:
        """Whether a needle is in *text*."""
        if len(self._raw) > _FEW and not self.may_contain(text):
            return False
        return any(map(text.__contains__, self._raw))

    def find(self, text: bytes) -> list[str]:
        """Return the needles that are in *text*, longest first."""
        if not self.is_any_in(text):
            return []
        return [needle for needle, raw in self._needles if raw in text]
