"""A tool whose effect can be looked at from outside: it appends a line to a file, and a kill cannot take that back."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from pathlib import Path

from omni_mcp.chain.crashpoint import reach
from omni_mcp.contracts.call import Answer, Call, Result
from omni_mcp.contracts.errors import SandboxUnavailable
from omni_mcp.contracts.manifest import Labels
from omni_mcp.contracts.tool import Entry

SERVER, TOOL = "recorder", "append"
PUBLIC_NAME = f"{SERVER}__{TOOL}"
POLICY = f"""
@id("test-recorder")
permit (principal, action, resource in Omni::Server::"{SERVER}");
"""
LABELS = Labels(read_only=False, destructive=False, egress=False, reads_private=False, reads_untrusted=False)


REFUSED_WHEN_TOLD = "refused-when-told"


def gate_beside(file: Path) -> Path:
    """Return the named pipe at which the tool waits before it refuses: opening it for writing waits for the tool."""
    return file.with_suffix(".gate")


class Recorder:
    """A source and an executor: one tool that appends the call's id and its argument `mark` to *file*."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def load(self) -> Iterable[Entry]:
        """Return the one tool."""
        schema = {"type": "object", "properties": {"mark": {"type": "string"}}, "required": ["mark"]}
        definition = {"name": TOOL, "description": "Appends a line to a file", "inputSchema": schema}
        yield Entry(
            kind="tool",
            server=SERVER,
            name=TOOL,
            definition=definition,
            version="1.0.0",
            binding="mcp_remote",
            labels=LABELS,
        )

    async def execute(self, call: Call) -> Result:
        """Take effect, durably, and only then answer. Between the two is the point `dispatched`."""
        mark = call.arguments["mark"]
        if mark == REFUSED_WHEN_TOLD:
            await asyncio.to_thread(gate_beside(self._file).read_bytes)
            raise SandboxUnavailable("the tool cannot run here after all")
        append_line(self._file, f"{call.id} {mark}")
        reach("dispatched")
        return Answer(body={"content": [{"type": "text", "text": f"kept {mark}"}]}, where="remote")


def append_line(file: Path, line: str) -> None:
    """Append one line and wait until it is on disk."""
    handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(handle, f"{line}\n".encode())
        os.fsync(handle)
    finally:
        os.close(handle)


def read_record(file: Path) -> list[tuple[str, str]]:
    """Return (call id, mark) of everything that took effect, in order."""
    if not file.exists():
        return []
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in file.read_text().splitlines()]
