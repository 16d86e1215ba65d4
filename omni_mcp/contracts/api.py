"""What the JSON API takes and answers: one closed shape for each request, one shape for each answer.

Times are ISO 8601 in UTC. Runs, calls, threads and questions are named by UUIDs, artifacts by their sha256. A list is a
page: its `next` goes back as `cursor`, and is null on the last page.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from omni_mcp.contracts.events import Message
from omni_mcp.contracts.json import JsonObject, JsonValue
from omni_mcp.contracts.manifest import Closed
from omni_mcp.contracts.tool import CallKind, EntryKind

MESSAGE_LIMIT_CHARS = 65_536
MESSAGES_LIMIT = 100  # of one request
UPLOAD_LIMIT_BYTES = 25 * 1024 * 1024
PAGE_LIMIT = 200
EVENTS_LIMIT = 1000
TITLE_LIMIT_CHARS = 200

MessageKind = Literal["user_message", "assistant_message_delta", "assistant_message"]
Id = Annotated[str, Field(min_length=1, max_length=64)]
Title = Annotated[str, Field(min_length=1, max_length=TITLE_LIMIT_CHARS)]
Cursor = Annotated[str, Field(min_length=1, max_length=512, description="The `next` of the page before.")]
Limit = Annotated[int, Field(ge=1, le=PAGE_LIMIT)]


class Shown(BaseModel):
    """Base of answers: later versions may show more, and a reader passes over what it does not know."""

    model_config = ConfigDict(extra="ignore", frozen=True, defer_build=True)


class NoQuery(Closed):
    """No parameters."""


class PageQuery(Closed):
    """One page of a list."""

    limit: Limit = 50
    cursor: Cursor | None = None


class EventQuery(Closed):
    """One page of the events of a run."""

    limit: int = Field(50, ge=1, le=EVENTS_LIMIT)
    cursor: Cursor | None = None


class SearchQuery(Closed):
    """Words that an event must all hold, and the run to look in, if only one is meant."""

    query: str = Field(min_length=1, max_length=10_000)
    run: Id | None = None
    limit: int = Field(20, ge=1, le=100)


class CatalogQuery(Closed):
    """Which list, and of which endpoint `/mcp/PROFILE`."""

    kind: EntryKind = "tool"
    profile: str = Field("default", min_length=1, max_length=64)
    cursor: Cursor | None = None


class UploadQuery(Closed):
    """The open run that the file is reported in; without one it is the caller's current run."""

    run: Id | None = None


class StreamQuery(Closed):
    """Where a stream without `Last-Event-ID` begins: with what comes next, or with the oldest event."""

    begin: Literal["now", "start"] = "now"


class NewThread(Closed):
    """A thread groups runs of one principal."""

    title: Title


class NewRun(Closed):
    """A run that its caller names in later requests, until it ends it or leaves it idle."""

    title: Title | None = None
    thread: Id | None = None


class MessageDraft(Message):
    """One conversation event as its client reports it; number and time come from the gateway."""

    kind: MessageKind
    text: str = Field(max_length=MESSAGE_LIMIT_CHARS)
    author: str | None = Field(None, max_length=128)


class NewEvents(Closed):
    """Conversation events, stored in this order."""

    events: tuple[MessageDraft, ...] = Field(min_length=1, max_length=MESSAGES_LIMIT)


class NewCall(Closed):
    """One call.

    `run` is an open run of the caller's that was begun with `POST /api/runs`; without it the call joins the caller's
    current run, or the one of `thread`. `meta` is what an MCP client would send as `_meta`.
    """

    name: str = Field(min_length=1, max_length=2048)
    kind: CallKind = "tool"
    arguments: JsonObject = {}
    profile: str = Field("default", min_length=1, max_length=64)
    run: Id | None = None
    thread: Id | None = None
    meta: JsonObject = {}


class Arguments(BaseModel):
    """Arguments of a tool of the memory; its own schema says which (`GET /api/catalog`)."""

    model_config = ConfigDict(extra="allow", frozen=True, defer_build=True)


