"""Memory: what agents keep, where each item came from, and what a recall finds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from omni_mcp.contracts.hosts import NO_HOST, host_of_url
from omni_mcp.contracts.manifest import Closed

MemoryKind = Literal["episodic", "semantic", "procedural"]
MemoryScope = Literal["user", "project", "agent", "run"]
Taint = Literal["reads_private", "reads_untrusted"]
Change = Literal["remembered", "revised", "promoted", "imported", "merged", "forgotten", "expired"]

SERVER = "memory"
TEXT_LIMIT_CHARS = 16_384
QUERY_LIMIT_CHARS = 10_000

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})

Tag = Annotated[str, Field(min_length=1, max_length=64)]
Name = Annotated[str, Field(min_length=1, max_length=256)]


class NoVectors(Exception):
    """An embedder cannot be asked now. Never leaves the memory, which goes on by words; its text is the operator's."""


class MemorySource(Closed):
    """Where an item came from: the event that wrote it, and what it was made of where it was promoted.

    `run`, `seq` and `call` name the `tool_call` that wrote it last; `from_run` and `from_seq` the event, or `artifact`
    the blob, whose text it holds.
    """

    run: str | None = None
    seq: int | None = None
    call: str | None = None
    artifact: str | None = None
    from_run: str | None = None
    from_seq: int | None = None


class MemoryItem(Closed):
    """One thing that is remembered.

    `owner` says whose it is within its scope: a principal's key (`agent`), `User::"ID"@project` (`user`), a project
    (`project`) or a run (`run`). `writer` is the principal that wrote it last, where that is not the owner; None for an
    import. `key` is the caller's own name for it, unique below `scope` and `owner`. `at_ns` is
    when it happened, `created_at_ns` when it was written; both count UTC nanoseconds since the epoch. `importance` is
    from 0 to 1. `taint` holds the labels of what the writing run had read: they never come off by a revision.
    """

    id: str
    kind: MemoryKind = "semantic"
    scope: MemoryScope
    owner: str
    project: str
    text: Annotated[str, Field(min_length=1, max_length=TEXT_LIMIT_CHARS)]
    key: Name | None = None
    subject: Name | None = None
    session: Name | None = None
    tags: tuple[Tag, ...] = ()
    importance: Annotated[float, Field(ge=0, le=1)] = 0.5
    taint: tuple[Taint, ...] = ()
    source: MemorySource = MemorySource()
    at_ns: int
    created_at_ns: int
    revised_at_ns: int | None = None
    expires_at_ns: int | None = None
    version: int = 1
    writer: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Readers:
    """Whose items a caller may see: pairs of (scope, owner). Made from the principal and its run alone."""

    places: tuple[tuple[MemoryScope, str], ...]
    project: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall:
    """What to look for. `budget_chars` bounds the texts of all hits together; the first that does not fit is left out
    and the next shorter ones are still tried."""

    query: str
    readers: Readers
    k: int = 10
    budget_chars: int | None = None
    kinds: tuple[MemoryKind, ...] = ()
    tags: tuple[str, ...] = ()
    subject: str | None = None
    session: str | None = None
    without_taint: tuple[Taint, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One item that was found. `parts` says what its score is made of: `words`, `meaning`, `neighbour`, `entity`, …;
    they add up to `score`."""

    item: MemoryItem
    score: float
    parts: dict[str, float] = field(default_factory=dict)


class Hits(list[Hit]):
    """Hits, best first. `words_only` tells the operator why nothing could be found by its meaning; None: it could."""

    def __init__(self, hits: Iterable[Hit] = (), *, words_only: str | None = None) -> None:
        super().__init__(hits)
        self.words_only = words_only


def _endpoint(value: str) -> str:
    host = host_of_url(value)
    if host == NO_HOST or "@" in value or "#" in value:
        raise ValueError("must be a URL such as https://api.example.org/v1/embeddings")
    if not value.lower().startswith("https://") and host.rpartition(":")[0] not in _LOOPBACK:
        raise ValueError("must begin with https://; http is for this machine only")
    return value


class MemorySettings(Closed):
    """What finds memories by their meaning."""

    embedder: Literal["static", "onnx", "openai"] = Field(
        "static",
        description="`static`: the table of the package; `onnx`: a sentence model on this machine; `openai`: an "
        "endpoint that speaks like OpenAI's. Another one reads everything anew.",
    )
    model: str | None = Field(
        None, min_length=1, description="`onnx`: directory of the model; `openai`: the name that its endpoint knows."
    )
    url: Annotated[str, AfterValidator(_endpoint)] | None = Field(
        None,
        description="`openai`: the endpoint, such as https://api.example.org/v1/embeddings. Every text is sent there.",
    )
    secret: str | None = Field(None, description="`openai`: name of `[secrets]`; sent as a bearer token.")
    dimensions: int | None = Field(
        None, ge=8, le=4096, multiple_of=8, description="`openai`: how many numbers a vector of the model has."
    )
    timeout_s: float = Field(10.0, gt=0, le=60, description="`openai`: how long it may take; then words must do.")
    items: int = Field(250_000, ge=1, le=10_000_000, description="How many items one owner may keep in one scope.")
    mib: int = Field(128, ge=1, le=65_536, description="How much they may take in all, in MiB.")
    shared_items: int = Field(
        50_000, ge=1, le=10_000_000,
        description="How many of them one principal may write in the scopes user, project and run together.",
    )  # fmt: skip
    shared_mib: int = Field(32, ge=1, le=65_536, description="How much those may take, in MiB.")

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        needs = {"static": (), "onnx": ("model",), "openai": ("url", "model", "dimensions")}[self.embedder]
        if lacking := [name for name in needs if getattr(self, name) is None]:
            raise ValueError(f"the embedder {self.embedder} needs {' and '.join(lacking)}")
        return self


def is_withheld(server: str | None, arguments: Mapping[str, object]) -> bool:
    """Whether a call says that what it carries must not be kept: it is refused, and recorded without its arguments.

    Only calls of the memory's own tools can say so, because they are refused then: nothing that runs leaves the record.
    """
    return server == SERVER and arguments.get("do_not_store", False) is not False
