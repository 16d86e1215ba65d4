"""Calls of sandboxed tools: from arguments to an answer, and every bad end to its own error."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from omni_mcp.contracts.artifact import ArtifactRef
from omni_mcp.contracts.call import Answer, Call, ClientFacts, Principal
from omni_mcp.contracts.errors import (
    InvalidArguments,
    InvalidResult,
    NotFound,
    QuotaExceeded,
    RateLimited,
    Refused,
    SandboxKilled,
    SandboxUnavailable,
    TimedOut,
)
from omni_mcp.contracts.manifest import BindingSpec, Limits, ToolManifest
from omni_mcp.contracts.sandbox import Isolation, Job, JobEnd
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.sandbox.cells import BubblewrapSandbox
from omni_mcp.engines.sandbox.executor import SandboxExecutor
from omni_mcp.engines.sandbox.uids import DEFAULT_RANGE, owners_part
from omni_mcp.engines.sandbox.workspaces import WorkspaceRefused, Workspaces, directory_name
from tests.sandbox.conftest import Opener, usable

ALICE = Principal(kind="User", id="alice", project="blue")


class Shelf:
    """Artifacts in memory, each visible to its owner."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], tuple[ArtifactRef, bytes]] = {}

    async def put(self, data: bytes, *, media_type: str, owner: str, run: str, name: str | None = None) -> ArtifactRef:
        ref = ArtifactRef(sha256=hashlib.sha256(data).hexdigest(), size=len(data), media_type=media_type, name=name)
        self._held[owner, ref.sha256] = (ref, data)
        return ref

    async def get(self, sha256: str, *, owner: str) -> tuple[ArtifactRef, bytes]:
        if (owner, sha256) not in self._held:
            raise NotFound("no such artifact")
        return self._held[owner, sha256]

    async def list_refs(self, *, owner: str, limit: int = 100) -> list[ArtifactRef]:
        return [ref for (whose, _), (ref, _) in self._held.items() if whose == owner][:limit]


def call_of(function: str, arguments: dict[str, Any] | None = None, *, limits: Limits | None = None,
            posture: Any = "no-cgroup", principal: Principal = ALICE, **binding: Any) -> Call:  # fmt: skip
    spec = BindingSpec(kind="sandbox_job", entry_point=f"trial_tools:{function}", **binding)
    manifest = ToolManifest(
        id="trial", version="1.0.0", title="Trial", description="A trial.", input_schema={}, binding=spec
    )
    entry = Entry(
        kind="tool", server="tools", name="trial", definition={"name": "trial"}, binding="sandbox_job", posture=posture,
        profile="job", manifest=manifest, limits=limits or Limits(timeout_s=20),
    )  # fmt: skip
    return Call(
        id="c1", run="r1", principal=principal, client=ClientFacts(), kind="tool", name="trial",
        arguments=arguments or {},
        profile="default", tool=entry,
    )  # fmt: skip


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def executor(sandbox: BubblewrapSandbox, shelf: Shelf, tmp_path: Path) -> SandboxExecutor:
    return SandboxExecutor(sandbox, shelf, Workspaces(tmp_path / "workspaces"))


pytestmark = pytest.mark.sandbox


async def test_a_function_gets_its_arguments_and_its_result_is_the_answer(executor: SandboxExecutor) -> None:
    arguments = {"text": "grüße\u2028", "nested": {"list": [1, None, True, 2.5]}}
    answer = await executor.execute(call_of("echo", arguments))

    assert answer.body["structuredContent"] == {"echo": arguments, "cwd": "/workspace"}
    assert answer.body["content"][0]["type"] == "text"
    assert (answer.is_error, answer.body["isError"], answer.where) == (False, False, "cell")
    assert answer.isolation["posture"] in ("full", "no-cgroup")
    assert answer.usage["wall_ms"] > 0


async def test_what_a_tool_says_it_cannot_do_is_an_answer(executor: SandboxExecutor) -> None:
    answer = await executor.execute(call_of("refuse"))

    assert answer.is_error
    assert answer.body == {"content": [{"type": "text", "text": "give me a number"}], "isError": True}


async def test_a_crash_is_an_answer_with_its_last_line(executor: SandboxExecutor) -> None:
    answer = await executor.execute(call_of("crash"))

    assert answer.is_error
    assert answer.body["content"][0]["text"] == "KeyError: 'missing'"


@pytest.mark.parametrize(
    ("text", "word"),
    [("not json", "JSON"), ("[1]", "object"), ('{"a":' * 100 + "1" + "}" * 100, "deeper"), ("\\ud800", "JSON")],
)
async def test_a_forged_result_that_is_no_object_is_refused(executor: SandboxExecutor, text: str, word: str) -> None:
    with pytest.raises(InvalidResult) as caught:
        await executor.execute(call_of("forge", {"text": text}))

    assert word in caught.value.detail


async def test_a_tool_that_ends_without_an_answer_is_an_error(executor: SandboxExecutor) -> None:
    with pytest.raises(SandboxKilled, match="without an answer"):
        await executor.execute(call_of("vanish"))


