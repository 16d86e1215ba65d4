"""What can go wrong with a cell itself, apart from its job."""

from __future__ import annotations


class CellStuck(Exception):
    """The cell did not die of being killed: a process of it hangs in the kernel."""


class StartFailed(Exception):
    """The cell could not be made; the text is what bubblewrap or process 1 said."""
