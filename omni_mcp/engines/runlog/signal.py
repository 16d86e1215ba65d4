"""A signal wakes one thread. `threading.Event` does as much for many, at several times the cost of each wait."""

from __future__ import annotations

import threading
from contextlib import suppress


class Signal:
    """One thread waits for it, others set it; set twice before a wait is as good as once. It begins unset."""

    __slots__ = ("_unset",)

    def __init__(self) -> None:
        self._unset = threading.Lock()  # held while it is not set
        self._unset.acquire()

    def set(self) -> None:
        """Wake whoever waits, or have the next wait return at once."""
        with suppress(RuntimeError):  # it was set
            self._unset.release()

    def wait(self, timeout_s: float | None) -> bool:
        """Wait until it is set, and unset it; False if that took longer than *timeout_s*."""
        return self._unset.acquire(timeout=-1 if timeout_s is None else timeout_s)
