"""A state database, a real run log, and a desk with short pauses on both."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from omni_mcp.contracts.approval import Approval
from omni_mcp.contracts.call import Call, ClientFacts, Principal, Question
from omni_mcp.contracts.ids import new_id
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.approvals.desk import ApprovalDesk
from omni_mcp.engines.approvals.standing import MAX_AGE_S, StandingBook
from omni_mcp.engines.approvals.standing_store import StandingStore
from omni_mcp.engines.approvals.store import ApprovalStore
from omni_mcp.engines.approvals.store_thread import StoreThread
from omni_mcp.engines.runlog.store import SqliteRunLog, open_run_log
from omni_mcp.engines.secrets.masking import SecretMasker
from omni_mcp.engines.state.database import open_state

SECOND_NS = 1_000_000_000
START_NS = 1_790_000_000 * SECOND_NS


class Clock:
    """UTC nanoseconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now_ns = START_NS

    def __call__(self) -> int:
        return self.now_ns

    def pass_s(self, seconds: float) -> None:
        self.now_ns += int(seconds * SECOND_NS)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def state_file(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest.fixture
def open_store(state_file: Path, clock: Clock) -> Iterator[Callable[..., ApprovalStore]]:
    """Open the one state file as often as there are processes."""
    opened: list[ApprovalStore] = []

    def open_one(**settings: Any) -> ApprovalStore:
        opened.append(ApprovalStore(open_state(state_file), now_ns=clock, **settings))
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: Callable[..., ApprovalStore]) -> ApprovalStore:
    return open_store()


@pytest.fixture
def question(clock: Clock) -> Callable[..., Approval]:
    """Make a question that differs from the others only in what is given."""

    def make(**changes: Any) -> Approval:
        facts: dict[str, Any] = {
            "id": new_id(),
            "state": "pending",
            "principal": 'Agent::"coder"/1000@default',
            "project": "default",
            "run": "run",
            "call": new_id(),
            "server": "tools",
            "tool": "write",
            "name": "tools__write",
            "definition_digest": "sha256:tool",
            "arguments_digest": "sha256:these",
            "arguments": {"path": "notes.txt"},
            "labels": {},
            "rules": ("ask",),
            "policy_version": "sha256:policy",
            "asked_at_ns": clock.now_ns,
            "expires_at_ns": clock.now_ns + 900 * SECOND_NS,
        }
        return Approval(**{**facts, **changes})

    return make


@pytest.fixture
def masker() -> SecretMasker:
    return SecretMasker({"key": "hunter2hunter2"})


@pytest_asyncio.fixture
async def log(tmp_path: Path, masker: SecretMasker) -> AsyncIterator[SqliteRunLog]:
    async with open_run_log(
        tmp_path / "runlog.db", keys=tmp_path / "secrets", masker=masker, gateway_version="test"
    ) as opened:
        yield opened


@pytest.fixture
def open_desk(
    state_file: Path, log: SqliteRunLog, masker: SecretMasker, clock: Clock, gateway_run: str
) -> Callable[..., AbstractAsyncContextManager[ApprovalDesk]]:
    """Open a desk: the gateway's side of the state file."""

    @asynccontextmanager
    async def open_one(
        *, wait_s: float = 20, log: Any = log, max_age_s: float = MAX_AGE_S, **settings: Any
    ) -> AsyncIterator[ApprovalDesk]:
        connection, thread = open_state(state_file), StoreThread()
        grants = StandingStore(connection, now_ns=clock)
        standing = StandingBook(grants, thread, log, run=gateway_run, now_ns=clock, max_age_s=max_age_s)
        store = ApprovalStore(connection, now_ns=clock, **settings)
        pauses: dict[str, Any] = {"wait_s": wait_s, "poll_s": 0.01, "idle_poll_s": 0.01}
        async with ApprovalDesk(store, thread, standing, log, masker, now_ns=clock, **pauses) as desk:
            yield desk

    return open_one


@pytest_asyncio.fixture
async def gateway_run(log: SqliteRunLog) -> str:
    principal = Principal(kind="User", id="gateway", project="-")
    return await log.create_run(kind="gateway", principal=principal, actor="gateway", client={})


@pytest_asyncio.fixture
async def run(log: SqliteRunLog) -> str:
    principal = Principal(kind="Agent", id="coder", owner="1000")
    return await log.create_run(kind="session", principal=principal, actor=principal.key, client={})


@pytest.fixture
def call_of(run: str, log: SqliteRunLog) -> Callable[..., Call]:
    """Make a call of a tool that needs an answer; each is another call."""

    def make(arguments: dict[str, Any] | None = None, **changes: Any) -> Call:
        facts: dict[str, Any] = {
            "id": new_id(),
            "run": run,
            "principal": Principal(kind="Agent", id="coder", owner="1000"),
            "client": ClientFacts(),
            "kind": "tool",
            "name": "tools__write",
            "arguments": {"path": "notes.txt", "text": "hello"} if arguments is None else arguments,
            "profile": "default",
            "tool": Entry(kind="tool", server="tools", name="write", definition={}),
            "question": Question(rules=("ask",), ttl_s=900),
        }
        return Call(**{**facts, **changes})

    return make
