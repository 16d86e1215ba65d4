"""A Cedar request is made from facts of ours only: ids and labels as JSON that Cedar cannot misread."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.policy import Action, ApprovalFacts, StandingFacts
from omni_mcp.contracts.tool import Entry

MAX_HOSTS = 256
MAX_ID_CHARS = 2048
MAX_LONG = 2**63 - 1  # Cedar's Long is signed, 64 bits

RESOURCE_TYPE: Final[Mapping[Action, str]] = {
    "call_tool": "Omni::Tool",
    "read_resource": "Omni::Resource",
    "get_prompt": "Omni::Prompt",
}
ACTION_OF_KIND: Final[Mapping[str, Action]] = {
    "tool": "call_tool",
    "resource": "read_resource",
    "resource_template": "read_resource",
    "prompt": "get_prompt",
}


People = tuple[tuple[str, tuple[str, ...]], ...]  # users, each once, with their roles


@dataclass(frozen=True, slots=True)
class ResourceFacts:
    """What rules can see of an entry. Hashable, so that what is built from it is cached by what it says."""

    type: str
    id: str
    server: str
    attrs: tuple[tuple[str, str | bool], ...]


def resource_id(server: str, name: str) -> str:
    """Return the id under which rules name an entry: `server__name`; a server's name holds no `__`."""
    return f"{server}__{name}"


def resource_facts(action: Action, entry: Entry) -> ResourceFacts | None:
    """Return what rules can see of *entry*; None if the action is for entries of another kind, or it is quarantined."""
    if ACTION_OF_KIND[entry.kind] != action or entry.state == "quarantined":
        return None
    labels = entry.labels
    attrs: tuple[tuple[str, str | bool], ...] = (
        ("name", entry.name),
        ("version", entry.version),
        ("binding", entry.binding),
        ("side_effects", entry.side_effects),
        ("read_only", labels.read_only),
        ("destructive", labels.destructive),
        ("egress", labels.egress),
        ("reads_private", labels.reads_private),
        ("reads_untrusted", labels.reads_untrusted),
    )
    return ResourceFacts(RESOURCE_TYPE[action], resource_id(entry.server, entry.name), entry.server, attrs)


def uid(kind: str, name: str) -> JsonObject:
    """Return an entity's uid as JSON."""
    return {"type": kind, "id": name}


def uid_text(value: JsonObject) -> str:
    """Write a uid as Cedar text, such as `Omni::Tool::"tools__files_read"`."""
    return f'{value["type"]}::"{escape(value["id"])}"'


def escape(text: str) -> str:
    """Escape *text* for a Cedar string literal."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("'", "\\'")


def is_plain_id(text: str) -> bool:
    """Whether Cedar reads the id alike in its JSON and its text form.

    The text form is refused with control, format or unassigned characters, and with a combining mark in front; such
    an id could be decided on but never listed, so it is refused everywhere.
    """
    return (
        bool(text)
        and len(text) <= MAX_ID_CHARS
        and text.isprintable()
        and not unicodedata.category(text[0]).startswith("M")
    )


def entities_of(principal: Principal, resource: ResourceFacts, people: People) -> list[JsonObject]:
    """Return every entity that rules can ask about: the principal, the resource, and the people who said yes."""
    parents = [
        uid("Omni::Project", principal.project),
        *(uid("Omni::Role", role) for role in sorted(set(principal.roles))),
    ]
    attrs = {"owner": {"__entity": uid("Omni::User", principal.owner)}} if principal.kind == "Agent" else {}
    found: list[JsonObject] = [
        {"uid": uid(f"Omni::{principal.kind}", principal.id), "attrs": attrs, "parents": parents},
        {
            "uid": uid(resource.type, resource.id),
            "attrs": dict(resource.attrs),
            "parents": [uid("Omni::Server", resource.server)],
        },
    ]
    for user, roles in people:
        if not (principal.kind == "User" and principal.id == user):
            parents = [uid("Omni::Role", role) for role in sorted(set(roles))]
            found.append({"uid": uid("Omni::User", user), "attrs": {}, "parents": parents})
    return found


def context_of(
    *,
    project: str,
    run: str,
    name: str,
    arguments_digest: str,
    arguments_bytes: int,
    egress: Sequence[str],
    approval: ApprovalFacts | None,
    standing: StandingFacts | None = None,
) -> JsonObject:
    """Return the context of one request: no null and no float, which Cedar refuses.

    An approval of other arguments is left out, whatever the rules say about digests.

    Raises:
        ValueError: more than 256 hosts.
    """
    if len(egress) > MAX_HOSTS:
        raise ValueError(f"more than {MAX_HOSTS} egress hosts")
    context: JsonObject = {
        "project": {"__entity": uid("Omni::Project", project)},
        "run": run,
        "name": name,
        "args_digest": arguments_digest,
        "args_bytes": min(max(int(arguments_bytes), 0), MAX_LONG),
        "egress_hosts": sorted(set(egress)) if egress else [],
        "history": {},
    }
    if approval is not None and approval.arguments_digest == arguments_digest:
        by = {"__entity": uid("Omni::User", approval.by)}
        context["approval"] = {"id": approval.id, "by": by, "digest": approval.arguments_digest}
    if standing is not None:
        context["standing"] = standing_of(standing)
    return context


def standing_of(standing: StandingFacts) -> JsonObject:
    """Return a standing grant as the context holds it."""
    return {"id": standing.id, "by": {"__entity": uid("Omni::User", standing.by)}}


def people_of(context: JsonObject) -> list[str]:
    """Return the users that *context* names, each once."""
    if "approval" not in context and "standing" not in context:
        return []
    named = [context[fact]["by"]["__entity"]["id"] for fact in ("approval", "standing") if fact in context]
    return list(dict.fromkeys(named))


def request_of(principal: Principal, action: Action, resource: JsonObject, context: JsonObject) -> JsonObject:
    """Return the request in the form in which it is decided and recorded, without its entities."""
    return {
        "principal": uid(f"Omni::{principal.kind}", principal.id),
        "action": uid("Omni::Action", action),
        "resource": resource,
        "context": context,
    }
