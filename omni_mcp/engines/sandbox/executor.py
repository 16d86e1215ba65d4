"""SandboxExecutor: turns a call of a tool that runs in a cell into a job, and its end into an answer or an error."""

from __future__ import annotations

import asyncio
import mimetypes
import re
from dataclasses import replace
from typing import Literal

import orjson

from omni_mcp.contracts.artifact import ArtifactRef
from omni_mcp.contracts.call import Answer, Call
from omni_mcp.contracts.errors import (
    Internal,
    InvalidArguments,
    InvalidResult,
    NotFound,
    QuotaExceeded,
    RateLimited,
    SandboxKilled,
    SandboxUnavailable,
    TimedOut,
    UpstreamUnavailable,
)
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.manifest import BindingSpec
from omni_mcp.contracts.ports import Artifacts, RunLog, Sandbox
from omni_mcp.contracts.sandbox import Job, JobEnd, Mount
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.sandbox.connections import ConnectionRecord
from omni_mcp.engines.sandbox.launcher import WORKSPACE
from omni_mcp.engines.sandbox.packages import Modules, package_mounts
from omni_mcp.engines.sandbox.supplies import Supplies
from omni_mcp.engines.sandbox.workspaces import Room, WorkspaceRefused, Workspaces

ARTIFACT_FILE = "in/artifact"
JOBS = ("sandbox_job", "openapi_proxy")
_ARTIFACT = re.compile(r"^(?:artifact://)?([0-9a-f]{64})$")
_RETRY_AFTER_S = 10  # for a caller who met a full queue of cells: about as long as a job usually takes
_STDERR_KEPT = 2000  # characters of a failed job's stderr that go into the record


class SandboxExecutor:
    """Port `Executor` for bindings of kind `sandbox_job`, and for the jobs of operations (`openapi_proxy`).

    Args:
        log: gets the connections of jobs; without it no job is given a way out.
        supplies: what the operator gives to jobs.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        artifacts: Artifacts,
        workspaces: Workspaces,
        *,
        log: RunLog | None = None,
        supplies: Supplies | None = None,
    ) -> None:
        self._log = log
        self._supplies = supplies or Supplies()
        self._sandbox = sandbox
        self._artifacts = artifacts
        self._workspaces = workspaces
        self._modules = Modules(workspaces.code)

    async def execute(self, call: Call) -> Answer:
        """Run the call's tool in a fresh cell.

        Raises:
            SandboxUnavailable: the isolation it demands, or what its manifest needs, cannot be had; nothing was
                dispatched.
            RateLimited: too many jobs wait for a cell; nothing was dispatched.
            InvalidArguments: the artifact that it names is not the caller's to see; nothing was dispatched.
            TimedOut, SandboxKilled, InvalidResult: as they say.
            UpstreamUnavailable: an operation that reads did not get through to its service.
        """
        if call.tool is None or call.tool.manifest is None or call.tool.binding not in JOBS:
            raise Internal("the call cannot be run", detail="the sandbox was given a tool that is no job")
        entry, binding = call.tool, call.tool.manifest.binding
        self._demand_isolation(entry)
        room = await self._room(call, binding)
        job = await self._job(call, entry, binding, room)
        try:
            end = await self._run(call, job)
        finally:
            if room is not None and not room.full:
                self._workspaces.job_ended(room.place)
        answer = await self._answer(call, end)
        return answer if room is None else await self._with_word_of(room, answer)

    async def _run(self, call: Call, job: Job) -> JobEnd:
        """Run the job; what it reached for is given to the log before this returns or raises."""
        if not job.egress:
            return await self._sandbox.run(job)
        if self._log is None:
            raise SandboxUnavailable("the tool cannot be given a way out here", detail="the executor has no run log")
        record = ConnectionRecord(self._log, call)
        try:
            return await self._sandbox.run(job, on_connection=record.note)
        finally:
            record.close()

    def _demand_isolation(self, entry: Entry) -> None:
        isolation = self._sandbox.isolation()
        if isolation.posture == "none" or not isolation.at_least(entry.posture):
            raise SandboxUnavailable(
                "the isolation that this tool needs cannot be had here",
                detail=f"demanded {entry.posture!r}, in force {isolation.posture!r}, missing {isolation.missing}",
                data={"demanded": entry.posture, "available": isolation.posture},
            )

    async def _job(self, call: Call, entry: Entry, binding: BindingSpec, room: Room | None) -> Job:
        hosts = call.grant.egress if call.grant else ()
        return Job(
            profile=entry.profile or binding.profile,
            function=binding.entry_point,
            arguments=call.arguments,
            files=await self._files(call, binding),
            mounts=(
                *([_workspace_mount(room, entry)] if room is not None else []),
                *await asyncio.to_thread(package_mounts, binding.packages),
                *await asyncio.to_thread(self._modules.mounts, entry),
                *await asyncio.to_thread(self._supplies.mounts_for, entry),
            ),
            environment=self._supplies.environment_for(entry),
            limits=entry.limits,
            posture=entry.posture,
            exports=binding.workspace == "fresh",
            egress=hosts,
            networks=self._supplies.networks if hosts else (),
            credentials=self._supplies.credentials_for(entry, hosts),
            bundled=not entry.code_dir and not binding.packages,
        )

    async def _room(self, call: Call, binding: BindingSpec) -> Room | None:
        """Return the project's directory that the tool works in, and what it holds."""
        if binding.workspace not in ("project", "state"):
            return None
        kind: Literal["files", "state"] = "files" if binding.workspace == "project" else "state"
        try:
            return await self._workspaces.room(call.principal.project, kind)
        except (WorkspaceRefused, OSError) as error:
            raise SandboxUnavailable("the project's workspace cannot be used", detail=str(error)) from error

    async def _with_word_of(self, room: Room, answer: Answer) -> Answer:
        """Say so if the workspace was full, or is full now: a tool of its own only meets an error of the system."""
        most_bytes, most_entries = self._workspaces.quota
        why = f"more than {most_bytes >> 20} MiB or {most_entries} entries, or directories nested too deep"
        if room.full:
            word = f"The project's workspace is full ({why}), so this call could read it and not write to it."
        elif (await self._workspaces.look(room.place)).full:
            word = f"The project's workspace is full now ({why}): the next calls can read it and not write to it."
        else:
            return answer
        word += " The operator of the gateway can make room in it."
        blocks = [{"type": "text", "text": word}, *answer.body["content"]]
        if not (room.full and answer.is_error):
            blocks = [*blocks[1:], blocks[0]]
        return replace(answer, body={**answer.body, "content": blocks})

    async def _files(self, call: Call, binding: BindingSpec) -> dict[str, bytes]:
        name = binding.artifact_argument
        if name is None or name not in call.arguments:
            return {}
        named = _ARTIFACT.match(str(call.arguments[name]))
        unknown = InvalidArguments(f"$.{name}: there is no such artifact", data={"path": f"$.{name}"})
        if named is None:
            raise unknown
        try:
            _, data = await self._artifacts.get(named.group(1), owner=call.principal.key)
        except NotFound as error:
            raise unknown from error
        return {ARTIFACT_FILE: data}

    async def _answer(self, call: Call, end: JobEnd) -> Answer:
        _raise_for(end)
        if end.result is None and end.message:
            raise InvalidResult("the tool's answer is not a JSON object", detail=_detail(end))
        if end.result is None:
            raise SandboxKilled("the tool ended without an answer", detail=_detail(end), data=_facts(end, "no answer"))
        failed = bool(end.exit_code)
        if failed and end.result.get("passing") is True:
            _raise_where_another_attempt_may_help(call, end)
        artifacts, not_kept = await self._store(call, end)
        text = str(end.result.get("error", "the tool failed")) if failed else orjson.dumps(end.result).decode()
        texts = [text, *(f"{ref.name}: {ref.uri} ({ref.size} bytes)" for ref in artifacts), *not_kept]
        body: JsonObject = {
            "content": [{"type": "text", "text": text} for text in texts], "isError": failed or bool(not_kept),
        }  # fmt: skip
        if not failed:
            body["structuredContent"] = end.result
        return Answer(
            body=body, is_error=body["isError"], where="cell", isolation=end.isolation.as_json(), usage=end.usage,
            artifacts=tuple(ref.model_dump(mode="json") for ref in artifacts),
        )  # fmt: skip

    async def _store(self, call: Call, end: JobEnd) -> tuple[list[ArtifactRef], list[str]]:
        """Keep what the job left; returns the references, and for each file that could not be kept why.

        The job has run by now: a full shelf is no refusal of the call any more, but it must not go unsaid.
        """
        stored, not_kept = [], []
        for file in end.files:
            media_type = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
            try:
                stored.append(
                    await self._artifacts.put(
                        file.data, media_type=media_type, owner=call.principal.key, run=call.run, name=file.name
                    )
                )
            except QuotaExceeded as error:
                not_kept.append(f"{file.name} ({len(file.data)} bytes) is lost, the tool ran: {error.message}")
        return stored, not_kept


