"""What the process says on stderr: one line per event, masked, JSON unless a person is looking, and never in the way.

Lines go into a bounded buffer that a thread of its own writes out. A reader of stderr that never reads costs lines,
which are counted and reported once it reads again; it never stops a call.
"""

from __future__ import annotations

import logging
import os
import select
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import structlog

Level = Literal["debug", "info", "warning", "error"]

BUFFER_LIMIT_BYTES = 1024 * 1024
LINE_LIMIT_BYTES = 32 * 1024
FILE_LIMIT_BYTES = 5 * 1024 * 1024
LEVELS: dict[str, int] = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class LineSink:
    """Writes lines to a descriptor from a thread of its own; `write` never waits.

    With *file* the descriptor is taken to be that file, which is moved to `<file>.1` whenever it has grown too large.
    """

    def __init__(
        self, descriptor: int = 2, *, file: Path | None = None, buffer_limit_bytes: int = BUFFER_LIMIT_BYTES,
        file_limit_bytes: int = FILE_LIMIT_BYTES,
    ) -> None:  # fmt: skip
        self._descriptor = descriptor
        self._file = file
        self._file_limit_bytes = file_limit_bytes
        self._buffer_limit_bytes = buffer_limit_bytes
        self._lines: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._dropped = 0
        self._wanted = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="stderr", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """How many lines were lost and not yet reported."""
        return self._dropped

    def write(self, line: str) -> None:
        """Queue one line; drop it, and count it, when the buffer is full."""
        data = line.encode("utf-8", "backslashreplace")[:LINE_LIMIT_BYTES].replace(b"\n", b"\n  ") + b"\n"
        with self._wanted:
            if self._waiting_bytes + len(data) > self._buffer_limit_bytes:
                self._dropped += 1
                return
            self._lines.append(data)
            self._waiting_bytes += len(data)
            self._wanted.notify()

    def close(self, timeout_s: float = 1.0) -> None:
        """Write what waits, for at most *timeout_s*."""
        with self._wanted:
            self._closing = True
            self._wanted.notify()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._wanted:
                while not self._lines and not self._closing:
                    self._wanted.wait()
                batch = b"".join(self._lines)
                self._lines.clear()
                lost, self._dropped = self._dropped, 0
                closing = self._closing
            if lost:
                batch += b'{"event": "log_lines_dropped", "level": "warning", "count": %d}\n' % lost
            if not self._put(batch):
                return
            with self._wanted:
                self._waiting_bytes = sum(map(len, self._lines))
                if closing and not self._lines:
                    return

    def _put(self, data: bytes) -> bool:
        try:
            self._rotate()
            while data:
                try:
                    data = data[os.write(self._descriptor, data) :]
                except BlockingIOError:  # somebody who shares the descriptor made it non-blocking
                    select.select([], [self._descriptor], [], 1.0)
        except OSError:
            return False  # nobody can hear us any more; the run log is the record, not this
        return True

    def _rotate(self) -> None:
        if self._file is None or os.fstat(self._descriptor).st_size < self._file_limit_bytes:
            return
        os.replace(self._file, self._file.with_name(self._file.name + ".1"))
        fresh = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        os.dup2(fresh, self._descriptor)
        os.close(fresh)


class _SinkLogger:
    """What structlog calls for each finished line."""

    def __init__(self, put: Callable[[str], None]) -> None:
        self._put = put

    def msg(self, message: str) -> None:
        self._put(message)

    debug = info = warning = warn = error = critical = exception = msg


class _SinkHandler(logging.Handler):
    """Takes the lines of libraries that use the standard library's logging."""

    def __init__(self, put: Callable[[str], None]) -> None:
        super().__init__()
        self._put = put

    def emit(self, record: logging.LogRecord) -> None:
        self._put(self.format(record))


def configure_logs(
    sink: LineSink, *, level: Level, as_json: bool, mask_text: Callable[[str], str] = lambda text: text
) -> None:
    """Send structlog and the standard library's logging through *mask_text* into *sink*."""

    def put(line: str) -> None:
        sink.write(mask_text(line))

    before: list[Any] = [
        structlog.contextvars.merge_contextvars,  # the edge binds `request_id` there
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    last: Any = structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(colors=False)
    structlog.configure(
        processors=[*before, last],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=lambda *names: _SinkLogger(put),
        cache_logger_on_first_use=False,
    )
    handler = _SinkHandler(put)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=before, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, last]
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(LEVELS[level], LEVELS["info"]))
    logging.getLogger("uvicorn").setLevel(max(LEVELS[level], LEVELS["warning"]))  # its info says what ours says better
