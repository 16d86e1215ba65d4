"""A person at a terminal: waits for what is asked, then answers."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

WAIT_S = 60.0
END = "\x04"  # what a terminal makes the end of the input of


def answer_on_a_terminal(
    environment: Mapping[str, str], answers: Sequence[tuple[str, str]], *words: str
) -> tuple[int, str]:
    """Run a command of ours; type each answer once its question is there. Returns the exit code and what was shown."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "omni_mcp.cli.main", *words], env={**environment, "NO_COLOR": "1", "COLUMNS": "1000"},
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    shown, read_to = "", 0
    try:
        for question, answer in answers:
            while (at := shown.find(question, read_to)) < 0:
                chunk = _read(ours, f"waiting for {question!r} after:\n{shown}")
                assert chunk, f"it ended before it asked {question!r}:\n{shown}"
                shown += chunk
            read_to = at + len(question)
            os.write(ours, answer.encode())
        while chunk := _read(ours, f"waiting for the end after:\n{shown}"):
            shown += chunk
        return process.wait(WAIT_S), shown
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(ours)


def _read(descriptor: int, why: str) -> str:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        if select.select([descriptor], [], [], 1.0)[0]:
            try:
                return os.read(descriptor, 65536).decode(errors="replace").replace("\r\n", "\n")
            except OSError:  # the other side is closed
                return ""
    raise AssertionError(why)
