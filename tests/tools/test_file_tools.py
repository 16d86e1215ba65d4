"""The files tools stay in the workspace, write whole files and patch exactly."""

from __future__ import annotations

import difflib
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import unified
from failure import ToolFailure
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tools.tool_rooms import function_of

read, write = function_of("files:files_read"), function_of("files:files_write")
list_, patch = function_of("files:files_list"), function_of("files:files_patch")


@pytest.mark.parametrize("path", ["../outside.txt", "/etc/passwd", "a/../../outside.txt", "a\x00b", "x/" * 40, "."])
@pytest.mark.parametrize("tool", [read, lambda a: write({**a, "text": "x", "mode": "overwrite"})])
def test_a_path_that_leaves_the_workspace_is_refused(workspace: Path, tool: Any, path: str) -> None:
    with pytest.raises(ToolFailure):
        tool({"path": path})
    assert (workspace.parent / "outside.txt").read_text() == "not yours"


def test_a_link_is_not_followed_in_any_step(workspace: Path) -> None:
    (workspace / "link.txt").symlink_to(workspace.parent / "outside.txt")
    (workspace / "dir").symlink_to(workspace.parent)
    for path in ("link.txt", "dir/outside.txt"):
        with pytest.raises(ToolFailure, match="link"):
            read({"path": path})
        with pytest.raises(ToolFailure, match="link"):
            write({"path": path, "text": "x", "mode": "overwrite"})
    with pytest.raises(ToolFailure):
        list_({"path": "dir"})
    assert (workspace.parent / "outside.txt").read_text() == "not yours"
    kinds = {entry["path"]: entry["kind"] for entry in list_({"recursive": True})["entries"]}
    assert kinds == {"dir": "link", "link.txt": "link"}


def test_a_pipe_is_not_opened(workspace: Path) -> None:
    os.mkfifo(workspace / "pipe")
    with pytest.raises(ToolFailure, match="not a regular file"):
        read({"path": "pipe"})


def test_reading_gives_slices_that_put_together_are_the_file(workspace: Path) -> None:
    text = "".join(f"line {n}\n" for n in range(10)) + "no newline"
    (workspace / "a.txt").write_text(text)
    parts, start = [], 1
    while True:
        part = read({"path": "a.txt", "start_line": start, "max_lines": 3})
        parts.append(part["text"])
        if not part["truncated"]:
            break
        start = part["end_line"] + 1
    assert "".join(parts) == text
    assert read({"path": "a.txt", "start_line": 99})["text"] == ""


def test_one_endless_line_is_cut_and_said_to_be(workspace: Path) -> None:
    (workspace / "long.txt").write_text("x" * 2_000_000)
    result = read({"path": "long.txt"})
    assert len(result["text"]) == 512 * 1024
    assert result["truncated"]


def test_bytes_that_are_no_text_need_base64(workspace: Path) -> None:
    (workspace / "b.bin").write_bytes(b"\xff\x00")
    with pytest.raises(ToolFailure, match="base64"):
        read({"path": "b.bin"})
    assert read({"path": "b.bin", "encoding": "base64"})["base64"] == "/wA="


def test_create_does_not_replace_and_overwrite_does(workspace: Path) -> None:
    assert write({"path": "d/x.txt", "text": "one"})["created"]
    with pytest.raises(ToolFailure, match="exists already"):
        write({"path": "d/x.txt", "text": "two"})
    assert (workspace / "d/x.txt").read_text() == "one"
    assert not write({"path": "d/x.txt", "text": "two", "mode": "overwrite"})["created"]
    write({"path": "d/x.txt", "text": "+", "mode": "append"})
    assert (workspace / "d/x.txt").read_text() == "two+"
    assert [path.name for path in (workspace / "d").iterdir()] == ["x.txt"]  # no temporary file is left


def test_a_file_that_changed_since_it_was_read_is_not_overwritten(workspace: Path) -> None:
    seen = write({"path": "x", "text": "one"})["sha256"]
    (workspace / "x").write_text("somebody else")
    with pytest.raises(ToolFailure, match="read it again"):
        write({"path": "x", "text": "two", "mode": "overwrite", "if_sha256": seen})
    assert (workspace / "x").read_text() == "somebody else"


def test_a_listing_is_cut_at_its_limit_and_fits_the_pattern(workspace: Path) -> None:
    for name in ("a.py", "b.md", "sub/c.py"):
        write({"path": name, "text": ""})
    assert [e["path"] for e in list_({"recursive": True, "glob": "*.py"})["entries"]] == ["a.py", "sub/c.py"]
    cut = list_({"recursive": True, "limit": 2})
    assert len(cut["entries"]) == 2
    assert cut["truncated"]


