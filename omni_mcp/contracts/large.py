"""A result that is too large to be held in the gateway: what is known of it, and how it is looked at."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from omni_mcp.contracts.json import JsonObject, canonical

PREVIEW_CHARACTERS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptFile:
    """The form of a result that is kept as an artifact, masked: `size_bytes` from `start` on in an open file."""

    file: int
    start: int
    size_bytes: int
    sha256: str
    media_type: str
    preview: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LookedAt:
    """What a look at a whole result brought.

    `size_bytes` is that of the canonical form. One of `body`, masked, and `kept` is set if nothing is wrong with it;
    neither where it is over the limit and its kind is not kept.
    """

    size_bytes: int
    is_structured: bool
    problems: tuple[str, ...] = ()
    body: JsonObject | None = None
    kept: KeptFile | None = None


class LargeBody(Protocol):
    """A result that lies outside of the gateway's own memory."""

    def looked_at(
        self, *, schema: JsonObject | None, limit_bytes: int, keep: bool
    ) -> AbstractAsyncContextManager[LookedAt]:
        """Check it against *schema* and mask it; beyond *limit_bytes* it is made ready to be kept, if *keep*.

        Its file is open inside the block. The result itself is gone after it.

        Raises:
            InvalidResult: it could not be looked at within bounds.
        """
        ...


def kept_form(body: JsonObject) -> tuple[bytes, str]:
    """Return what is stored of *body* and its media type: the structured content, else a lone text, else all of it."""
    if "structuredContent" in body:
        return canonical(body["structuredContent"]), "application/json"
    content = body.get("content") or []
    if len(content) == 1 and content[0].get("type") == "text":
        return str(content[0]["text"]).encode("utf-8", "replace"), "text/plain; charset=utf-8"
    return canonical(body), "application/json"


def preview_of(data: bytes) -> str:
    """Return how *data* begins, as text."""
    return data[: PREVIEW_CHARACTERS * 4].decode("utf-8", "replace")[:PREVIEW_CHARACTERS]
