"""One look at a server, without a gateway: start it as the gateway would, greet it, and list what it offers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from omni_mcp import __version__
from omni_mcp.config import Settings
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.sandbox import Connection, Isolation
from omni_mcp.engines.identity.keys import tokens_in_clear
from omni_mcp.engines.sandbox.cells import open_sandbox
from omni_mcp.engines.sandbox.launcher import seen_by_all
from omni_mcp.engines.sandbox.profiles import load_profiles
from omni_mcp.engines.sandbox.servers import ServerCells
from omni_mcp.engines.secrets.masking import SecretMasker
from omni_mcp.engines.upstream.envelope import ClientInfo
from omni_mcp.engines.upstream.lister import Unlisted
from omni_mcp.engines.upstream.listing import Listing
from omni_mcp.engines.upstream.pool import Hooks, Known, Upstreams, open_upstreams
from omni_mcp.host_places import HostPlaces
from omni_mcp.paths import Home, bundled
from omni_mcp.server_definition import ServerDefinition
from omni_mcp.upstreams.behind import own_uri
from omni_mcp.upstreams.launcher import Launcher, mounts_of
from omni_mcp.upstreams.usable_schemas import UsableSchemas

STDERR_SHOWN = 2000  # characters
REFUSED_SHOWN = 20  # hosts


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTrial:
    """What came of it. `fault` is empty if all went well; `refused` are hosts that it reached for and may not."""

    fault: str = ""
    era: str = ""
    version: str = ""
    server_info: JsonObject = field(default_factory=dict)
    ready_ms: float | None = None
    list_ms: float | None = None
    offers: dict[str, int] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    isolation: JsonObject | None = None  # of a command; a URL runs elsewhere
    refused: tuple[str, ...] = ()
    stderr: str = ""
    listing: Listing | None = field(default=None, repr=False)


async def try_server(
    name: str, definition: ServerDefinition, *, secrets: dict[str, str], settings: Settings, home: Home
) -> ServerTrial:
    """Start *name*, ask for its lists once, and end it. Whatever goes wrong is the `fault` of the result."""
    if definition.url is None and (fault := HostPlaces(home).seen_in(seen_by_all(bundled("sandbox")))):
        return ServerTrial(fault=f"no cell is started: {fault}")
    masker = SecretMasker(secrets)
    masker.add(tokens_in_clear(home.token_file))
    tried: list[Connection] = []
    async with _launcher(definition, secrets, settings, home, masker, tried) as (launcher, isolation):
        in_use = definition.model_copy(update={"enabled": True})
        async with open_upstreams(
            {name: in_use}, launch=launcher, secrets=secrets, info=ClientInfo(version=__version__), own_uri=own_uri,
            known=Known(listings={name: Listing()}), hooks=Hooks(schema_faults=UsableSchemas().faults),
        ) as pool:  # fmt: skip
            found = await _look(pool, name, masker)
        refused = sorted({f"{one.host}:{one.port}" for one in tried if one.verdict == "refused"})
        return replace(
            found, isolation=isolation.as_json() if definition.url is None else None,
            refused=tuple(refused[:REFUSED_SHOWN]), stderr=launcher.stderr_of(name)[-STDERR_SHOWN:],
        )  # fmt: skip


async def _look(pool: Upstreams, name: str, masker: SecretMasker) -> ServerTrial:
    try:
        probe = await pool.probe(name)
    except Unlisted as fault:
        return ServerTrial(fault=masker.mask_text(fault.reason))
    facts = pool.facts()[name]["connections"]["shared"]
    return ServerTrial(
        era=facts["era"] or "", version=facts["version"], server_info=facts["server_info"],
        ready_ms=round(probe.ready_ms, 1), list_ms=round(probe.list_ms, 1),
        offers={kind: len(items) for kind, items in probe.listing.items.items()}, left_out=probe.listing.problems,
        listing=probe.listing,
    )  # fmt: skip


@asynccontextmanager
async def _launcher(
    definition: ServerDefinition, secrets: dict[str, str], settings: Settings, home: Home, masker: SecretMasker,
    tried: list[Connection],
) -> AsyncIterator[tuple[Launcher, Isolation]]:  # fmt: skip
    profiles = load_profiles(bundled("sandbox") / "profiles", own=home.profiles)
    async with open_sandbox(
        profiles=profiles, sandbox_dir=bundled("sandbox"), max_jobs=1, use_cgroups=settings.sandbox.cgroups
    ) as sandbox:
        cells = ServerCells(sandbox, profiles, home.servers, secrets=secrets, shown=HostPlaces(home))
        cells.remember(mounts_of(definition))
        launcher = Launcher(
            cells, networks=settings.egress.networks, mask=masker.mask_text,
            on_connection=lambda name, connection: tried.append(connection),
        )  # fmt: skip
        yield launcher, sandbox.isolation()
