"""What the commands show of one server: its definition, without the values of secrets."""

from __future__ import annotations

from omni_mcp.cli.planning import is_secret_variable
from omni_mcp.clients.secret_values import shown_text, shown_words
from omni_mcp.contracts.errors import NotFound
from omni_mcp.contracts.json import JsonObject
from omni_mcp.server_definition import ServerDefinition, Servers
from omni_mcp.servers_file import FILE_NAME


def get_definition(found: Servers, name: str) -> ServerDefinition:
    """Return the definition of a server.

    Raises:
        NotFound: there is none.
    """
    if name not in found.servers:
        raise NotFound(f"there is no server {name!r} in {FILE_NAME}; see: omni-mcp servers list")
    return found.servers[name]


def facts_of(name: str, found: Servers, lacks: str | None) -> JsonObject:
    """Return what is said of a server; *lacks* is what it cannot be started without."""
    definition = found.servers[name]
    fields = definition.as_json()
    words = shown_words([definition.command, *definition.args], is_secret_variable)
    fields |= {"args": words[1:]} if definition.args else {}
    fields |= {"url": shown_text(definition.url, is_secret_variable)} if definition.url else {}
    references = {secret: found.secrets.get(secret, "omni.toml") for secret in sorted(definition.secret_names)}
    facts = {"name": name, "enabled": definition.enabled, **fields}
    facts |= {"profile": definition.profile} if definition.command else {}
    facts |= {"references": references} if references else {}
    return facts | ({"lacks": lacks} if lacks else {})
