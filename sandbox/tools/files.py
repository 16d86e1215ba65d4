"""The files tools: read, write, list and patch files of the project's workspace."""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import os

import beneath
import unified
from failure import ToolFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FILE_LIMIT = 32 * 1024 * 1024
TEXT_LIMIT = 512 * 1024
WRITE_LIMIT = 8 * 1024 * 1024


def files_read(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return a slice of lines of a text file, or the bytes of any file as base64."""
    path = arguments["path"]
    data = beneath.read(path, limit=FILE_LIMIT)
    facts = {"path": path, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    if arguments.get("encoding", "text") == "base64":
        if len(data) > TEXT_LIMIT:
            raise ToolFailure(f"{path!r} has {len(data)} bytes; at most {TEXT_LIMIT} are returned as base64")
        return {**facts, "base64": base64.b64encode(data).decode(), "truncated": False}
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ToolFailure(f"{path!r} is not UTF-8 text; read it with encoding: base64") from error
    return {**facts, **slice_lines(text, arguments.get("start_line", 1), arguments.get("max_lines", 2000))}


def slice_lines(text: str, start: int, count: int) -> dict[str, Any]:
    """Return lines *start* to *start* + *count* - 1, at most `TEXT_LIMIT` bytes, and whether there is more."""
    lines = text.splitlines(keepends=True)
    chosen: list[str] = []
    size = 0
    for line in lines[start - 1 : start - 1 + count]:
        size += len(line.encode())
        if size > TEXT_LIMIT:
            break
        chosen.append(line)
    if not chosen and start <= len(lines):
        chosen = [lines[start - 1].encode()[:TEXT_LIMIT].decode(errors="ignore")]
        return {"text": chosen[0], "start_line": start, "end_line": start, "lines": len(lines), "truncated": True}
    end = start + len(chosen) - 1
    return {
        "text": "".join(chosen),
        "start_line": start,
        "end_line": end,
        "lines": len(lines),
        "truncated": end < len(lines),
    }


def files_write(arguments: dict[str, Any]) -> dict[str, Any]:
    """Create, replace or extend one file as a whole."""
    path, mode = arguments["path"], arguments.get("mode", "create")
    data = content_of(arguments, "text", "base64")
    existed = beneath.exists(path)
    expected = arguments.get("if_sha256")
    old = beneath.read(path, limit=FILE_LIMIT) if existed and (expected or mode == "append") else b""
    if expected and (not existed or hashlib.sha256(old).hexdigest() != expected):
        raise ToolFailure(f"{path!r} is not what you read: its sha256 differs; read it again")
    if mode == "append":
        data = old + data
    if len(data) > WRITE_LIMIT:
        raise ToolFailure(f"a file written here has at most {WRITE_LIMIT} bytes")
    beneath.replace(path, data, exclusive=mode == "create")
    digest = hashlib.sha256(data).hexdigest()
    return {"path": path, "size": len(data), "sha256": digest, "created": not existed}


def content_of(arguments: dict[str, Any], text: str, encoded: str) -> bytes:
    """Return the bytes that exactly one of two arguments gives: *text* as UTF-8, or *encoded* as base64."""
    if (text in arguments) == (encoded in arguments):
        raise ToolFailure(f"give exactly one of {text} and {encoded}")
    if text in arguments:
        try:
            return str(arguments[text]).encode()
        except UnicodeEncodeError as error:
            raise ToolFailure(f"{text} holds half of a surrogate pair; it is not Unicode text") from error
    try:
        return base64.b64decode(arguments[encoded], validate=True)
    except (binascii.Error, ValueError) as error:
        raise ToolFailure(f"{encoded} is not base64: {error}") from error


def files_list(arguments: dict[str, Any]) -> dict[str, Any]:
    """List a directory, or everything below it, in order of path. Links are shown and not followed."""
    steps = beneath.split(arguments.get("path", "."))
    pattern, limit = arguments.get("glob"), arguments.get("limit", 1000)
    found: list[dict[str, Any]] = []
    todo = [steps]
    while todo and len(found) <= limit:
        here = todo.pop()
        for entry in _scan(here):
            shown = "/".join([*here, entry["name"]])
            if entry["kind"] == "directory" and arguments.get("recursive", False) and len(here) < beneath.STEP_LIMIT:
                todo.append([*here, entry["name"]])
            if pattern is None or fnmatch.fnmatchcase(shown, pattern) or fnmatch.fnmatchcase(entry["name"], pattern):
                found.append({"path": shown, "kind": entry["kind"], "size": entry["size"]})
    found.sort(key=lambda entry: entry["path"])
    return {"entries": found[:limit], "truncated": len(found) > limit}


def _scan(steps: list[str]) -> list[dict[str, Any]]:
    with beneath.folder(steps) as here:
        entries = []
        for name in sorted(os.listdir(here)):
            try:
                facts = os.stat(name, dir_fd=here, follow_symlinks=False)
            except FileNotFoundError:
                continue  # removed since it was listed
            kind = beneath.kind_of(facts.st_mode)
            entries.append({"name": name, "kind": kind, "size": facts.st_size if kind == "file" else 0})
        return entries


def files_patch(arguments: dict[str, Any]) -> dict[str, Any]:
    """Apply a unified diff exactly where it says. Every hunk of every file must fit before anything is written."""
    plans = []
    for change in unified.parse(arguments["patch"]):
        old = b"" if change.creates else beneath.read(change.path, limit=FILE_LIMIT)
        if change.creates and beneath.exists(change.path):
            raise ToolFailure(f"{change.path!r} exists already, but the patch creates it")
        plans.append((change, old, unified.apply(change, old)))
    if arguments.get("check_only", False):
        return {"applied": False, "files": [_report(change, new) for change, _, new in plans]}
    done: list[tuple[unified.Change, bytes]] = []
    try:
        for change, old, new in plans:
            if change.deletes:
                beneath.remove(change.path)
            else:
                beneath.replace(change.path, new, exclusive=change.creates)
            done.append((change, old))
    except ToolFailure:
        for change, old in reversed(done):
            if change.creates:
                beneath.remove(change.path)
            else:
                beneath.replace(change.path, old)
        raise
    return {"applied": True, "files": [_report(change, new) for change, _, new in plans]}


def _report(change: unified.Change, new: bytes) -> dict[str, Any]:
    action = "created" if change.creates else "deleted" if change.deletes else "changed"
    report = {"path": change.path, "action": action, "added": change.added, "removed": change.removed}
    return report if change.deletes else {**report, "sha256": hashlib.sha256(new).hexdigest()}
