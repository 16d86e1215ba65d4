"""The way back to the caller, with registered secrets taken out of whatever a tool says while it runs."""

from __future__ import annotations

from omni_mcp.contracts.call import CallerLink
from omni_mcp.contracts.json import JsonObject, JsonValue
from omni_mcp.contracts.ports import Masker


class MaskedLink:
    """A `CallerLink` around another."""

    def __init__(self, link: CallerLink, masker: Masker) -> None:
        self._link = link
        self._masker = masker

    @property
    def client(self) -> object:
        """As the port."""
        return self._link.client

    async def progress(self, progress: float, total: float | None, message: str | None) -> None:
        """As the port."""
        await self._link.progress(progress, total, None if message is None else self._masker.mask_text(message))

    async def log(self, level: str, data: JsonValue, logger: str | None) -> None:
        """As the port."""
        name = None if logger is None else self._masker.mask_text(logger)
        await self._link.log(level, self._masker.mask_known(data), name)

    async def ask(self, method: str, params: JsonObject) -> JsonObject:
        """As the port; the caller's answer goes to the tool as it is."""
        return await self._link.ask(method, self._masker.mask_known(params))

    def can_ask(self, method: str) -> bool:
        """As the port."""
        return self._link.can_ask(method)

    def page_done(self, elicitation: str) -> None:
        """As the port."""
        self._link.page_done(elicitation)
