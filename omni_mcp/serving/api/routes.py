"""The closed table of routes: what is served and what the OpenAPI document says come from it and from nowhere else."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from pydantic import BaseModel

from omni_mcp.contracts import api
from omni_mcp.contracts.tool import CallKind

PREFIX = "/api"
JSON, EVENTS, BYTES = "application/json", "text/event-stream", "application/octet-stream"
HttpMethod = Literal["GET", "POST", "PATCH", "DELETE"]
Decided = tuple[CallKind, str, str]

LIST_RUNS: Decided = ("tool", "runs", "list")
READ_RUN: Decided = ("tool", "runs", "read")
SEARCH_RUNS: Decided = ("tool", "runs", "search")
EXPLAIN_CALL: Decided = ("tool", "runs", "explain")
READ_ARTIFACT: Decided = ("resource", "runs", "artifact://{sha256}")
SAY: Decided = ("tool", "messages", "say")


@dataclass(frozen=True)
class ApiRoute:
    """One method of one path.

    Args:
        operation: its name in the document, and of what serves it.
        like: what the policy is asked about: who may not call that tool, or read that resource, may not ask here
            either. None: the route shows only what is the caller's own credential's, or decides by itself.
        reads_log: that it was asked is recorded in the gateway's own run.
        body: None for none, `bytes` for a multipart upload.
        media: of the answer.
    """

    operation: str
    method: HttpMethod
    path: str
    summary: str
    answer: type[BaseModel] | None
    tag: str
    like: Decided | None = None
    reads_log: bool = False
    query: type[BaseModel] = api.NoQuery
    body: type[BaseModel] | type[bytes] | None = None
    status: int = 200
    media: str = JSON

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Matches the whole path; a name in it is one segment."""
        return re.compile("".join(_part(part) for part in re.split(r"(\{\w+\})", self.path)))

    @property
    def shape(self) -> type[BaseModel] | None:
        """The shape of a body that is JSON."""
        return self.body if isinstance(self.body, type) and issubclass(self.body, BaseModel) else None

    @property
    def names(self) -> list[str]:
        """The names in the path, in order."""
        return re.findall(r"\{(\w+)\}", self.path)


def _part(part: str) -> str:
    return rf"(?P<{part[1:-1]}>[^/]{{1,200}})" if part.startswith("{") else re.escape(part)


