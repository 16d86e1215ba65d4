"""What the process says on stderr is masked, one line an event, and never makes anybody wait."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import structlog

from omni_mcp.logs import LineSink, configure_logs


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe that nobody reads until the test does; it holds 4 KiB."""
    source, sink = os.pipe()
    fcntl.fcntl(sink, fcntl.F_SETPIPE_SZ, 4096)
    yield source, sink
    for descriptor in (source, sink):
        try:
            os.close(descriptor)
        except OSError:
            continue  # the test closed it


@pytest.fixture(autouse=True)
def _put_back() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def read_all(source: int) -> str:
    parts = []
    while chunk := os.read(source, 65536):
        parts.append(chunk)
    return b"".join(parts).decode()


def test_an_event_is_one_line_of_json_with_time_level_and_request_id(pipe: tuple[int, int]) -> None:
    sink = LineSink(pipe[1])
    configure_logs(sink, level="info", as_json=True)
    with structlog.contextvars.bound_contextvars(request_id="r-1"):
        structlog.get_logger().info("served", path="/mcp\nforged line")
    structlog.get_logger().debug("not said")
    logging.getLogger("library").warning("from a library %s", "too")
    sink.close()
    os.close(pipe[1])
    first, second = [json.loads(line) for line in read_all(pipe[0]).splitlines()]
    assert (first["event"], first["level"], first["request_id"]) == ("served", "info", "r-1")
    assert first["path"] == "/mcp\nforged line" and first["timestamp"].endswith("Z")
    assert second["event"] == "from a library too" and second["level"] == "warning"


def test_registered_secrets_are_masked_also_inside_a_traceback(pipe: tuple[int, int]) -> None:
    sink = LineSink(pipe[1])
    configure_logs(sink, level="info", as_json=True, mask_text=lambda text: text.replace("hunter2", "***"))
    try:
        raise ValueError("password hunter2")
    except ValueError:
        structlog.get_logger().exception("failed", token="hunter2")
        logging.getLogger("library").exception("hunter2")
    sink.close()
    os.close(pipe[1])
    text = read_all(pipe[0])
    assert "hunter2" not in text and text.count("***") >= 4


def test_a_full_stderr_costs_lines_that_are_counted_and_never_blocks(pipe: tuple[int, int]) -> None:
    sink = LineSink(pipe[1], buffer_limit_bytes=64 * 1024)
    for number in range(5000):
        sink.write(f"line {number} " + "x" * 100)  # 600 KB into 4 KB that nobody reads: this must just come back
    begun = time.monotonic()
    sink.close(timeout_s=0.05)
    assert time.monotonic() - begun < 15
    reader = ThreadPoolExecutor(1).submit(read_all, pipe[0])
    sink.close(timeout_s=20)
    os.close(pipe[1])
    lines = reader.result(20).splitlines()
    kept = [line for line in lines if line.startswith("line ")]
    lost = sum(json.loads(line)["count"] for line in lines if line.startswith("{"))
    assert kept[0].startswith("line 0 ") and lost > 4000
    assert len(kept) + lost == 5000


def test_lines_that_wait_are_bounded_in_length_and_cannot_forge_another(pipe: tuple[int, int]) -> None:
    sink = LineSink(pipe[1])
    sink.write("first\nsecond")
    sink.close()
    os.close(pipe[1])
    assert read_all(pipe[0]) == "first\n  second\n"


def test_a_closed_stderr_is_survived(pipe: tuple[int, int]) -> None:
    os.close(pipe[0])
    sink = LineSink(pipe[1])
    sink.write("nobody listens")
    sink.close()
    sink.write("still nobody")


def test_a_log_file_is_moved_away_when_it_has_grown(tmp_path: Path) -> None:
    file = tmp_path / "gateway.log"
    file.write_text("old line\n" * 200)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    sink = LineSink(descriptor, file=file, file_limit_bytes=1000)
    sink.write("new line")
    sink.close()
    os.write(descriptor, b"stray output\n")  # a crash's last words go where the log is now
    os.close(descriptor)
    assert (tmp_path / "gateway.log.1").read_text() == "old line\n" * 200
    assert file.read_text() == "new line\nstray output\n"
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_process_whose_stderr_nobody_reads_ends_all_the_same() -> None:
    program = (
        "from omni_mcp.logs import LineSink, configure_logs\nimport structlog\nsink = LineSink()\n"
        "configure_logs(sink, level='info', as_json=True)\n"
        "for n in range(20000): structlog.get_logger().info('line', n=n)\nsink.close(0.1)\nprint('done')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.read() == b"done\n"
    assert process.wait(20) == 0
    process.communicate()
