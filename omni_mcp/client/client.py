"""Client: the gateway's JSON API from Python, with nothing but the standard library and the gateway's own shapes.

    client = Client.local()
    with client.begin("tidy up") as run:
        run.say("user_message", "What is the sha256 of this?")
        done = run.call("tools__text_hash", {"text": "one two three"})

It is synchronous: a program with an event loop calls it in a thread (`asyncio.to_thread`).
"""

from __future__ import annotations

import mimetypes
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import quote

import orjson

from omni_mcp.client.connection import Connection
from omni_mcp.client.errors import Unreachable
from omni_mcp.client.memory import Memory
from omni_mcp.client.stream import Streamed, events
from omni_mcp.client.upload import UploadBody
from omni_mcp.contracts import api
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.tool import CallKind, EntryKind
from omni_mcp.paths import find_home

T = TypeVar("T")
TIMEOUT_S = 600.0  # a call may wait for a person, and run for ten minutes


class Client:
    """One caller of one gateway. Safe to use from several threads.

    Args:
        base_url: such as `http://127.0.0.1:6464`.
        token: as `omni-mcp keys create NAME` prints it.
        timeout_s: how long an answer is awaited.
    """

    def __init__(self, base_url: str, token: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self._connection = Connection(base_url, token, timeout_s=timeout_s)
        self.memory = Memory(self._connection)

    @classmethod
    def local(cls, *, timeout_s: float = TIMEOUT_S) -> Client:
        """Return a client of the gateway that runs on this machine for this user, with the first token.

        Raises:
            Unreachable: none runs, or its token is gone.
        """
        home = find_home()
        try:
            note = orjson.loads(home.runtime_file.read_bytes())
            token = home.token_file.read_text("ascii").strip()
            base_url = f"http://{note['host']}:{int(note['port'])}"
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Unreachable("no gateway runs here over HTTP; start one with: omni-mcp serve") from error
        return cls(base_url, token, timeout_s=timeout_s)

    def call(
        self, name: str, arguments: JsonObject | None = None, *, kind: CallKind = "tool", profile: str = "default",
        run: str | None = None, thread: str | None = None, meta: JsonObject | None = None,
    ) -> api.CallAnswered:  # fmt: skip
        """Call a tool, read a resource or get a prompt.

        Raises:
            ApiError: the call was refused or failed; `code` says how, and `call` is its id.
        """
        wanted = api.NewCall(
            name=name, arguments=arguments or {}, kind=kind, profile=profile, run=run, thread=thread, meta=meta or {}
        )
        return api.CallAnswered.model_validate(
            self._connection.send("POST", "/api/calls", body=wanted.model_dump(exclude_none=True))
        )

    def explain(self, call: str) -> api.CallStory:
        """Return how a call of yours ended, and why."""
        return api.CallStory.model_validate(self._connection.send("GET", f"/api/calls/{_part(call)}"))

    def catalog(self, kind: EntryKind = "tool", *, profile: str = "default") -> Iterator[api.CatalogItem]:
        """Yield what can be named."""
        query = {"kind": kind, "profile": profile}
        return self._items("/api/catalog", api.CatalogPage.model_validate, query)

    def questions(self) -> Iterator[api.QuestionShown]:
        """Yield your calls that wait for a person."""
        return self._items("/api/approvals", api.QuestionPage.model_validate)

    def begin(self, title: str | None = None, *, thread: str | None = None) -> OpenRun:
        """Begin a run for calls and messages. Use it as a context manager: leaving it ends the run."""
        wanted = api.NewRun(title=title, thread=thread)
        facts = self._connection.send("POST", "/api/runs", body=wanted.model_dump(exclude_none=True))
        return OpenRun(self, api.RunShown.model_validate(facts))

    def end(self, run: str) -> None:
        """End a run that was begun."""
        self._connection.send("POST", f"/api/runs/{_part(run)}/end")

    def runs(self) -> Iterator[api.RunShown]:
        """Yield your runs, newest first."""
        return self._items("/api/runs", api.RunPage.model_validate)

    def run(self, run: str) -> api.RunShown:
        """Return one run."""
        return api.RunShown.model_validate(self._connection.send("GET", f"/api/runs/{_part(run)}"))

    def events(self, run: str) -> Iterator[api.EventShown]:
        """Yield the events of a run in order, as far as there are any now."""
        return self._items(f"/api/runs/{_part(run)}/events", api.EventPage.model_validate)

    def search(self, query: str, *, run: str | None = None, limit: int = 20) -> api.EventsFound:
        """Return events that hold every word of *query*, newest first."""
        wanted = {"query": query, "run": run, "limit": limit}
        return api.EventsFound.model_validate(self._connection.send("GET", "/api/events", query=wanted))

    def report(self, run: str, *messages: api.MessageDraft) -> api.EventsStored:
        """Report messages of a conversation, in their order."""
        body = {"events": [one.model_dump(exclude_none=True) for one in messages]}
        path = f"/api/runs/{_part(run)}/events"
        return api.EventsStored.model_validate(self._connection.send("POST", path, body=body))

    def stream(
        self, run: str | None = None, *, last_id: str | None = None, from_start: bool = False
    ) -> Iterator[Streamed]:
        """Yield events as they come, each once, through broken connections and restarts of the gateway.

        Args:
            run: only of this run, from its beginning; the iterator ends when the run is closed.
            last_id: begin behind the event that came with this id.
            from_start: of all runs, begin with the oldest event in place of the next one.

        Raises:
            ApiError: the stream cannot be had.
            StreamEnded: you may not read it any more.
        """
        if run is not None:
            return events(self._connection, f"/api/runs/{_part(run)}/stream", last_id=last_id)
        query: dict[str, object] = {"begin": "start"} if from_start else {}
        return events(self._connection, "/api/stream", last_id=last_id, query=query)

    def new_thread(self, title: str) -> api.ThreadShown:
        """Make a thread."""
        return api.ThreadShown.model_validate(self._connection.send("POST", "/api/threads", body={"title": title}))

    def threads(self) -> Iterator[api.ThreadShown]:
        """Yield your threads, newest first."""
        return self._items("/api/threads", api.ThreadPage.model_validate)

    def thread_runs(self, thread: str) -> Iterator[api.RunShown]:
        """Yield the runs of a thread in order."""
        return self._items(f"/api/threads/{_part(thread)}/runs", api.RunPage.model_validate)

    def forget_thread(self, thread: str) -> None:
        """Remove the name of a thread; its runs stay."""
        self._connection.send("DELETE", f"/api/threads/{_part(thread)}")

    def upload(
        self, file: Path | bytes, *, name: str | None = None, media_type: str | None = None, run: str | None = None
    ) -> api.ArtifactShown:
        """Store a file of up to 25 MiB and return its reference."""
        shown = name or (file.name if isinstance(file, Path) else "upload")
        guessed = media_type or mimetypes.guess_type(shown)[0] or "application/octet-stream"
        body = UploadBody(file, name=shown, media_type=guessed)
        headers = {"Content-Type": body.content_type, "Content-Length": str(body.length)}
        with self._connection.opened("POST", "/api/artifacts", query={"run": run}, data=body, headers=headers) as done:
            return api.ArtifactShown.model_validate_json(done.read())

    def artifacts(self) -> Iterator[api.ArtifactShown]:
        """Yield your artifacts, newest first."""
        return self._items("/api/artifacts", api.ArtifactPage.model_validate)

    def artifact(self, sha256: str) -> bytes:
        """Return the bytes of an artifact."""
        with self._connection.opened("GET", f"/api/artifacts/{_part(sha256)}") as answer:
            return answer.read()

    def projects(self) -> Iterator[api.ProjectShown]:
        """Yield your projects, and as whom you are in each."""
        return self._items("/api/projects", api.ProjectPage.model_validate)

    def status(self) -> JsonObject:
        """Return how the gateway stands."""
        return self._connection.send("GET", "/api/status")

    def errors(self) -> Iterator[api.ErrorShown]:
        """Yield what each code means."""
        return self._items("/api/errors", api.ErrorPage.model_validate)

    def _items(
        self, path: str, page_of: Callable[[JsonObject], Any], query: dict[str, Any] | None = None
    ) -> Iterator[Any]:
        """Yield the items of all pages; a page is asked for when it is needed."""
        wanted: dict[str, Any] = dict(query or {})
        while True:
            page = page_of(self._connection.send("GET", path, query=wanted))
            yield from page.items
            if page.next is None:
                return
            wanted["cursor"] = page.next


class OpenRun:
    """A run that was begun: what is said and called in it stands in it in this order."""

    def __init__(self, client: Client, facts: api.RunShown) -> None:
        self._client = client
        self.facts = facts
        self.id = facts.id

    def say(
        self, kind: api.MessageKind, text: str, *, author: str | None = None, model: JsonObject | None = None
    ) -> int:
        """Report one message and return its seq."""
        said = api.MessageDraft(kind=kind, text=text, author=author, model=model)
        return self._client.report(self.id, said).events[0].seq

    def call(self, name: str, arguments: JsonObject | None = None, **facts: Any) -> api.CallAnswered:
        """Make a call in this run; see `Client.call`."""
        return self._client.call(name, arguments, run=self.id, **facts)

    def upload(self, file: Path | bytes, **facts: Any) -> api.ArtifactShown:
        """Store a file and report it in this run; see `Client.upload`."""
        return self._client.upload(file, run=self.id, **facts)

    def end(self) -> None:
        """End the run."""
        self._client.end(self.id)

    def __enter__(self) -> OpenRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()


def _part(name: str) -> str:
    return quote(name, safe="")
