"""UsableSchemas: why a schema of a server's tool can be used by nobody, worked out once for all its listings."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import orjson

from omni_mcp.contracts.json import JsonObject
from omni_mcp.engines.catalog.schemas import JsonSchemas

KEPT = 8192  # answers, of some 100 bytes each


class UsableSchemas:
    """Answers for schemas as servers write them; nothing of a schema is kept but what is wrong with it."""

    def __init__(self) -> None:
        self._schemas = JsonSchemas(keep=1)
        self._known: OrderedDict[bytes, tuple[str, ...]] = OrderedDict()

    def faults(self, schema: JsonObject) -> Sequence[str]:
        """Return why calls could not be checked against *schema*, as `$.path: message`; nothing if they can."""
        key = hashlib.sha256(orjson.dumps(schema)).digest()
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = tuple(self._schemas.refusals(schema))
            if len(self._known) > KEPT:
                self._known.popitem(last=False)
        return found