async def test_a_result_that_is_no_object_is_the_tools_own_fault(executor: SandboxExecutor) -> None:
    answer = await executor.execute(call_of("not_an_object"))

    assert answer.is_error
    assert "not an object" in answer.body["content"][0]["text"]


@pytest.mark.parametrize(
    ("function", "arguments", "limits", "reason"),
    [
        ("flood", {"bytes": 100_000}, Limits(output_limit_bytes=4096), "output_limit"),
        ("eat_memory", {"mib": 512}, Limits(memory_mib=128), "memory"),
        ("spin", {}, Limits(cpu_s=0.5), "cpu_time"),
        ("nosuch", {}, Limits(), None),
    ],
)
async def test_a_limit_that_ends_a_tool_is_named(
    executor: SandboxExecutor, function: str, arguments: dict[str, Any], limits: Limits, reason: str | None
) -> None:
    if reason is None:
        answer = await executor.execute(call_of(function))
        assert "no attribute" in answer.body["content"][0]["text"]
        return
    with pytest.raises(SandboxKilled) as caught:
        await executor.execute(call_of(function, arguments, limits=limits))

    assert caught.value.data["reason"] == reason
    assert set(caught.value.data) == {"reason", "message", "limits", "usage"}


async def test_memory_that_no_cgroup_counts_ends_the_same_way(opened: Opener, shelf: Shelf, tmp_path: Path) -> None:
    async with opened(use_cgroups=False) as sandbox:
        executor = SandboxExecutor(usable(sandbox), shelf, Workspaces(tmp_path / "w"))
        with pytest.raises(SandboxKilled) as caught:
            await executor.execute(call_of("eat_memory", {"mib": 512}, limits=Limits(memory_mib=128)))

    assert caught.value.data["reason"] == "memory"


async def test_a_tool_over_its_time_is_stopped(executor: SandboxExecutor) -> None:
    with pytest.raises(TimedOut):
        await executor.execute(call_of("spin", limits=Limits(timeout_s=0.3)))


async def test_a_cancelled_call_ends_as_cancelled(executor: SandboxExecutor) -> None:
    task = asyncio.ensure_future(executor.execute(call_of("spin")))
    await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_files_left_in_out_become_artifacts_of_the_caller(executor: SandboxExecutor, shelf: Shelf) -> None:
    answer = await executor.execute(call_of("leave_files", workspace="fresh"))

    assert sorted(ref["name"] for ref in answer.artifacts) == ["out/deep/data.bin", "out/report.txt"]
    assert len(await shelf.list_refs(owner=ALICE.key)) == 2
    assert "artifact://" + hashlib.sha256(b"a report").hexdigest() in str(answer.body["content"])


async def test_an_artifact_is_put_into_the_cell_of_its_owner(executor: SandboxExecutor, shelf: Shelf) -> None:
    ref = await shelf.put(b"the blob", media_type="text/plain", owner=ALICE.key, run="r")
    for name in (ref.sha256, ref.uri):
        answer = await executor.execute(call_of("read_artifact", {"artifact": name}, artifact_argument="artifact"))
        assert answer.body["structuredContent"] == {"text": "the blob"}


@pytest.mark.parametrize("name", ["0" * 64, "../../etc/passwd", "artifact://x", "", 7])
async def test_an_artifact_that_is_not_there_is_a_fault_of_the_arguments(
    executor: SandboxExecutor, name: object
) -> None:
    with pytest.raises(InvalidArguments):
        await executor.execute(call_of("read_artifact", {"artifact": name}, artifact_argument="artifact"))


async def test_somebody_elses_artifact_is_as_if_it_were_not_there(executor: SandboxExecutor, shelf: Shelf) -> None:
    ref = await shelf.put(b"the blob", media_type="text/plain", owner="User::bob", run="r")
    errors = []
    for name in (ref.sha256, "0" * 64):
        with pytest.raises(InvalidArguments) as caught:
            await executor.execute(call_of("read_artifact", {"artifact": name}, artifact_argument="artifact"))
        errors.append(str(caught.value))

    assert errors[0] == errors[1]


def number(answer: Answer) -> Any:
    return answer.body["structuredContent"]["number"]


async def test_a_projects_workspace_survives_calls_and_belongs_to_it_alone(executor: SandboxExecutor) -> None:
    blue = call_of("count_up", workspace="project")
    red = call_of("count_up", workspace="project", principal=Principal(kind="User", id="alice", project="red"))

    assert [number(await executor.execute(blue)) for _ in range(3)] == [1, 2, 3]
    assert number(await executor.execute(red)) == 1


async def test_state_is_kept_apart_from_the_projects_files(executor: SandboxExecutor) -> None:
    assert number(await executor.execute(call_of("count_up", workspace="project"))) == 1
    assert number(await executor.execute(call_of("count_up", workspace="state"))) == 1
    assert number(await executor.execute(call_of("count_up", workspace="state"))) == 2


