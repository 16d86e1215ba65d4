"""A run log in a temporary directory, and short ways to make events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.events import Draft, Message, PolicyDecided, ToolCall, ToolError, ToolResult, draft
from omni_mcp.engines.runlog.store import SqliteRunLog, open_run_log
from omni_mcp.engines.secrets.masking import SecretMasker

ANNA = Principal(kind="User", id="anna")
SECRET = "correct-horse-battery-staple"


def said(text: str) -> Draft:
    return draft(Message(text=text), actor=ANNA.key, kind="user_message")


def asked(call: str, **arguments: object) -> Draft:
    payload = ToolCall(
        call_kind="tool", name="tools__files_read", arguments=arguments, arguments_hmac="hmac-sha256:00",
        arguments_bytes=2, principal=ANNA.key, profile="default",
    )  # fmt: skip
    return draft(payload, actor=ANNA.key, call=call)


def decided(call: str, verdict: str = "allow") -> Draft:
    payload = PolicyDecided(verdict=verdict, policy_version="p1", gateway_version="test")
    return draft(payload, actor="gateway", call=call)


def answered(call: str, text: str = "done") -> Draft:
    payload = ToolResult(is_error=False, result={"text": text}, where="cell", duration_ms=1.5, bytes_out=4)
    return draft(payload, actor="gateway", call=call)


def failed(call: str, code: str = "timeout") -> Draft:
    return draft(ToolError(code=code, message="no", dispatched=True), actor="gateway", call=call)


@dataclass
class Place:
    """Where one test keeps its log; `open` may be used again after a close."""

    directory: Path

    @property
    def file(self) -> Path:
        return self.directory / "data" / "runlog.db"

    @property
    def keys(self) -> Path:
        return self.directory / "data" / "secrets"

    def open(self, *, events_per_run: int = 100_000) -> AbstractAsyncContextManager[SqliteRunLog]:
        self.file.parent.mkdir(exist_ok=True)
        return open_run_log(
            self.file, keys=self.keys, masker=SecretMasker({"staple": SECRET}), events_per_run=events_per_run,
            gateway_version="test",
        )  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
async def log(place: Place) -> AsyncIterator[SqliteRunLog]:
    async with place.open() as opened:
        yield opened


async def new_run(log: SqliteRunLog, title: str | None = None) -> str:
    return await log.create_run(kind="session", principal=ANNA, actor=ANNA.key, client={"name": "test"}, title=title)


async def texts(log: SqliteRunLog, run: str, after: int = 0) -> list[str]:
    return [
        event.payload["text"] async for event in log.read(run, after=after) if event.payload and "text" in event.payload
    ]