class ProblemShown(Shown):
    """What is wrong. `code` is from `GET /api/errors`; `call` is set where a call was made; `data` holds the place."""

    detail: str
    code: str
    call: str | None = None
    data: JsonObject = {}
    next_step: str = ""


class ProjectShown(Shown):
    """A project of the caller's, and as whom it is in it."""

    id: str
    principal: str
    kind: Literal["User", "Agent"]
    owner: str | None
    roles: tuple[str, ...]


class ProjectPage(Shown):
    """Projects of the caller's."""

    items: tuple[ProjectShown, ...]
    next: str | None = None


class ThreadShown(Shown):
    """One thread."""

    id: str
    title: str
    project: str
    created_at: str


class ThreadPage(Shown):
    """Threads, newest first."""

    items: tuple[ThreadShown, ...]
    next: str | None = None


class RunShown(Shown):
    """One run. `erased` counts events whose text is gone."""

    id: str
    kind: str
    project: str
    principal: str
    thread: str | None
    parent_run: str | None
    title: str | None
    trace_id: str | None
    created_at: str
    last_seq: int
    open: bool
    calls: int
    open_calls: int
    erased: int


class RunPage(Shown):
    """Runs: newest first, or of one thread in order."""

    items: tuple[RunShown, ...]
    next: str | None = None


class EventShown(Shown):
    """One event as its own caller sees it. `payload` is null once it is erased."""

    run: str
    seq: int
    at: str
    kind: str
    code: str | None
    actor: str
    call: str | None
    parent: int | None
    payload: JsonValue


class EventPage(Shown):
    """Events of a run in order."""

    items: tuple[EventShown, ...]
    next: str | None = None


class EventsFound(Shown):
    """Events that were found, newest first; `more`: some did not fit into the answer."""

    items: tuple[EventShown, ...]
    more: bool


class EventStored(Shown):
    """The place that a reported event got."""

    seq: int
    kind: MessageKind


class EventsStored(Shown):
    """Reported events, durable."""

    run: str
    events: tuple[EventStored, ...]


class ArtifactShown(Shown):
    """A blob, and the run that refers to it."""

    sha256: str
    size: int
    media_type: str
    name: str | None
    uri: str
    run: str
    at: str


class ArtifactPage(Shown):
    """Artifacts, newest first."""

    items: tuple[ArtifactShown, ...]
    next: str | None = None


class QuestionShown(Shown):
    """A call of the caller's that waits for a person."""

    id: str
    state: str
    call: str
    run: str
    name: str
    arguments: JsonObject
    hosts: tuple[str, ...]
    asked_at: str
    expires_at: str


class QuestionPage(Shown):
    """Open questions, oldest first."""

    items: tuple[QuestionShown, ...]
    next: str | None = None


class CatalogItem(Shown):
    """One thing that the caller can name; `definition` is what an MCP client is told of it."""

    kind: EntryKind
    name: str
    definition: JsonObject


class CatalogPage(Shown):
    """What the caller can name."""

    items: tuple[CatalogItem, ...]
    next: str | None = None


class CallAnswered(Shown):
    """The tool answered. `is_error`: it says itself that it failed. `result` is its answer as MCP has it."""

    call: str
    run: str
    is_error: bool
    result: JsonObject


class CallStory(Shown):
    """How a call ended."""

    call: str
    name: str | None
    at: str
    state: str
    is_error: bool | None = None
    code: str | None = None
    message: str | None = None
    meaning: str | None = None
    next_step: str | None = None


class ErrorShown(Shown):
    """One code of the failure catalogue."""

    code: str
    category: str
    retry: str
    http_status: int
    meaning: str
    recovery: str


class ErrorPage(Shown):
    """The failure catalogue."""

    items: tuple[ErrorShown, ...]
    next: str | None = None


class Anything(BaseModel):
    """An object whose members are documented elsewhere."""

    model_config = ConfigDict(extra="allow", frozen=True, defer_build=True)
