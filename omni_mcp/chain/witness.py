"""What a tool says to its caller while a call runs, and what the caller answers: noted for a replay, within bounds."""

from __future__ import annotations

from omni_mcp.contracts.call import AskRefused, CallerLink
from omni_mcp.contracts.json import JsonObject, JsonValue, verbatim

SAID_ITEMS = 4096
SAID_BYTES = 1024 * 1024


class Witness:
    """A `CallerLink` around another that notes what passes, in order.

    Each note is a JSON array: `["progress", progress, total, message]`, `["log", level, data, logger]`,
    `["ask", number, method, params]`, and for each question in the end `["answer", number, result]` or
    `["refused", number, why]`. Secrets that are registered do not come this far.
    """

    def __init__(self, link: CallerLink) -> None:
        self._link = link
        self._said: list[bytes] = []
        self._room = SAID_BYTES
        self._asked = 0
        self._cut = False

    @property
    def client(self) -> object:
        """As the port."""
        return self._link.client

    def notes(self) -> bytes:
        """Return the members that a body gets for what was said: none, or `said`, and `cut` where it is not all."""
        if not self._said and not self._cut:
            return b""
        return b',"said":[%s]%s' % (b",".join(self._said), b',"cut":true' if self._cut else b"")

    async def progress(self, progress: float, total: float | None, message: str | None) -> None:
        """As the port."""
        self._note(["progress", progress, total, message])
        await self._link.progress(progress, total, message)

    async def log(self, level: str, data: JsonValue, logger: str | None) -> None:
        """As the port."""
        self._note(["log", level, data, logger])
        await self._link.log(level, data, logger)

    async def ask(self, method: str, params: JsonObject) -> JsonObject:
        """As the port."""
        self._asked += 1
        number = self._asked
        self._note(["ask", number, method, params])
        try:
            answer = await self._link.ask(method, params)
        except AskRefused as refused:
            self._note(["refused", number, str(refused)])
            raise
        self._note(["answer", number, answer])
        return answer

    def can_ask(self, method: str) -> bool:
        """As the port."""
        return self._link.can_ask(method)

    def page_done(self, elicitation: str) -> None:
        """As the port."""
        self._link.page_done(elicitation)

    def _note(self, note: list[JsonValue]) -> None:
        try:
            data = verbatim(note)
        except (TypeError, ValueError, RecursionError):
            self._cut = True
            return
        if self._cut or len(data) > self._room or len(self._said) >= SAID_ITEMS:
            self._cut = True  # what comes after a gap is of no use to a replay
            return
        self._room -= len(data)
        self._said.append(data)
