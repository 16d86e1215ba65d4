"""What a server suggests for an argument, with registered secrets taken out of it."""

from __future__ import annotations

from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.ports import Completer, Masker
from omni_mcp.contracts.tool import Entry


class MaskedCompleter:
    """Port `Completer` around another. Completions are no calls, so no stage of the chain masks them."""

    def __init__(self, completer: Completer, masker: Masker) -> None:
        self._completer = completer
        self._masker = masker

    async def complete(
        self, principal: Principal, entry: Entry, argument: JsonObject, context: JsonObject
    ) -> JsonObject:
        """As the port."""
        found = await self._completer.complete(principal, entry, argument, context)
        values = [self._masker.mask_text(value) for value in found.get("values", [])]
        return {**found, "values": values}