ROUTES: tuple[ApiRoute, ...] = (
    ApiRoute("get_document", "GET", "/api/openapi.json", "This document.", api.Anything, "about"),
    ApiRoute(
        "get_status", "GET", "/api/status", "Whether the gateway serves you; for an operator's key, how all of it "
        "stands.", api.Anything, "about",
    ),
    ApiRoute("list_errors", "GET", "/api/errors", "What each code means and what to do.", api.ErrorPage, "about"),
    ApiRoute("list_projects", "GET", "/api/projects", "Your projects.", api.ProjectPage, "projects"),
    ApiRoute("get_project", "GET", "/api/projects/{project}", "One project.", api.ProjectShown, "projects"),
    ApiRoute(
        "list_threads", "GET", "/api/threads", "Your threads, newest first.", api.ThreadPage, "threads",
        like=LIST_RUNS, query=api.PageQuery,
    ),
    ApiRoute(
        "create_thread", "POST", "/api/threads", "Make a thread: a name under which runs are grouped.",
        api.ThreadShown, "threads", like=SAY, body=api.NewThread, status=201,
    ),
    ApiRoute(
        "get_thread", "GET", "/api/threads/{thread}", "One thread.", api.ThreadShown, "threads", like=LIST_RUNS
    ),
    ApiRoute(
        "forget_thread", "DELETE", "/api/threads/{thread}", "Remove the name; the runs stay.", None, "threads",
        like=SAY, status=204,
    ),
    ApiRoute(
        "list_thread_runs", "GET", "/api/threads/{thread}/runs", "The runs of a thread, in order.", api.RunPage,
        "threads", like=LIST_RUNS, reads_log=True, query=api.PageQuery,
    ),
    ApiRoute(
        "list_runs", "GET", "/api/runs", "Your runs, newest first.", api.RunPage, "runs", like=LIST_RUNS,
        reads_log=True, query=api.PageQuery,
    ),
    ApiRoute(
        "begin_run", "POST", "/api/runs", "Begin a run for calls and messages that name it.", api.RunShown, "runs",
        like=SAY, body=api.NewRun, status=201,
    ),
    ApiRoute(
        "get_run", "GET", "/api/runs/{run}", "One run.", api.RunShown, "runs", like=READ_RUN, reads_log=True
    ),
    ApiRoute(
        "end_run", "POST", "/api/runs/{run}/end", "End a run that you began: nothing more is recorded in it.", None,
        "runs", like=SAY, status=204,
    ),
    ApiRoute(
        "list_events", "GET", "/api/runs/{run}/events", "The events of a run in order.", api.EventPage, "events",
        like=READ_RUN, reads_log=True, query=api.EventQuery,
    ),
    ApiRoute(
        "report_events", "POST", "/api/runs/{run}/events",
        "Report what was said, into your own open run. Every other kind of event is refused.", api.EventsStored,
        "events", like=SAY, body=api.NewEvents, status=201,
    ),
    ApiRoute(
        "stream_run", "GET", "/api/runs/{run}/stream", "The events of a run, and those that come. `Last-Event-ID` is "
        "the seq of the last event that you have.", api.EventShown, "events", like=READ_RUN, reads_log=True,
        media=EVENTS,
    ),
    ApiRoute(
        "stream_all", "GET", "/api/stream", "The events of all your runs as they come. `Last-Event-ID` is the id that "
        "came with the last event that you have.", api.EventShown, "events", like=READ_RUN, reads_log=True,
        query=api.StreamQuery, media=EVENTS,
    ),
    ApiRoute(
        "search_events", "GET", "/api/events", "Events of your runs that hold every word, newest first.",
        api.EventsFound, "events", query=api.SearchQuery,
    ),
    ApiRoute(
        "list_artifacts", "GET", "/api/artifacts", "Your artifacts, newest first.", api.ArtifactPage, "artifacts",
        like=READ_ARTIFACT, reads_log=True, query=api.PageQuery,
    ),
    ApiRoute(
        "upload_artifact", "POST", "/api/artifacts", "Store a file of up to 25 MiB: one part named `file`.",
        api.ArtifactShown, "artifacts", like=SAY, query=api.UploadQuery, body=bytes, status=201,
    ),
    ApiRoute(
        "get_artifact", "GET", "/api/artifacts/{sha256}", "The bytes of an artifact.", None, "artifacts",
        like=READ_ARTIFACT, reads_log=True, media=BYTES,
    ),
    ApiRoute(
        "list_questions", "GET", "/api/approvals", "Your calls that wait for a person, oldest first. Nothing is "
        "decided here.", api.QuestionPage, "approvals", like=EXPLAIN_CALL,
    ),
    ApiRoute(
        "get_question", "GET", "/api/approvals/{approval}", "One of your calls that waits for a person.",
        api.QuestionShown, "approvals", like=EXPLAIN_CALL,
    ),
    ApiRoute(
        "list_catalog", "GET", "/api/catalog", "What you can name, by the same policy as an MCP client's lists.",
        api.CatalogPage, "catalog", query=api.CatalogQuery,
    ),
    ApiRoute(
        "make_call", "POST", "/api/calls", "Call a tool, read a resource or get a prompt.", api.CallAnswered, "calls",
        body=api.NewCall,
    ),
    ApiRoute("explain_call", "GET", "/api/calls/{call}", "How a call of yours ended, and why.", api.CallStory, "calls"),
    ApiRoute(
        "list_memory", "GET", "/api/memory", "What is remembered for you: a call of `memory__list`.", api.Anything,
        "memory", query=api.PageQuery,
    ),
    ApiRoute(
        "remember", "POST", "/api/memory", "Remember something: a call of `memory__remember`.", api.Anything, "memory",
        body=api.Arguments, status=201,
    ),
    ApiRoute(
        "share", "POST", "/api/memory/share", "Remember something for the project: a call of `memory__share`.",
        api.Anything, "memory", body=api.Arguments, status=201,
    ),
    ApiRoute(
        "list_duplicates", "GET", "/api/memory/duplicates", "Items that say nearly the same: a call of "
        "`memory__duplicates`.", api.Anything, "memory",
    ),
    ApiRoute(
        "recall", "POST", "/api/memory/recall", "Find what fits: a call of `memory__recall`.", api.Anything, "memory",
        body=api.Arguments,
    ),
    ApiRoute(
        "promote", "POST", "/api/memory/promote", "Remember an event or an artifact: a call of `memory__promote`.",
        api.Anything, "memory", body=api.Arguments, status=201,
    ),
    ApiRoute(
        "get_memory", "GET", "/api/memory/{item}", "One item: the resource `memory://ITEM`.", api.Anything, "memory"
    ),
    ApiRoute(
        "revise", "PATCH", "/api/memory/{item}", "Change an item: a call of `memory__revise`.", api.Anything, "memory",
        body=api.Arguments,
    ),
    ApiRoute(
        "forget", "DELETE", "/api/memory/{item}", "Forget an item: a call of `memory__forget`.", api.Anything, "memory"
    ),
)  # fmt: skip


class Table:
    """Finds the route of a request. A path without a name in it goes before one that it would also fit."""

    def __init__(self, routes: tuple[ApiRoute, ...] = ROUTES) -> None:
        self.routes = routes
        self._fixed: dict[str, list[ApiRoute]] = {}
        for route in routes:
            if not route.names:
                self._fixed.setdefault(route.path, []).append(route)
        self._named = [route for route in routes if route.names]

    def at(self, path: str) -> tuple[list[ApiRoute], dict[str, str]]:
        """Return the routes of *path*, one for each method, and the names that are in it."""
        if path in self._fixed:
            return self._fixed[path], {}
        found: list[ApiRoute] = []
        place: dict[str, str] = {}
        for route in self._named:
            if match := route.pattern.fullmatch(path):
                found.append(route)
                place = match.groupdict()
        return found, place