def _workspace_mount(room: Room, entry: Entry) -> Mount:
    """Return the mount of *room*: read-only if it is full, else with what the job may bring it to."""
    if room.full:
        return Mount(source=room.place, inside=WORKSPACE)
    return Mount(
        source=room.place, inside=WORKSPACE, writable=True,
        most_bytes=room.fill.held_bytes + (entry.limits.disk_mib << 20),
        most_entries=room.fill.entries + entry.limits.inodes,
    )  # fmt: skip


def _raise_for(end: JobEnd) -> None:
    """Raise what stands for an end that is no answer of the tool."""
    if end.reason == "exit":
        return
    if end.reason == "overloaded":
        raise RateLimited(end.message, detail=_detail(end), data={"retry_after_s": _RETRY_AFTER_S})
    if end.reason == "sandbox_unavailable":
        raise SandboxUnavailable("the isolation that this tool needs cannot be had here", detail=end.message)
    if end.reason == "timeout":
        raise TimedOut(
            "the tool did not finish in time and was stopped", detail=_detail(end), data=_facts(end, end.message)
        )
    message = "the tool could not be started" if end.reason == "start_failed" else _WORDS.get(end.reason, end.message)
    killed = SandboxKilled(message or "the tool was ended", detail=_detail(end), data=_facts(end, message))
    killed.passing = end.passing
    raise killed


def _raise_where_another_attempt_may_help(call: Call, end: JobEnd) -> None:
    """A service that could not be reached, or was overloaded, is tried again where its operation only reads."""
    if call.tool is not None and call.tool.binding == "openapi_proxy" and call.tool.repeatable and end.result:
        raise UpstreamUnavailable(str(end.result.get("error", "the service cannot be reached")), detail=_detail(end))


_WORDS = {"killed": "the tool was ended from outside", "signal": "the tool crashed"}


def _facts(end: JobEnd, message: str) -> dict[str, object]:
    """Return what the client may know of the end: which limit, and how much was used."""
    return {"reason": end.reason, "message": message, "limits": end.limits, "usage": end.usage}


def _detail(end: JobEnd) -> str:
    said = end.stderr.decode(errors="replace").strip()[-_STDERR_KEPT:]
    return f"{end.reason}: {end.message} [{said}]" if said else f"{end.reason}: {end.message}"
