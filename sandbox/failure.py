"""ToolFailure: the way in which a tool says that it could not do what it was asked."""

from __future__ import annotations


class ToolFailure(Exception):
    """Becomes an error result with this text; the model reads it, so it says what to change.

    `passing` says that the same call may do better in a moment.
    """

    def __init__(self, text: str, *, passing: bool = False) -> None:
        super().__init__(text)
        self.passing = passing