async def test_without_a_workspace_nothing_survives(executor: SandboxExecutor) -> None:
    assert [number(await executor.execute(call_of("count_up"))) for _ in range(2)] == [1, 1]


async def test_packages_of_the_gateway_can_be_given_to_a_cell(executor: SandboxExecutor) -> None:
    names = ("jsonschema", "attrs", "referencing", "rpds-py", "jsonschema-specifications", "typing_extensions")
    answer = await executor.execute(call_of("versions", packages=names))

    assert answer.body["structuredContent"] == {"file": "/packages/jsonschema/__init__.py"}


class FullShelf(Shelf):
    """No room for anything."""

    async def put(self, data: bytes, *, media_type: str, owner: str, run: str, name: str | None = None) -> ArtifactRef:
        raise QuotaExceeded("your artifacts have as many bytes as they may")


async def test_files_that_cannot_be_kept_are_named_in_an_error_that_does_not_deny_the_run(
    sandbox: BubblewrapSandbox, tmp_path: Path
) -> None:
    executor = SandboxExecutor(sandbox, FullShelf(), Workspaces(tmp_path / "w"))
    answer = await executor.execute(call_of("leave_files", workspace="fresh"))

    texts = [block["text"] for block in answer.body["content"]]
    assert (answer.is_error, answer.body["isError"], answer.artifacts) == (True, True, ())
    assert answer.body["structuredContent"] == {"left": 2}
    assert any("out/report.txt (8 bytes) is lost, the tool ran: your artifacts have" in text for text in texts)


async def test_a_full_queue_of_cells_is_a_refusal_and_nothing_was_dispatched(
    opened: Opener, shelf: Shelf, tmp_path: Path
) -> None:
    for settings in ({"waiting_limit": 0}, {"wait_limit_s": 0.2}):
        async with opened(max_jobs=1, **settings) as sandbox:
            executor = SandboxExecutor(usable(sandbox), shelf, Workspaces(tmp_path / "w"))
            calls = [call_of("take_time", {"s": 1}), call_of("count_up", workspace="project")]
            answered, refused = await asyncio.gather(*map(executor.execute, calls), return_exceptions=True)

        assert isinstance(answered, Answer)
        assert isinstance(refused, RateLimited)
        assert isinstance(refused, Refused)
        assert refused.data["retry_after_s"]
        assert not list((tmp_path / "w").rglob("number"))


async def test_a_package_that_is_not_installed_makes_the_tool_unavailable(executor: SandboxExecutor) -> None:
    with pytest.raises(SandboxUnavailable):
        await executor.execute(call_of("versions", packages=("no-such-distribution",)))


class WeakSandbox:
    """A sandbox that can give nothing, and must never be asked to run."""

    def isolation(self) -> Isolation:
        return Isolation(posture="none", missing={"bubblewrap": "not installed"})

    async def run(self, job: Job, *, streams: object = None, on_connection: object = None) -> JobEnd:
        raise AssertionError("a job was dispatched without isolation")


@pytest.mark.parametrize("posture", ["full", "no-cgroup", "landlock", "none"])
async def test_without_isolation_nothing_is_dispatched(shelf: Shelf, tmp_path: Path, posture: str) -> None:
    executor = SandboxExecutor(WeakSandbox(), shelf, Workspaces(tmp_path / "w"))
    with pytest.raises(SandboxUnavailable):
        await executor.execute(call_of("echo", posture=posture))


async def test_less_isolation_than_a_tool_demands_is_refused(opened: Opener, shelf: Shelf, tmp_path: Path) -> None:
    async with opened(use_cgroups=False) as sandbox:
        executor = SandboxExecutor(usable(sandbox), shelf, Workspaces(tmp_path / "w"))
        with pytest.raises(SandboxUnavailable):
            await executor.execute(call_of("echo", posture="full"))
        assert not (await executor.execute(call_of("echo", posture="no-cgroup"))).is_error


def test_directories_of_projects_are_private_and_have_one_owner_each(tmp_path: Path) -> None:
    workspaces = Workspaces(tmp_path / "w")
    places = [workspaces.directory(project, "files") for project in ("a", "b", "../c", "a")]

    assert places[0] == places[3]
    assert len({*places}) == 3
    assert all(place.parent.parent == tmp_path / "w" for place in places)
    assert {place.stat().st_mode & 0o777 for place in places} == {0o700}
    if os.geteuid() == 0:
        assert len({place.stat().st_uid for place in places}) == 3
        assert {place.stat().st_uid for place in places} <= set(owners_part(DEFAULT_RANGE))


def test_a_workspace_that_is_a_link_is_refused(tmp_path: Path) -> None:
    workspaces = Workspaces(tmp_path / "w")
    workspaces.directory("a", "state")
    (tmp_path / "w" / "a" / "files").symlink_to("/etc")

    with pytest.raises(WorkspaceRefused):
        workspaces.directory("a", "files")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", ".hidden", "x" * 65, "a\0b", "~abc"])
def test_a_projects_name_never_becomes_a_path(name: str) -> None:
    assert directory_name(name).startswith("~")
    assert "/" not in directory_name(name)
