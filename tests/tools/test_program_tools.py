"""The program and artifact tools: what a program prints comes back within limits, however it behaves."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from failure import ToolFailure

from tests.tools.tool_rooms import function_of

python_run, shell_run = function_of("programs:python_run"), function_of("programs:shell_run")
artifact_read, artifact_search = function_of("artifact:artifact_read"), function_of("artifact:artifact_search")
artifact_query = function_of("artifact:artifact_query")


def test_code_gets_its_arguments_and_input(workspace: Path) -> None:
    result = python_run(
        {"code": "import sys; print(sys.argv[1:], sys.stdin.read())", "args": ["a", "b"], "stdin": "in"}
    )
    assert result["stdout"] == "['a', 'b'] in\n"
    assert python_run({"args": ["--version"]})["stdout"].startswith("Python 3")


def test_python_without_code_or_arguments_is_refused(workspace: Path) -> None:
    with pytest.raises(ToolFailure, match="give code"):
        python_run({})


def test_an_exception_is_a_result_with_its_traceback(workspace: Path) -> None:
    result = python_run({"code": "raise ValueError('no')"})
    assert result["exit_code"] == 1
    assert "ValueError: no" in result["stderr"]


def test_a_signal_is_named(workspace: Path) -> None:
    result = shell_run({"command": "kill -SEGV $$"})
    assert (result["exit_code"], result["signal"]) == (139, "SIGSEGV")


def test_output_over_the_limit_is_counted_and_cut(workspace: Path) -> None:
    result = shell_run({"command": "head -c 3000000 /dev/zero | tr '\\0' x; echo problem >&2"})
    assert result["stdout_bytes"] == 3_000_000
    assert len(result["stdout"]) == 128 * 1024
    assert result["truncated"]
    assert result["stderr"] == "problem\n"


def test_large_input_and_output_at_once_do_not_block(workspace: Path) -> None:
    result = shell_run({"command": "cat", "stdin": "x" * 1_000_000})
    assert result["stdout_bytes"] == 1_000_000


def test_a_program_that_does_not_read_its_input_ends_normally(workspace: Path) -> None:
    assert shell_run({"command": "exit 4", "stdin": "x" * 1_000_000})["exit_code"] == 4


def test_a_daemon_that_holds_the_output_does_not_hold_the_call(workspace: Path) -> None:
    started = time.monotonic()
    result = shell_run({"command": "sleep 30 & echo done"})
    assert result["stdout"] == "done\n"
    assert time.monotonic() - started < 25


@pytest.mark.parametrize("stdin", ["", "x" * 200_000], ids=["no input", "input that nobody reads"])
@pytest.mark.parametrize("how", ["exec >out/log 2>&1", "exec >&- 2>&-"])
def test_a_program_that_closes_or_redirects_its_output_runs_to_its_end(workspace: Path, how: str, stdin: str) -> None:
    result = shell_run({"command": f"{how}; sleep 0.3; touch out/done; exit 7", "stdin": stdin})
    assert (workspace / "out" / "done").exists()
    assert (result["exit_code"], "signal" in result) == (7, False)


def test_what_such_a_program_leaves_behind_is_ended_with_it(workspace: Path) -> None:
    shell_run({"command": "exec >/dev/null 2>&1; (sleep 30; touch late) & echo $! > child; sleep 0.1"})
    stat = Path(f"/proc/{(workspace / 'child').read_text().strip()}/stat")
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and stat.exists() and ") Z " not in stat.read_text():
        pass
    assert not stat.exists() or ") Z " in stat.read_text()


def test_bytes_that_are_no_text_are_replaced(workspace: Path) -> None:
    assert shell_run({"command": "printf '\\377ok'"})["stdout"] == "�ok"


@pytest.fixture
def artifact(workspace: Path) -> Path:
    (workspace / "in").mkdir()
    return workspace / "in" / "artifact"


def test_byte_slices_of_an_artifact_put_together_are_the_artifact(artifact: Path) -> None:
    artifact.write_bytes(b"0123456789")
    parts, start = [], 0
    while True:
        part = artifact_read({"artifact": "x", "start_byte": start, "max_bytes": 4})
        parts.append(part["text"])
        start += len(part["text"])
        if not part["truncated"]:
            break
    assert parts == ["0123", "4567", "89"]
    artifact.write_bytes(b"\xff\xfe")
    assert artifact_read({"artifact": "x", "max_bytes": 10})["base64"] == "//4="
    with pytest.raises(ToolFailure, match="start_byte"):
        artifact_read({"artifact": "x"})


def test_a_search_takes_its_text_literally_and_counts_beyond_the_limit(artifact: Path) -> None:
    artifact.write_text("a.c\nabc\nA.C\n" + "a.c\n" * 10)
    result = artifact_search({"artifact": "x", "text": "a.c", "max_matches": 2})
    assert [match["line"] for match in result["matches"]] == [1, 4]
    assert (result["count"], result["truncated"]) == (11, True)
    assert artifact_search({"artifact": "x", "text": "a.c", "ignore_case": True})["count"] == 12


def test_an_artifact_that_is_not_json_cannot_be_queried(artifact: Path) -> None:
    for text in ("{", "NaN", "[" * 100_000):
        artifact.write_text(text)
        with pytest.raises(ToolFailure, match="not JSON"):
            artifact_query({"artifact": "x", "query": "$"})


def test_a_missing_artifact_is_said_to_be_missing(workspace: Path) -> None:
    with pytest.raises(ToolFailure, match="no such artifact"):
        artifact_read({"artifact": "x"})
