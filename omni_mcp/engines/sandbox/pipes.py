"""Pipes: the descriptors that a job is given, and what comes out of them on our side."""

from __future__ import annotations

import asyncio
import fcntl
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from omni_mcp.contracts.sandbox import Job, Streams
from omni_mcp.engines.sandbox.failures import StartFailed
from omni_mcp.engines.sandbox.output import Budget, Output

_STANDARD = 3  # descriptors 0, 1, 2


class JobPipes(Protocol):
    """What a job is given to read and write, and what is taken from it."""

    given: tuple[int, ...]  # stdin, stdout, stderr, and where a function returns its result

    @property
    def bytes_out(self) -> int:
        """What came so far."""
        ...

    @property
    def over(self) -> bool:
        """Whether more came than may."""
        ...

    def close_given(self) -> None:
        """Close our copies of the job's descriptors: it has its own now."""
        ...

    async def finish(self) -> Mapping[str, bytes]:
        """Take what is left and close everything; returns what was kept of stdout, stderr and result."""
        ...

    def abandon(self) -> None:
        """Close everything whatever is left in it."""
        ...


class Pipes:
    """Of one job: its stdin, stdout, stderr, and for a function the pipe in which it returns its result.

    Output counts against `limits.output_limit_bytes`, a function's result against as much again; *exceeded* is called
    when either is used up.

    Raises:
        StartFailed: this process has no room for them.
    """

    def __init__(self, job: Job, streams: Streams | None, exceeded: Callable[[], None]) -> None:
        text = Budget(job.limits.output_limit_bytes, exceeded)
        self._budgets = (text, Budget(job.limits.output_limit_bytes, exceeded))
        self.given: tuple[int, ...] = ()
        with _all_or_none() as held:
            held.append(_sealed_file(job.stdin) if streams is None else os.dup(streams.stdin))
            ends = [_pipe(held) for _ in range(3 if job.function else 2)]
        self.given = (held[0], *(writer for _, writer in ends))
        self._passed_on = streams is not None
        sinks = (streams.stdout, streams.stderr) if streams is not None else (None, None)
        budgets = (text, text, self._budgets[1])
        self._outputs = [
            Output(reader, budget, sink)
            for (reader, _), budget, sink in zip(ends, budgets, (*sinks, None), strict=False)
        ]

    @property
    def bytes_out(self) -> int:
        return sum(budget.taken for budget in self._budgets)

    @property
    def over(self) -> bool:
        return any(budget.over for budget in self._budgets)

    def close_given(self) -> None:
        for descriptor in self.given:
            os.close(descriptor)
        self.given = ()

    async def finish(self) -> Mapping[str, bytes]:
        self.close_given()
        if self._passed_on:  # one reader that is stuck is waited for as long as two
            kept = await asyncio.gather(*(output.finish() for output in self._outputs))
        else:
            kept = [await output.finish() for output in self._outputs]
        return {"stdout": kept[0], "stderr": kept[1], "result": kept[2] if len(kept) > 2 else b""}

    def abandon(self) -> None:
        self.close_given()
        for output in self._outputs:
            output.abandon()


class ServerPipes:
    """Of a server: stdin and stdout are for whoever speaks with it, stderr is passed on while it comes.

    Raises:
        StartFailed: this process has no room for them.
    """

    def __init__(self, on_stderr: Callable[[bytes], None]) -> None:
        with _all_or_none() as held:
            stdin, self.stdin = _pipe(held)
            self.stdout, stdout = _pipe(held)
            reader, stderr = _pipe(held)
            self.given: tuple[int, ...] = (stdin, stdout, stderr, os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC))
        for descriptor in (self.stdin, self.stdout):
            os.set_blocking(descriptor, False)

        async def pass_on(data: bytes) -> None:
            on_stderr(data)

        self._stderr = Output(reader, Budget(sys.maxsize, lambda: None), pass_on)

    bytes_out = 0
    over = False

    def close_given(self) -> None:
        for descriptor in self.given:
            os.close(descriptor)
        self.given = ()

    async def finish(self) -> Mapping[str, bytes]:
        self.close_given()
        await self._stderr.finish()
        return {"stdout": b"", "stderr": b"", "result": b""}

    def abandon(self) -> None:
        self.close_given()
        self._stderr.abandon()

    def close(self) -> None:
        """Close our ends: not before whoever speaks with the server has let go of them."""
        os.close(self.stdin)
        os.close(self.stdout)


def hand_over(given: Sequence[int], uid: int) -> None:
    """Make *uid* the owner of stdin, stdout and stderr where they are pipes: it may open `/dev/stdin` and the like."""
    for descriptor in given[:_STANDARD]:
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            with suppress(OSError):  # a gateway that may not do that has jobs that open them by number only
                os.fchown(descriptor, uid, -1)


@contextmanager
def _all_or_none() -> Iterator[list[int]]:
    """Close what has been put into the list if one more cannot be had."""
    held: list[int] = []
    try:
        yield held
    except OSError as error:
        for descriptor in held:
            os.close(descriptor)
        raise StartFailed(f"no descriptor can be had: {error.strerror}") from error


def _pipe(held: list[int]) -> tuple[int, int]:
    ends = os.pipe2(os.O_CLOEXEC)
    held += ends
    return ends


def _sealed_file(content: bytes) -> int:
    """Return a descriptor that reads *content* and cannot be written: no writer to feed, no pipe to block on."""
    if not content:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    descriptor = os.memfd_create("stdin", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    seals: Any = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor
