"""A look at a server without a gateway: it is started once, and what it offers is kept as the gateway would keep it."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from omni_mcp.cli.servers_test import try_defined
from omni_mcp.engines.catalog.lock_listing import KeptListing, keep_listing, listings_dir
from omni_mcp.paths import Home
from omni_mcp.server_definition import ServerDefinition
from omni_mcp.upstreams.definitions import launch_of
from omni_mcp.upstreams.trial import ServerTrial


def look_at(home: Home, name: str) -> tuple[ServerDefinition, ServerTrial, KeptListing | None]:
    """Start the server that the operator's files define as *name*; returns what came of it, and what is kept of it.

    Raises:
        NotFound: they define none.
    """
    click.echo(f"{name} is started once, to see what it offers ...", err=True)
    definition, found = try_defined(home, name)
    if found.listing is None:
        return definition, found, None
    kept = KeptListing.model_validate(
        {"server": name, "seen_at": datetime.now(UTC).isoformat(), "launch": launch_of(definition),
         "items": found.listing.items, "problems": found.listing.problems}
    )  # fmt: skip
    keep_listing(listings_dir(home.data), kept)
    return definition, found, kept
