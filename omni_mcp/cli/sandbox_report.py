"""How one `sandbox run` ended: its exit code, its lines on stderr, and the object that `--json` prints."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import asdict, dataclass, field

import click

from omni_mcp.cli.sandbox_return import Brought
from omni_mcp.cli.sandbox_streams import OutputPump
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.sandbox import Connection, Isolation, Job, JobEnd

TIMED_OUT, TOO_MUCH_OUTPUT, NO_SANDBOX, NOT_FOUND, KILLED, OUTPUT_LOST = 124, 125, 126, 127, 137, 141
SETTLE_LIMIT_S = 1.0
OPTION_OF = {
    "timeout_s": "--wall", "memory_mib": "--memory", "processes": "--pids", "open_files": "--nofile",
    "file_size_mib": "--fsize", "disk_mib": "--disk", "output_limit_bytes": "--output", "cpu_s": "--cpu",
    "hosts": "--allow", "read": "--read",
}  # fmt: skip
_USAGE = ("memory_peak_bytes", "cpu_ms", "wall_ms", "bytes_out", "temperature", "limits_reached")
_LIMIT = re.compile(r"limits\.(\w+)")


@dataclass(slots=True, kw_only=True)
class Story:
    """What is known of one run so far. `end` stays None if the job was ended with us; `code` is our exit code."""

    isolation: Isolation | None = None
    connections: list[JsonObject] = field(default_factory=list)
    end: JobEnd | None = None
    code: int = NO_SANDBOX
    lost: OSError | None = None  # why the output could not be written
    brought: Brought | None = None

    def note(self, connection: Connection, more: int) -> None:
        """Take a connection that is over, and how many more it stands for."""
        self.connections.append({**asdict(connection), "more": more})

    @property
    def reason(self) -> str:
        return self.end.reason if self.end is not None else "cancelled"

    @property
    def message(self) -> str:
        """What ended the command, and what became of what it wrote, for people."""
        ended = "" if self.lost is not None else "interrupted"
        if self.end is not None:
            ended = in_options(self.end.message)
        return "; ".join(part for part in (ended, *self.losses) if part)

    @property
    def losses(self) -> list[str]:
        lost = [f"the output cannot be written: {self.lost.strerror}"] if self.lost is not None else []
        if self.brought is not None and self.brought.cut:
            lost.append(f"the workspace was not copied back whole: {self.brought.cut}")
        return lost


def exit_code_of(end: JobEnd) -> int:
    """Return the exit code that says how the job ended.

    A limit that the job met before it ended by itself, with a code of its own, is told in the message only.
    """
    if end.reason == "timeout":
        return TIMED_OUT
    if end.reason == "output_limit":
        return TOO_MUCH_OUTPUT
    if end.reason in ("sandbox_unavailable", "overloaded"):
        return NO_SANDBOX
    if end.reason == "start_failed":
        return NOT_FOUND if end.usage else NO_SANDBOX  # without usage there never was a cell
    if end.reason == "signal":
        return 128 + (end.signal or 0)
    if end.reason in ("exit", "processes", "disk") and end.exit_code is not None:
        return end.exit_code
    return KILLED


async def tell(story: Story, job: Job, stderr: OutputPump, *, as_json: bool) -> None:
    """Write what people, or programs, are to know to stderr."""
    lines = [json.dumps(report_of(story, job))] if as_json else [f"omni-mcp: {line}" for line in _lines_of(story)]
    if lines:
        text = ("" if stderr.at_line_start else "\n") + "\n".join(lines) + "\n"
        await asyncio.wait({asyncio.ensure_future(stderr.write(text.encode()))}, timeout=SETTLE_LIMIT_S)


def _lines_of(story: Story) -> list[str]:
    brought, end = story.brought or Brought(), story.end
    lines = [f"not copied back: {thing}" for thing in brought.left]
    if brought.more:
        lines.append(f"not copied back: {brought.more} more")
    if end is None and isinstance(story.lost, BrokenPipeError):
        return lines  # whoever reads no more knows
    if end is not None and end.reason not in ("exit", "signal"):
        lines.append(f"{end.reason}: {in_options(end.message)}")
    return lines + story.losses


def report_of(story: Story, job: Job) -> JsonObject:
    """Return what `--json` prints. `code` is our own exit code, `exit_code` the job's."""
    end = story.end
    report: JsonObject = {
        "reason": story.reason,
        "code": story.code,
        "exit_code": end.exit_code if end is not None else None,
        "signal": end.signal if end is not None else None,
        "message": story.message,
        "limits": end.limits if end is not None else job.limits.model_dump(),
        "isolation": story.isolation.as_json() if story.isolation is not None else None,
    }
    usage = end.usage if end is not None else {}
    report |= {key: usage.get(key) for key in _USAGE}
    report["connections"] = story.connections
    if story.brought is not None:
        report["workspace"] = asdict(story.brought)
    return report


def tell_refusal(reason: str, code: int, message: str) -> None:
    """Print the object of a run that was none."""
    nothing = dict.fromkeys(("exit_code", "signal", "limits", "isolation", *_USAGE))
    report: JsonObject = {"reason": reason, "code": code, "message": message, **nothing, "connections": []}
    click.echo(json.dumps(report), err=True)


def in_options(message: str) -> str:
    """Return *message* with limits called by the options that set them."""
    return _LIMIT.sub(lambda found: OPTION_OF.get(found[1], found[0]), message)
