"""omni-mcp: one MCP endpoint in front of every tool; deny by default, sandboxed, and on record.

The public API: `open_gateway`, `Gateway`, `Client`, `Settings`, `load_settings`, `OmniError`, `__version__`. Names are
resolved when they are used, so that the command line and the shim start without loading the gateway.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PLACES = {
    "Client": "omni_mcp.client.client",
    "Gateway": "omni_mcp.gateway",
    "open_gateway": "omni_mcp.assembly",
    "Settings": "omni_mcp.config",
    "load_settings": "omni_mcp.config",
    "OmniError": "omni_mcp.contracts.errors",
}
__all__ = ["Client", "Gateway", "OmniError", "Settings", "__version__", "load_settings", "open_gateway"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'omni_mcp' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)