DIFF = "--- a/x.txt\n+++ b/x.txt\n@@ -1,3 +1,4 @@\n one\n-two\n+2\n+2b\n three\n"


def test_a_patch_changes_creates_and_deletes(workspace: Path) -> None:
    (workspace / "x.txt").write_text("one\ntwo\nthree\n")
    (workspace / "old.txt").write_text("gone\n")
    diff = DIFF + "--- /dev/null\n+++ b/new/n.txt\n@@ -0,0 +1 @@\n+fresh\n\\ No newline at end of file\n"
    diff += "--- a/old.txt\n+++ /dev/null\n@@ -1 +0,0 @@\n-gone\n"
    result = patch({"patch": diff})
    assert [(f["path"], f["action"]) for f in result["files"]] == [
        ("x.txt", "changed"), ("new/n.txt", "created"), ("old.txt", "deleted"),
    ]  # fmt: skip
    assert (workspace / "x.txt").read_text() == "one\n2\n2b\nthree\n"
    assert (workspace / "new/n.txt").read_text() == "fresh"
    assert not (workspace / "old.txt").exists()


@pytest.mark.parametrize(
    "content", ["zero\none\ntwo\nthree\n", "one\nTWO\nthree\n", "one\ntwo\n", "one\ntwo\nthree", ""]
)
def test_a_patch_that_does_not_fit_exactly_is_refused(workspace: Path, content: str) -> None:
    (workspace / "x.txt").write_text(content)
    with pytest.raises(ToolFailure, match="does not fit at line"):
        patch({"patch": DIFF})
    assert (workspace / "x.txt").read_text() == content


def test_nothing_is_written_when_the_second_file_does_not_fit(workspace: Path) -> None:
    (workspace / "x.txt").write_text("one\ntwo\nthree\n")
    (workspace / "y.txt").write_text("other\n")
    with pytest.raises(ToolFailure, match=r"y\.txt"):
        patch({"patch": DIFF + "--- a/y.txt\n+++ b/y.txt\n@@ -1 +1 @@\n-expected\n+new\n"})
    assert (workspace / "x.txt").read_text() == "one\ntwo\nthree\n"


def test_check_only_writes_nothing(workspace: Path) -> None:
    (workspace / "x.txt").write_text("one\ntwo\nthree\n")
    assert patch({"patch": DIFF, "check_only": True})["applied"] is False
    assert (workspace / "x.txt").read_text() == "one\ntwo\nthree\n"


@pytest.mark.parametrize(
    "diff",
    [
        "nothing here", "@@ -1 +1 @@\n-a\n+b\n", "--- a/x\n", "--- a/x\n+++ b/y\n@@ -1 +1 @@\n-a\n+b\n",
        "--- a/x\n+++ b/x\n@@ -1,9 +1 @@\n-a\n+b\n", "--- a/x\n+++ b/x\n@@ garbage @@\n", DIFF + DIFF,
        "--- /dev/null\n+++ /dev/null\n@@ -0,0 +1 @@\n+a\n", "--- a/../x\n+++ b/../x\n@@ -1 +1 @@\n-a\n+b\n",
    ],
)  # fmt: skip
def test_what_is_no_patch_is_refused_with_a_reason(workspace: Path, diff: str) -> None:
    with pytest.raises(ToolFailure):
        patch({"patch": diff})


lines = st.lists(st.sampled_from(["a", "b", "c", "", " ", "-x", "+y", "\\"]), max_size=12)


@settings(max_examples=60, deadline=None)
@given(old=lines, new=lines, final_newline=st.booleans())
def test_a_diff_of_two_texts_turns_one_into_the_other(old: list[str], new: list[str], final_newline: bool) -> None:
    """The second opinion is difflib of the standard library."""
    one = [line + "\n" for line in old]
    two = [line + "\n" for line in new]
    diff = "".join(difflib.unified_diff(one, two, "a/f", "b/f"))
    if not diff:
        return
    (change,) = unified.parse(diff)
    assert unified.apply(change, "".join(one).encode()) == "".join(two).encode()


def test_the_reported_hash_is_of_what_is_on_disk(workspace: Path) -> None:
    result = write({"path": "h", "text": "héllo"})
    assert result["sha256"] == hashlib.sha256((workspace / "h").read_bytes()).hexdigest()
