"""What goes wrong when the gateway is asked."""

from __future__ import annotations

from omni_mcp.contracts.api import ProblemShown


class ApiError(Exception):
    """The gateway answered with an error; `code` is from its failure catalogue."""

    def __init__(self, status: int, problem: ProblemShown) -> None:
        super().__init__(f"{problem.detail} ({problem.code})")
        self.status = status
        self.problem = problem

    @property
    def code(self) -> str:
        """The stable word for what is wrong."""
        return self.problem.code

    @property
    def call(self) -> str | None:
        """The call that failed, if one was made."""
        return self.problem.call


class Unreachable(Exception):
    """No gateway answers there, or it went away before it had answered."""


class StreamEnded(Exception):
    """The gateway ended a stream for good; `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the stream has ended: {reason}")
        self.reason = reason
