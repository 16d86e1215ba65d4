"""Entry: one thing that a call can name. Tools, resources, resource templates and prompts are entries alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from omni_mcp.contracts.json import JsonObject, digest
from omni_mcp.contracts.manifest import Binding, Labels, Limits, Posture, SideEffects, ToolManifest

EntryKind = Literal["tool", "resource", "resource_template", "prompt"]
CallKind = Literal["tool", "resource", "prompt"]
EntryState = Literal["accepted", "quarantined", "degraded", "superseded", "pin_missing"]
Where = Literal["cell", "remote", "in_process", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One definition of the catalog, as it was accepted.

    `definition` is the wire-shaped object (a tool's `name`, `inputSchema`, …; a resource's `uri`, …) with every field
    that its server sent, known or not; its `name` or `uri` is the server's own. What a client sees is made from it by
    the profile: only names and URIs are rewritten.

    `superseded` is an older accepted version, there for who is pinned to it or names it; `pin_missing` stands for one
    that a project is pinned to and that is not there: no call of it runs.
    """

    kind: EntryKind
    server: str
    name: str
    definition: JsonObject
    version: str = "0.0.0"
    binding: Binding = "inproc_safe"
    labels: Labels = field(default_factory=Labels)
    limits: Limits = field(default_factory=Limits)
    side_effects: SideEffects = "non_idempotent"
    posture: Posture = "none"
    profile: str = ""
    state: EntryState = "accepted"
    manifest: ToolManifest | None = None
    code_dir: str = ""  # directory of the entry point's module where it is not a bundled one
    code_digest: str = ""  # sha256 of that module: a changed file is a changed definition
    digest: str = ""

    def __post_init__(self) -> None:
        if not self.digest:
            object.__setattr__(self, "digest", self._digest())

    def _digest(self) -> str:
        """sha256 of everything that decides what the entry is and does: what an approval and a grant are bound to."""
        return digest(
            {
                "kind": self.kind,
                "server": self.server,
                "name": self.name,
                "definition": self.definition,
                "version": self.version,
                "binding": self.binding,
                "labels": self.labels.model_dump(),
                "limits": self.limits.model_dump(),
                "side_effects": self.side_effects,
                "posture": self.posture,
                "profile": self.profile,
                "binding_spec": _spec_facts(self.manifest) if self.manifest else {},
                "hosts": self.manifest.hosts if self.manifest else (),
                "secrets": self.manifest.secrets if self.manifest else (),
                "code": self.code_digest,
            }
        )

    @property
    def key(self) -> tuple[str, str, str]:
        """(kind, server, name): unique in the catalog."""
        return self.kind, self.server, self.name

    @property
    def repeatable(self) -> bool:
        """Whether doing it twice is as good as once: by the operator's word, or by what reading is."""
        return self.kind != "tool" or self.labels.read_only or self.side_effects in ("none", "idempotent")

    def hosts_for(self, arguments: JsonObject) -> tuple[str, ...]:
        """Return the hosts to which a call with *arguments* is given a way out; see `ToolManifest.hosts_for`."""
        return self.manifest.hosts_for(arguments) if self.manifest is not None else ()


def _spec_facts(manifest: ToolManifest) -> JsonObject:
    """What a binding says. A field that came later counts only where it is set: an update changes no definition."""
    return {name: value for name, value in manifest.binding.model_dump().items() if value or name not in _LATER_FIELDS}


_LATER_FIELDS = frozenset({"egress_argument", "shares"})
