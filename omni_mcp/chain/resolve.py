"""A name becomes an accepted definition, or stays unknown; this stage never refuses."""

from __future__ import annotations

from collections.abc import Awaitable

from omni_mcp.contracts.call import Call, Handler, Result
from omni_mcp.contracts.ports import Catalog


class Resolve:
    """Pins the call to the definition that its project sees now. Unknown and quarantined names stay unknown."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def __call__(self, call: Call, proceed: Handler) -> Awaitable[Result]:
        entry = self._catalog.find(call.profile, call.kind, call.name, project=call.principal.project)
        if entry is None or entry.state == "quarantined":
            return proceed(call)
        call.trail.server = entry.server
        return proceed(call.but(tool=entry))
