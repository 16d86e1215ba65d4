"""ArtifactRef: a blob by its content."""

from __future__ import annotations

from pydantic import Field

from omni_mcp.contracts.manifest import Closed

INLINE_LIMIT_BYTES = 64 * 1024  # measured: below this a database row is cheaper than a file


class ArtifactRef(Closed):
    """A blob by sha256. `name` is what its maker called it, such as `out/report.csv`."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)
    media_type: str = Field("application/octet-stream", max_length=255)
    name: str | None = Field(None, max_length=512)

    @property
    def uri(self) -> str:
        """The resource URI under which its owner reads it."""
        return f"artifact://{self.sha256}"


def answer_name(call: str) -> str:
    """Return the name under which the answer of *call* is kept where it is too large for its event."""
    return f"result of {call}"
