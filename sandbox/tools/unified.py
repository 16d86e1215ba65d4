"""Unified diffs, applied exactly: a hunk fits at the line it names or not at all."""

from __future__ import annotations

import re

from failure import ToolFailure

HUNK_LIMIT = 2_000
_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")


class Hunk:
    """One hunk: where it starts in the old file (from 1) and its lines, without their first character."""

    def __init__(self, start: int) -> None:
        self.start = start
        self.old: list[bytes] = []
        self.new: list[bytes] = []


class Change:
    """All hunks of one file."""

    def __init__(self, path: str, creates: bool, deletes: bool) -> None:
        self.path = path
        self.creates = creates
        self.deletes = deletes
        self.hunks: list[Hunk] = []
        self.added = 0
        self.removed = 0


def parse(patch: str) -> list[Change]:
    """Read a patch with `---`, `+++` and `@@` lines; lines of other tools between files (`diff`, `index`) are skipped.

    Raises:
        ToolFailure: it is no unified diff, renames a file or names one twice; the message gives the patch's line.
    """
    lines = patch.split("\n")
    if lines[-1] == "":
        lines.pop()
    changes: list[Change] = []
    at = 0
    while at < len(lines):
        if lines[at].startswith(("rename ", "copy ", "GIT binary patch", "Binary files ")):
            raise ToolFailure(f"line {at + 1} of the patch: renames, copies and binary changes are not supported")
        if lines[at].startswith("@@"):
            raise ToolFailure(f"line {at + 1} of the patch: a hunk without '---' and '+++' lines before it")
        if not lines[at].startswith("--- "):
            at += 1
            continue
        if at + 1 >= len(lines) or not lines[at + 1].startswith("+++ "):
            raise ToolFailure(f"line {at + 1} of the patch: '---' must be followed by '+++'")
        change = _header(lines[at], lines[at + 1], at + 1)
        at = _hunks(lines, at + 2, change)
        if any(known.path == change.path for known in changes):
            raise ToolFailure(f"{change.path!r} is in the patch twice")
        changes.append(change)
    if not changes:
        raise ToolFailure("the patch holds no file: it needs '--- a/NAME', '+++ b/NAME' and '@@ ... @@' lines")
    return changes


def _header(old: str, new: str, number: int) -> Change:
    before, after = _name(old, "a/"), _name(new, "b/")
    if before is None and after is None:
        raise ToolFailure(f"line {number} of the patch: both names are /dev/null")
    if before is not None and after is not None and before != after:
        raise ToolFailure(f"line {number} of the patch: {before!r} and {after!r} differ; renames are not supported")
    return Change(path=after or before or "", creates=before is None, deletes=after is None)


def _name(line: str, prefix: str) -> str | None:
    name = line[4:].split("\t", 1)[0].rstrip("\r")
    return None if name == "/dev/null" else name.removeprefix(prefix)


def _hunks(lines: list[str], at: int, change: Change) -> int:
    while at < len(lines) and lines[at].startswith("@@"):
        found = _HUNK.match(lines[at])
        if found is None:
            raise ToolFailure(f"line {at + 1} of the patch: not a hunk header such as '@@ -1,3 +1,4 @@'")
        if len(change.hunks) >= HUNK_LIMIT:
            raise ToolFailure(f"a file has at most {HUNK_LIMIT} hunks")
        hunk = Hunk(start=int(found[1]))
        at = _hunk(lines, at + 1, change, hunk, int(found[2] or 1), int(found[4] or 1))
        change.hunks.append(hunk)
    if not change.hunks and not (change.creates or change.deletes):
        raise ToolFailure(f"the patch changes nothing in {change.path!r}")
    return at


def _hunk(lines: list[str], at: int, change: Change, hunk: Hunk, olds: int, news: int) -> int:
    """Read one hunk's lines, exactly as many as its header says."""
    while len(hunk.old) < olds or len(hunk.new) < news:
        if at >= len(lines):
            raise ToolFailure("the patch ends in the middle of a hunk")
        mark, text = lines[at][:1] or " ", (lines[at][1:] + "\n").encode("utf-8", "surrogateescape")
        if mark not in " +-":
            raise ToolFailure(f"line {at + 1} of the patch: a hunk's lines begin with ' ', '+' or '-'")
        if mark in " -":
            hunk.old.append(text)
        if mark in " +":
            hunk.new.append(text)
        change.removed += mark == "-"
        change.added += mark == "+"
        at += 1
        if at < len(lines) and lines[at].startswith("\\"):  # "\ No newline at end of file"
            for side, marks in ((hunk.old, " -"), (hunk.new, " +")):
                if mark in marks:
                    side[-1] = side[-1][:-1]
            at += 1
    if len(hunk.old) != olds or len(hunk.new) != news:
        raise ToolFailure(f"line {at} of the patch: the hunk has more lines than its header says")
    return at


def apply(change: Change, old: bytes) -> bytes:
    """Return the new content.

    Raises:
        ToolFailure: a hunk does not fit exactly; names the file, the line and what stands there.
    """
    lines = _split_at_newlines(old)
    result: list[bytes] = []
    taken = 0
    for number, hunk in enumerate(change.hunks, start=1):
        start = hunk.start - 1 if hunk.old else hunk.start  # an empty old side names the line before it
        if start < taken:
            raise ToolFailure(f"{change.path!r}: hunk {number} overlaps the one before it")
        found = lines[start : start + len(hunk.old)]
        if found != hunk.old or start > len(lines):
            raise ToolFailure(_misfit(change.path, number, start, found, hunk.old))
        result += lines[taken:start] + hunk.new
        taken = start + len(hunk.old)
    result += lines[taken:]
    if change.deletes and result:
        raise ToolFailure(f"{change.path!r}: the patch deletes the file but leaves {len(result)} lines of it")
    return b"".join(result)


def _split_at_newlines(data: bytes) -> list[bytes]:
    """Split at line feeds only: a lone carriage return is content."""
    parts = data.split(b"\n")
    lines = [part + b"\n" for part in parts[:-1]]
    return [*lines, parts[-1]] if parts[-1] else lines


def _misfit(path: str, number: int, start: int, found: list[bytes], wanted: list[bytes]) -> str:
    for offset, line in enumerate(wanted):
        there = found[offset] if offset < len(found) else None
        if there != line:
            shown = "the file ends" if there is None else f"the file has {_show(there)}"
            return (
                f"{path!r}: hunk {number} does not fit at line {start + offset + 1}: it expects {_show(line)}, {shown}"
            )
    return f"{path!r}: hunk {number} begins after the end of the file"


def _show(line: bytes) -> str:
    return repr(line.decode(errors="replace")[:120])
