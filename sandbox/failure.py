"""ToolFailure: the way in which a tool says that it could not do what it was asked."""

from __future__ import annotations


class ToolFailure(Exception):
    """Becomes an error result with this text; the model reads it, so it says what to change."""
