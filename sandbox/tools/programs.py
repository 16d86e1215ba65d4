"""The program tools: run Python code or a shell command, and return what it printed."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time

from failure import ToolFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

KEPT_BYTES = 128 * 1024  # of each stream; what comes after is read and counted, so that the program never blocks
LINGER_S = 0.5  # how long a stream may stay open in other hands after the program has ended


def python_run(arguments: dict[str, Any]) -> dict[str, Any]:
    """Run Python: *code* as a script with *args*, or without code the interpreter with *args* (such as `-m`)."""
    args = [str(one) for one in arguments.get("args", [])]
    interpreter = sys.executable or "python3"
    if "code" in arguments:
        with open("main.py", "x", encoding="utf-8") as script:
            script.write(arguments["code"])
        args = ["main.py", *args]
    elif not args:
        raise ToolFailure("give code, or args such as ['-m', 'json.tool']")
    return _run([interpreter, "-I", "-S", *args], arguments.get("stdin", ""))


def shell_run(arguments: dict[str, Any]) -> dict[str, Any]:
    """Run one command line with /bin/sh."""
    return _run(["/bin/sh", "-c", arguments["command"]], arguments.get("stdin", ""))


def _run(argv: list[str], stdin: str) -> dict[str, Any]:
    os.makedirs("out", exist_ok=True)
    try:
        process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
    except (OSError, ValueError) as error:
        raise ToolFailure(f"could not be started: {error}") from error
    streams = _Streams(process, stdin.encode("utf-8", "surrogateescape"))
    try:
        streams.pump()
        code = process.wait()  # it may have redirected both outputs and still be at work; the cell's time ends it
    finally:
        _end_group(process)
    result: dict[str, Any] = {"exit_code": code if code >= 0 else 128 - code}
    if code < 0:
        result["signal"] = signal.Signals(-code).name
    return {**result, **streams.result()}


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Leave nothing of the program behind; the cell's end would do the same, only later."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


class _Streams:
    """Feeds a program's input and reads both outputs at once, keeping the first part of each."""

    def __init__(self, process: subprocess.Popen[bytes], stdin: bytes) -> None:
        assert process.stdin and process.stdout and process.stderr
        self._process = process
        self._stdin = memoryview(stdin)
        self._kept = {"stdout": bytearray(), "stderr": bytearray()}
        self._seen = {"stdout": 0, "stderr": 0}
        self._selector = selectors.DefaultSelector()
        self._selector.register(process.stdout, selectors.EVENT_READ, "stdout")
        self._selector.register(process.stderr, selectors.EVENT_READ, "stderr")
        if stdin:
            os.set_blocking(process.stdin.fileno(), False)
            self._selector.register(process.stdin, selectors.EVENT_WRITE, "stdin")
        else:
            process.stdin.close()

    def pump(self) -> None:
        """Go on until both outputs are closed, or until shortly after the program ended (a daemon may hold them).

        Closed outputs do not say that the program has ended.
        """
        deadline: float | None = None
        while self._selector.get_map():
            for key, _ in self._selector.select(timeout=0.05):
                if key.data == "stdin":
                    self._feed(key.fileobj)
                else:
                    self._take(key.fileobj, key.data)
            if deadline is None and self._process.poll() is not None:
                deadline = time.monotonic() + LINGER_S
            if deadline is not None and time.monotonic() > deadline:
                break
        for key in list(self._selector.get_map().values()):
            self._close(key.fileobj)
        self._selector.close()

    def _feed(self, stream: Any) -> None:
        try:
            self._stdin = self._stdin[os.write(stream.fileno(), self._stdin[:65536]) :]
        except BrokenPipeError:
            self._stdin = self._stdin[:0]
        if not self._stdin:
            self._close(stream)

    def _take(self, stream: Any, name: str) -> None:
        data = os.read(stream.fileno(), 65536)
        if not data:
            self._close(stream)
        self._seen[name] += len(data)
        self._kept[name] += data[: KEPT_BYTES - len(self._kept[name])]

    def _close(self, stream: Any) -> None:
        self._selector.unregister(stream)
        stream.close()

    def result(self) -> dict[str, Any]:
        """Return both streams as text, what is not UTF-8 replaced, and whether something was left out."""
        texts = {name: bytes(kept).decode(errors="replace") for name, kept in self._kept.items()}
        truncated = any(self._seen[name] > len(kept) for name, kept in self._kept.items())
        return {
            **texts,
            "stdout_bytes": self._seen["stdout"],
            "stderr_bytes": self._seen["stderr"],
            "truncated": truncated,
        }
