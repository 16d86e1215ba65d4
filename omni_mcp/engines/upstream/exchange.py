"""Exchange: one request to a server, from its sending to its answer, with everything said meanwhile, in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from omni_mcp.contracts.json import JsonObject, JsonValue
from omni_mcp.engines.upstream.envelope import Caller
from omni_mcp.engines.upstream.faults import Garbled
from omni_mcp.engines.upstream.wire.large import LargeResult
from omni_mcp.protocol.frames import BadFrame, RequestId

NEWS_LIMIT = 256  # progress and log messages that nobody has fetched; the oldest goes
QUESTIONS_LIMIT = 16  # open questions of one request


@dataclass(frozen=True, slots=True)
class Question:
    """A request of the server to the caller. `id` is the server's own."""

    id: RequestId
    method: str
    params: JsonObject


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """The server does not want the answer to its question any more."""

    id: RequestId


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the request is."""

    progress: float
    total: float | None
    message: str | None


@dataclass(frozen=True, slots=True)
class Logged:
    """A log message."""

    level: str
    data: JsonValue
    logger: str | None


@dataclass(slots=True)  # not frozen, which takes longer to make: each call has one
class Answered:
    """The answer; nothing comes after it. With `large`, `result` shows only what kind of result it is."""

    result: JsonObject
    large: LargeResult | None = None


News = Question | Withdrawn | Progress | Logged | Answered


class Exchange:
    """One request under way. `next` is for its caller, the other methods for the talk that it is part of."""

    parked = False  # its caller has to come back for it

    def __init__(self, id: int, method: str, caller: Caller, *, let_go: Callable[[Exchange, str], None]) -> None:
        self.id = id
        self.method = method
        self.caller = caller
        self.open_questions: dict[RequestId, Question] = {}
        self._let_go = let_go
        self._news: deque[News] = deque()
        self._small = 0  # progress and log messages among the news
        self._fault: Exception | None = None
        self._over = False
        self._waiter: asyncio.Future[None] | None = None

    @property
    def over(self) -> bool:
        """Whether the answer came, or will not come."""
        return self._over

    async def next(self) -> News:
        """Return what comes next.

        Raises:
            RemoteError, Garbled, WireFault: there will be no answer; everything said before was returned first.
        """
        while not self._news:
            if self._fault is not None:
                raise self._fault
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        news = self._news.popleft()
        if isinstance(news, Progress | Logged):
            self._small -= 1
        return news

    async def answer(self) -> JsonObject:
        """Return the result, whatever else is said before."""
        while True:
            news = await self.next()
            if isinstance(news, Answered):
                return news.result if news.large is None else await _whole(news.large)

    def waiting_news(self) -> bool:
        """Whether `next` would return at once."""
        return bool(self._news) or self._fault is not None

    def cancel(self, reason: str) -> None:
        """Stop: the server is told, and what it still says of this request is ignored."""
        if not self._over:
            self._over = True
            self._let_go(self, reason)

    def tell(self, news: Progress | Logged) -> None:
        """Add something that may be lost."""
        if self._over:
            return
        if self._small >= NEWS_LIMIT:
            oldest = next(item for item in self._news if isinstance(item, Progress | Logged))
            self._news.remove(oldest)
            self._small -= 1
        self._small += 1
        self._news.append(news)
        self._wake()

    def ask(self, question: Question) -> bool:
        """Add a question; False if too many are open."""
        if self._over or len(self.open_questions) >= QUESTIONS_LIMIT or question.id in self.open_questions:
            return False
        self.open_questions[question.id] = question
        self._news.append(question)
        self._wake()
        return True

    def withdraw(self, id: RequestId) -> None:
        """Take a question back."""
        if self.open_questions.pop(id, None) is not None:
            self._news.append(Withdrawn(id))
            self._wake()

    def settle(self, result: JsonObject, large: LargeResult | None = None) -> None:
        """Add the answer."""
        if not self._over:
            self._over = True
            self._news.append(Answered(result, large))
            self._wake()

    def fail(self, fault: Exception) -> None:
        """There will be no answer."""
        if not self._over:
            self._over = True
            self._fault = fault
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


async def _whole(large: LargeResult) -> JsonObject:
    try:
        return await large.whole()
    except BadFrame as fault:
        raise Garbled(fault.reason) from fault
