"""InForce: which definitions of servers and which acceptances a running gateway goes by, as short marks."""

from __future__ import annotations

from omni_mcp.contracts.json import JsonObject, digest
from omni_mcp.contracts.lock import Lock, LockedServer
from omni_mcp.server_definition import ServerDefinition
from omni_mcp.upstreams.definitions import Defined


class InForce:
    """What the catalog and the connections follow by now; what is still on its way there does not count."""

    def __init__(self, defined: Defined, lock: Lock) -> None:
        self.defined = defined
        self.lock = lock

    def facts(self) -> JsonObject:
        """Return the marks by server, as `definition_mark` and `acceptance_mark` make them."""
        return {
            "servers": {name: definition_mark(definition) for name, definition in self.defined.said.items()},
            "accepted": {name: acceptance_mark(locked) for name, locked in self.lock.servers.items()},
        }


def definition_mark(definition: ServerDefinition) -> str:
    """Return what tells this definition from any other."""
    return digest(definition.as_json())


def acceptance_mark(locked: LockedServer) -> str:
    """Return what tells this state of what was accepted of a server from any other."""
    return digest(locked.model_dump(mode="json"))
