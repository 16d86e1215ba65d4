"""ParamHeaders: the headers in which a modern client says some arguments again, as the tool's schema wants it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from omni_mcp.contracts.ports import Catalog
from omni_mcp.protocol.headers import check_param_headers, declared_headers
from omni_mcp.serving.calls import Asked

DECLARATIONS_KEPT = 4096


class ParamHeaders:
    """Checks them against the body."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._declared: OrderedDict[str, tuple[tuple[tuple[str, ...], str, str], ...]] = OrderedDict()

    def check(self, asked: Asked, headers: Mapping[str, str]) -> None:
        """Refuse a `tools/call` whose headers say something else than its body.

        Raises:
            RpcError: they do.
        """
        session = asked.session
        entry = self._catalog.find(session.profile, "tool", asked.params["name"], project=session.principal.project)
        if entry is None:
            return  # who may not see the tool gets the same answer as for one that is not there
        declared = self._declared.get(entry.digest)
        if declared is None:
            declared = self._declared[entry.digest] = declared_headers(entry.definition.get("inputSchema"))
            while len(self._declared) > DECLARATIONS_KEPT:
                self._declared.popitem(last=False)
        if declared:
            check_param_headers(declared, asked.params.get("arguments") or {}, headers)
