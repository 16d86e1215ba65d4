"""Artifacts: what a caller's calls left, and files that it hands in; another's are not there."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from urllib.parse import quote

from omni_mcp.contracts import api
from omni_mcp.contracts.artifact import ArtifactRef
from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.errors import BadRequest, Conflict, NotFound, RateLimited, TooLarge
from omni_mcp.contracts.events import ArtifactStored, draft
from omni_mcp.contracts.ids import iso_time
from omni_mcp.engines.artifacts.store import ArtifactStore
from omni_mcp.engines.runlog.store import SqliteRunLog
from omni_mcp.serving.api.asking import CLIENT, NO_STORE, Asking, Handler
from omni_mcp.serving.api.multipart import ANY_TYPE, HEAD_LIMIT_BYTES, read_file
from omni_mcp.serving.api.runs import own_run
from omni_mcp.serving.run_sources import Places
from omni_mcp.serving.runbook import Runbook

FILES_PER_PRINCIPAL = 4  # at once in each direction; each upload may take its limit of the disk, each answer of memory
CHUNK_BYTES = 256 * 1024
NO_ARTIFACT = "there is no such artifact of yours"
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ArtifactRoutes:
    """Answers the routes of artifacts."""

    def __init__(
        self, artifacts: ArtifactStore, log: SqliteRunLog, runbook: Runbook, places: Places, *,
        limit_bytes: int = api.UPLOAD_LIMIT_BYTES,
    ) -> None:  # fmt: skip
        self._artifacts = artifacts
        self._log = log
        self._runbook = runbook
        self._places = places
        self._limit_bytes = limit_bytes
        self._uploads: dict[str, int] = {}
        self._downloads: dict[str, int] = {}

    def handlers(self) -> Mapping[str, Handler]:
        """What serves each operation."""
        return {"list_artifacts": self._list, "get_artifact": self._get, "upload_artifact": self._upload}

    async def _list(self, asking: Asking) -> api.ArtifactPage:
        """Its cursors are sealed: in the clear they would count what others keep."""
        query: api.PageQuery = asking.query
        whose = f"artifacts of {asking.principal.key}"
        before = None
        if query.cursor is not None:
            try:
                before = self._places.open(query.cursor, whose)
            except BadRequest as error:
                raise BadRequest("the cursor is not valid", data={"path": "$.cursor"}) from error
        found = await self._artifacts.page(owner=asking.principal.key, limit=query.limit + 1, before=before)
        shown = found[: query.limit]
        return api.ArtifactPage(
            items=tuple(artifact_shown(ref, run, at_ns) for _, ref, run, at_ns in shown),
            next=self._places.seal(shown[-1][0], whose) if len(found) > query.limit else None,
        )

    async def _get(self, asking: Asking) -> None:
        """Send the bytes. Whatever they are, a browser neither shows nor runs them."""
        sha256 = asking.place["sha256"]
        if not _SHA256.fullmatch(sha256):
            raise NotFound(NO_ARTIFACT)
        with _Counted(self._downloads, asking.principal.key):
            try:
                ref, data = await self._artifacts.get(sha256, owner=asking.principal.key)
            except NotFound as error:
                raise NotFound(NO_ARTIFACT) from error
            await self._send(asking, ref, data)

    async def _send(self, asking: Asking, ref: ArtifactRef, data: bytes) -> None:
        exchange = asking.exchange
        name = quote((ref.name or ref.sha256).rsplit("/", 1)[-1], safe="")
        await exchange.start(
            200,
            [
                (b"content-type", header_value(ref.media_type)),
                (b"content-length", str(len(data)).encode()),
                (b"content-disposition", f"attachment; filename*=UTF-8''{name}".encode()),
                (b"x-content-type-options", b"nosniff"),
                NO_STORE,
            ],
        )
        for at in range(0, len(data), CHUNK_BYTES):
            await exchange.chunk(data[at : at + CHUNK_BYTES])
        await exchange.chunk(b"", more=False)

    async def _upload(self, asking: Asking) -> api.ArtifactShown:
        """Take a file into the store and report it in a run."""
        exchange, principal = asking.exchange, asking.principal
        declared = exchange.headers.get("content-length", "")
        room = self._limit_bytes + HEAD_LIMIT_BYTES
        if declared.isdigit() and int(declared[:20]) > room:
            raise TooLarge(f"a file may have {self._limit_bytes} bytes")
        expected = exchange.expected_bytes(0)
        with _Counted(self._uploads, principal.key):
            async with (
                self._run_of(principal, asking.query.run) as run,
                self._artifacts.receiving(
                    principal.key, expected_bytes=expected, limit_bytes=self._limit_bytes
                ) as upload,
            ):
                part = await read_file(exchange, upload.write)
                ref = await upload.put(media_type=part.media_type, owner=principal.key, run=run, name=part.name)
                stored = ArtifactStored.model_validate({**ref.model_dump(), "origin": "upload"})
                event = self._log.append(run, draft(stored, actor=principal.key))
                await asyncio.shield(asyncio.ensure_future(event.durable()))
        facts = await self._artifacts.page(owner=principal.key, limit=1)
        at_ns = facts[0][3] if facts else 0
        return artifact_shown(ref, run, at_ns)

    @asynccontextmanager
    async def _run_of(self, principal: Principal, run: str | None) -> AsyncIterator[str]:
        """The run that the file is reported in: an own open one that is named, else the caller's current one."""
        if run is None:
            async with self._runbook.joined(principal, CLIENT, None) as current:
                yield current
            return
        await own_run(self._log, run, principal)
        if self._runbook.owner_of(run) != principal.key:
            raise Conflict("the run is closed; nothing more is recorded in it")
        with self._runbook.held(principal, run):
            yield run


class _Counted:
    """One file under way."""

    def __init__(self, under_way: dict[str, int], who: str) -> None:
        self._under_way = under_way
        self._who = who

    def __enter__(self) -> None:
        if self._under_way.get(self._who, 0) >= FILES_PER_PRINCIPAL:
            raise RateLimited("too many files of yours are under way; wait for one", data={"retry_after_s": 1.0})
        self._under_way[self._who] = self._under_way.get(self._who, 0) + 1

    def __exit__(self, *_: object) -> None:
        self._under_way[self._who] -= 1
        if not self._under_way[self._who]:
            del self._under_way[self._who]


def header_value(media_type: str) -> bytes:
    """Return a media type as a header may have it. It is the word of whoever made the artifact: it may be any text."""
    return (media_type if media_type.isascii() and media_type.isprintable() else ANY_TYPE).encode("ascii")


def artifact_shown(ref: ArtifactRef, run: str, at_ns: int) -> api.ArtifactShown:
    """Return an artifact as its owner sees it."""
    return api.ArtifactShown(
        sha256=ref.sha256, size=ref.size, media_type=ref.media_type, name=ref.name, uri=ref.uri, run=run,
        at=iso_time(at_ns),
    )  # fmt: skip
