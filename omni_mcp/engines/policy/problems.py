"""Where a fault is, said in one line of code."""

from __future__ import annotations

from omni_mcp.contracts.errors import Problem


def problem_at(file: str, line: int, path: str, message: str) -> Problem:
    """Return the problem *message* at *file*, *line* (0: the file as a whole) and *path*."""
    return Problem(file=file, line=line, path=path, message=message)
