"""OpenAPI documents of the settings become entries."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import structlog

from omni_mcp.config import Settings
from omni_mcp.contracts.errors import ConfigError, Problem
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.catalog.schemas import JsonSchemas
from omni_mcp.engines.openapi.source import OpenApiSource
from omni_mcp.paths import Home, bundled


def document_source(name: str, settings: Settings, home: Home, *, say_left_out: bool = True) -> OpenApiSource:
    """Return the operations of `[openapi.NAME]`; those that cannot become tools are named in the log."""
    document = settings.openapi[name]
    say = structlog.get_logger("omni_mcp")

    def left_out(problems: Sequence[Problem]) -> None:
        if problems and say_left_out:
            say.warning("operations left out", document=name, problems=[str(one) for one in problems[:20]])

    return OpenApiSource(
        name, document, file=home.config / document.document, code=bundled("sandbox") / "tools",
        refusals=JsonSchemas(keep=16).refusals, left_out=left_out,
    )  # fmt: skip


def known_operations(settings: Settings, home: Home) -> list[Entry]:
    """Return what a gateway on *home* would know of OpenAPI documents at its start; a refused one brings nothing."""
    sources = [document_source(name, settings, home, say_left_out=False) for name in settings.openapi]
    found: list[Entry] = []
    for source in sources:
        with suppress(ConfigError):
            found += source.load()
    return found
