"""Lock: the definitions of upstream servers that the operator accepted, as omni.lock says it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import Field, field_serializer, model_validator

from omni_mcp.contracts.json import JsonObject, digest
from omni_mcp.contracts.manifest import Closed, Labels, ServerName
from omni_mcp.contracts.tool import EntryKind

LOCK_VERSION: Literal[1] = 1

RiskClass = Literal["write", "egress", "secret_path", "nondeterminism", "instruction", "hidden_text", "launch"]
QuarantineReason = Literal["new", "changed", "launch_changed"]

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
VersionName = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}$")]
ItemName = Annotated[str, Field(pattern=r"^(tool|prompt|resource|resource_template)/[\s\S]+$", max_length=4096)]
PartName = Annotated[str, Field(pattern=r"^[a-z_]{1,32}$")]
ProjectName = Annotated[str, Field(min_length=1, max_length=256)]
PinKey = Annotated[
    str, Field(pattern=r"^[a-z0-9]+([_-][a-z0-9]+)*/(tool|prompt|resource|resource_template)/[\s\S]+$", max_length=4096)
]
PauseKey = PinKey | ServerName
PinVersion = Annotated[str, Field(pattern=r"^[0-9A-Za-z][0-9A-Za-z.-]{0,63}$")]

NAME_FIELDS: Mapping[EntryKind, str] = {
    "tool": "name", "prompt": "name", "resource": "uri", "resource_template": "uriTemplate",
}  # fmt: skip
# These say how a server is used and not what is started or reached.
_NOT_LAUNCH = frozenset({"description", "enabled", "timeout_s"})


class RiskFlag(Closed):
    """Why an acceptance was a risk. Open until a person closed it. Times are ISO 8601, UTC."""

    why: tuple[str, ...] = Field((), max_length=16)
    closed_by: str | None = None
    closed_at: str | None = None
    note: str | None = None


class AcceptedVersion(Closed):
    """One definition that a person accepted, and what they vouched for.

    `launch` is the digest of what launched the server when it offered this.
    """

    accepted_at: str
    accepted_by: str
    definition: JsonObject
    digest: Digest
    launch: Digest
    labels: Labels = Labels()
    risks: dict[RiskClass, RiskFlag] = {}

    @model_validator(mode="after")
    def _digest_fits(self) -> AcceptedVersion:
        try:
            found = digest(self.definition)
        except TypeError as error:
            raise ValueError(f"the definition has no canonical form: {error}") from None
        if found != self.digest:
            raise ValueError("the digest is not that of the definition; accept the definition again")
        return self

    @model_validator(mode="after")
    def _labels_agree(self) -> AcceptedVersion:
        if self.labels.read_only and self.labels.destructive:
            raise ValueError("labels.read_only cannot go with labels.destructive")
        return self

    @field_serializer("labels")
    def _only_what_was_said(self, labels: Labels) -> JsonObject:
        return labels.model_dump(exclude_defaults=True)

    @field_serializer("risks")
    def _only_what_happened(self, risks: dict[RiskClass, RiskFlag]) -> JsonObject:
        return {risk: flag.model_dump(exclude_none=True) for risk, flag in risks.items()}


class LockedItem(Closed):
    """One tool, prompt, resource or template: its accepted versions side by side.

    A version's number is never given twice, so a pin never comes to mean another definition.
    """

    last_version: int = Field(ge=1)
    pins: dict[str, str] = Field({}, max_length=0, exclude=True)  # always empty; earlier files have it
    versions: dict[VersionName, AcceptedVersion]

    @model_validator(mode="after")
    def _numbers_agree(self) -> LockedItem:
        if any(int(version) > self.last_version for version in self.versions):
            raise ValueError("last_version is smaller than a version")
        return self

    @property
    def newest(self) -> str | None:
        """The version that was accepted last; None if all are gone."""
        return max(self.versions, key=int, default=None)

    def version_of(self, definition_digest: str) -> str | None:
        """Return the newest version with this definition."""
        fit = [version for version, known in self.versions.items() if known.digest == definition_digest]
        return max(fit, key=int, default=None)


class LockedServer(Closed):
    """One server: what launched it when something of it was accepted last, part by part, and what was accepted."""

    launch: dict[PartName, Digest] = {}
    items: dict[ItemName, LockedItem] = {}


class Pin(Closed):
    """Keeps a project at one version of one tool, prompt, resource or template. `at` is ISO 8601, UTC."""

    version: PinVersion
    by: str
    at: str


class Pause(Closed):
    """An operator's word that something takes no new calls for now. `at` is ISO 8601, UTC."""

    by: str
    at: str
    note: str | None = None


class Lock(Closed):
    """All of omni.lock. `pins` are by project and `pin_key`; `paused` by the name of a server, or by `pin_key`."""

    omni_lock: Literal[1] = 1
    paused: dict[PauseKey, Pause] = {}
    pins: dict[ProjectName, dict[PinKey, Pin]] = {}
    servers: dict[ServerName, LockedServer] = {}

    def find(self, server: str, item: str) -> LockedItem | None:
        """Return what is locked under this name."""
        found = self.servers.get(server)
        return found.items.get(item) if found is not None else None

    def in_use(self, server: str, item: str) -> frozenset[str]:
        """Return the newest version and those that a project is pinned to, as far as they are accepted."""
        known = self.find(server, item)
        if known is None:
            return frozenset()
        pinned = {found[key].version for found in self.pins.values() if (key := pin_key(server, item)) in found}
        wanted = pinned | ({known.newest} if known.newest is not None else set())
        return frozenset(wanted & known.versions.keys())

    def find_pause(self, server: str, item: str) -> Pause | None:
        """Return why an item takes no calls now, if it or its server is paused."""
        return self.paused.get(server) or self.paused.get(pin_key(server, item))

    def versions(self) -> Iterator[tuple[str, str, str, AcceptedVersion]]:
        """Yield (server, item, version, what was accepted), sorted."""
        for server, locked in sorted(self.servers.items()):
            for item, known in sorted(locked.items.items()):
                for version in sorted(known.versions, key=int):
                    yield server, item, version, known.versions[version]


def item_name(kind: EntryKind, name: str) -> str:
    """Return the name under which an entry stands in the lock, such as `tool/read_file`."""
    return f"{kind}/{name}"


def pin_key(server: str, item: str) -> str:
    """Return the name of an item beside those of other servers, such as `notes/tool/read_file`."""
    return f"{server}/{item}"


def launch_parts(fields: Mapping[str, object]) -> dict[str, str]:
    """Return a digest of each part of what launches a server; parts that say nothing are left out.

    Digests and not values: a command line can hold a secret, and omni.lock is there to be committed and shown.
    """
    return {
        name: digest(value)
        for name, value in sorted(fields.items())
        if name not in _NOT_LAUNCH and (value or isinstance(value, int | float))
    }


def launch_digest(parts: Mapping[str, str]) -> str:
    """Return the one digest of all parts."""
    return digest(dict(parts))
