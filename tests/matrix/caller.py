"""Caller: what the features of the matrix need of a client, whoever wrote it."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

Json = dict[str, Any]
LIMIT_S = 20.0


class Refused(Exception):
    """The answer is a JSON-RPC error."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class Caller(ABC):
    """One client. `answers` says what it answers when it is asked, by method: a result, or what makes one."""

    modern = False

    def __init__(self) -> None:
        self.answers: dict[str, Json | Callable[[Json], Json]] = {}
        self.asked: list[str] = []
        self.notes: list[Json] = []
        self._heard = asyncio.Event()

    @property
    def not_found(self) -> int:
        """The code with which it says that there is no such resource."""
        return -32602 if self.modern else -32002

    @abstractmethod
    async def open(self) -> None:
        """Connect and greet."""

    @abstractmethod
    async def close(self) -> None:
        """Leave."""

    @abstractmethod
    async def request(self, method: str, params: Json) -> Json:
        """Send a request and return its result.

        Raises:
            Refused: it was answered with an error.
        """

    @abstractmethod
    async def call(self, tool: str, arguments: Json | None = None, **meta: Any) -> Json:
        """Call a tool, through as many rounds as it takes."""

    @abstractmethod
    async def begin(self, tool: str, arguments: Json, **meta: Any) -> Any:
        """Begin a call whose answer nobody will wait for; returns what `cancel` wants."""

    @abstractmethod
    async def cancel(self, begun: Any) -> None:
        """Cancel a call as the version and the transport want it."""

    @abstractmethod
    async def subscribe(self, uri: str) -> None:
        """Ask to hear of updates of a resource, and in the modern era of lists too."""

    @abstractmethod
    async def unsubscribe(self, uri: str) -> None:
        """Undo `subscribe`."""

    async def listed(self, what: str) -> list[Json]:
        """Return all items of a list."""
        found: list[Json] = []
        params: Json = {}
        while True:
            page = await self.request(f"{what}/list", params)
            found += page[what]
            if page.get("nextCursor") is None:
                return found
            params = {"cursor": page["nextCursor"]}

    def heard(self, method: str) -> list[Json]:
        """Return the parameters of the notifications of that method."""
        return [note.get("params", {}) for note in self.notes if note["method"] == method]

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until what was heard fulfils *condition*."""
        async with asyncio.timeout(LIMIT_S):
            while not condition():
                self._heard.clear()
                await self._heard.wait()

    def take_note(self, note: Json) -> None:
        """Keep a notification."""
        self.notes.append(note)
        self._heard.set()

    def answer_to(self, method: str, params: Json) -> Json:
        """Return what is answered to a question."""
        self.asked.append(method)
        answer = self.answers[method]
        return answer if isinstance(answer, dict) else answer(params)
