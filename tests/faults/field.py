"""Field: a gateway's home, the recorder's file, and the ways to crash the one and look at the other."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tests.clients.running import Place, Running, new_place, serving
from tests.faults.recorder import POLICY, PUBLIC_NAME
from tests.faults.talk import Reply, call_all_http, call_all_lines

ROOT = Path(__file__).resolve().parent.parent.parent
Road = Literal["http", "stdio", "embedded"]
ROADS: tuple[Road, ...] = ("http", "stdio", "embedded")
# In the order in which a call passes them. `replied` has no hook: the client's having the answer is the event.
POINTS = (
    "before_intent",
    "intent_unsynced",
    "intent_durable",
    "dispatched",
    "result_received",
    "result_durable",
    "replied",
)


class NotCrashed(Exception):
    """The gateway outlived the point at which it was to be killed."""


@dataclass(frozen=True, slots=True)
class Field:
    """One home and one record."""

    place: Place

    @property
    def record(self) -> Path:
        """Where the tool leaves its lines."""
        return self.place.root / "record.txt"

    def _command(self, *more: str) -> list[str]:
        return [sys.executable, "-m", "tests.faults.serve", "--record", str(self.record), *more]

    def serving(self, *, crash: str = "") -> AbstractContextManager[Running]:
        """Run the daemon; *crash* is `point:n`."""
        return serving(self._armed(crash), command=self._command())

    def _armed(self, crash: str) -> Place:
        return replace(self.place, extra={**self.place.extra, "OMNI_CRASH": crash}) if crash else self.place

    def crash(self, point: str, nth: int, road: Road, marks: Sequence[str]) -> list[Reply]:
        """Make a call for each mark, all at once, and have the gateway killed when *point* is reached the n-th time.

        Raises:
            NotCrashed: it was not.
        """
        hook = "" if point == "replied" else f"{point}:{nth}"
        if road == "embedded":
            return self._crash_embedded(hook, marks)
        with self.serving(crash=hook) as running:
            if road == "http":
                replies = call_all_http(running, PUBLIC_NAME, marks)
            else:
                replies = call_all_lines(self.place, PUBLIC_NAME, marks)
            if point == "replied":
                os.kill(running.process.pid, signal.SIGKILL)
            if running.wait_for_end() != -signal.SIGKILL:
                raise NotCrashed(f"{point}:{nth} over {road}: ended with {running.process.returncode}")
        return replies

    def _crash_embedded(self, hook: str, marks: Sequence[str]) -> list[Reply]:
        def kill(pid: int) -> None:
            os.kill(pid, signal.SIGKILL)

        replies = call_all_lines(
            self._armed(hook), PUBLIC_NAME, marks, self._command("--embedded"), then_kill=None if hook else kill
        )
        if hook and all(reply.message is not None for reply in replies):
            raise NotCrashed(f"{hook} embedded: every call was answered")
        return replies


@contextmanager
def new_field() -> Iterator[Field]:
    """Make a home that permits the recorder, and nothing else."""
    with new_place(PYTHONPATH=str(ROOT)) as place:
        place.write_policy(POLICY)
        yield Field(place)
