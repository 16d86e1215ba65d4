"""Which servers the operator's files define, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from omni_mcp.contracts.errors import ConfigError, Problem
from omni_mcp.contracts.lock import launch_parts
from omni_mcp.contracts.ports import Source
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.catalog.gradual import steps_of
from omni_mcp.engines.catalog.lock import LockedSource
from omni_mcp.engines.catalog.lock_listing import listings_dir, load_listings
from omni_mcp.engines.catalog.lockfile import LockFile
from omni_mcp.engines.upstream.listing import Listing, Listings
from omni_mcp.host_places import HostPlaces
from omni_mcp.paths import Home
from omni_mcp.plugins.tools import PluginTools
from omni_mcp.server_definition import ServerDefinition, Servers
from omni_mcp.servers_file import check_disjoint, load_servers, mount_fault, read_server_secrets, servers_file_of
from omni_mcp.turns import Work, finish


@dataclass(frozen=True, slots=True, kw_only=True)
class Defined:
    """What the operator's files define: servers by name, the values of their secrets, and what is wrong.

    `said` are the definitions as they were written; in `servers` one that cannot be used is disabled.
    """

    servers: Mapping[str, ServerDefinition]
    secrets: Mapping[str, str] = field(repr=False)
    problems: tuple[Problem, ...] = ()
    said: Mapping[str, ServerDefinition] = field(default_factory=dict)
    refused: bool = False  # a file as a whole

    def says_the_same_as(self, other: Defined) -> bool:
        """Whether both define the same servers, in the same words and with the same secrets."""
        return dict(self.servers) == dict(other.servers) and dict(self.secrets) == dict(other.secrets)


def read_definitions(
    by_hand: Mapping[str, ServerDefinition], home: Home, *, secrets: Mapping[str, str], environment: Mapping[str, str]
) -> Defined:
    """Read servers.toml beside what omni.toml says. A faulty file, secret or mount takes no other server down.

    Args:
        by_hand: the servers of omni.toml.
        secrets: those of omni.toml by name.
    """
    file = servers_file_of(home)
    problems: list[Problem] = []
    written, refused = Servers(), False
    try:
        written = load_servers(file)
        check_disjoint(file, written, frozenset(by_hand))
    except ConfigError as error:
        problems += error.problems
        written, refused = Servers(), True
    everything = Servers(servers={**by_hand, **written.servers}, secrets=written.secrets)
    values, lacking = read_server_secrets(everything, environment, known=secrets)
    out = {**lacking, **refused_mounts(everything.servers, HostPlaces(home))}
    problems += [Problem(file=str(file), line=0, path=f"$.servers.{name}", message=text) for name, text in out.items()]
    usable = {
        name: definition.model_copy(update={"enabled": False}) if name in out else definition
        for name, definition in everything.servers.items()
    }
    return Defined(
        servers=usable, secrets=values, problems=tuple(problems), said=everything.servers, refused=refused
    )  # fmt: skip


def refused_mounts(servers: Mapping[str, ServerDefinition], shown: HostPlaces) -> dict[str, str]:
    """Return why enabled servers cannot be shown what their definitions name, by name."""
    return {
        name: fault
        for name, definition in servers.items()
        if definition.enabled and (fault := mount_fault(definition, shown))
    }


class Together:
    """Several sources as one."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = tuple(sources)

    def load(self) -> Iterable[Entry]:
        """As the port."""
        return finish(self.steps())

    def steps(self) -> Work[list[Entry]]:
        """As `load`, in turns as far as the sources do."""
        found: list[Entry] = []
        for source in self._sources:
            found += yield from steps_of(source)
        return found


def known_entries(by_hand: Mapping[str, ServerDefinition], home: Home, plugins: PluginTools) -> list[Entry]:
    """Return what servers offered last and what plugins offer, and what is in force of it, as a gateway on *home* would
    start with.

    Raises:
        ConfigError: a kept listing is not what the gateway writes.
    """
    defined = read_definitions(by_hand, home, secrets={}, environment={}).servers
    source = Listings()
    source.use({name: one.timeout_s for name, one in defined.items()}, known_listings(home, defined))
    lock = LockFile(home.lock_file)
    lock.reload()

    def launch(name: str) -> Mapping[str, str]:
        return launch_of(defined[name]) if name in defined else plugins.launch_of(name)

    return list(LockedSource(Together([source, plugins]), lock, launch_of=launch).load())


def known_listings(home: Home, servers: Mapping[str, ServerDefinition]) -> dict[str, Listing]:
    """Return what servers offered last, as far as they are launched as they were then."""
    return {
        server: Listing(
            items={str(kind): items for kind, items in kept.items.items()},
            problems=kept.problems,
            asks_roots=kept.asks_roots,
        )
        for server, kept in load_listings(listings_dir(home.data)).items()
        if server in servers and dict(kept.launch) == launch_of(servers[server])
    }


def launch_of(definition: ServerDefinition) -> dict[str, str]:
    """Return the parts of what launches a server, as the lock knows them."""
    return launch_parts(definition.as_json())
