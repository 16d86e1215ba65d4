"""ToolManifest: what a tool's author declares, and everything that the gateway needs to run it."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from omni_mcp.contracts.hosts import check_host, host_of_url
from omni_mcp.contracts.json import JsonObject

MANIFEST_VERSION = 1

Binding = Literal["inproc_safe", "sandbox_job", "mcp_remote", "openapi_proxy"]
SideEffects = Literal["none", "idempotent", "non_idempotent"]
Workspace = Literal["none", "fresh", "project", "state"]
Posture = Literal["full", "no-cgroup", "landlock", "none"]

ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9]+([_-][A-Za-z0-9]+)*$", max_length=48)]
ServerName = Annotated[str, Field(pattern=r"^[a-z0-9]+([_-][a-z0-9]+)*$", max_length=24)]
ShareName = Annotated[str, Field(pattern=r"^[a-z0-9]+([_-][a-z0-9]+)*$", max_length=48)]
HostName = Annotated[str, AfterValidator(check_host)]


_TAKEN_VARIABLES = re.compile(r"PATH|HOME|IFS|ENV|BASH.*|SHELL|TMPDIR|LANG|LD_.*|LC_.*|PYTHON.*|NODE_.*|.*_PROXY")


def _check_secret(name: str) -> str:
    """A secret's name becomes a variable of the job, so it must be one, and none that steers its programs."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,63}", name):
        raise ValueError("a secret for a job is named by letters, digits and _, a letter first")
    if _TAKEN_VARIABLES.fullmatch(name.upper()):
        raise ValueError(f"{name.upper()} is a variable with a meaning of its own; name the secret otherwise")
    return name


class Closed(BaseModel):
    """A frozen object that refuses fields it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, defer_build=True)


class Labels(Closed):
    """What an operator vouches for. Unset means the worst, so every default is the dangerous one.

    Never taken from an upstream's own hints (MCP 2026-07-28, server/tools, "annotations are untrusted").
    """

    read_only: bool = False
    destructive: bool = True
    egress: bool = True
    reads_private: bool = True
    reads_untrusted: bool = True


class Limits(Closed):
    """Caps on one call; the sandbox reports which of them ended a job."""

    timeout_s: float = Field(60.0, gt=0, le=600)
    output_limit_bytes: int = Field(1024 * 1024, ge=1024, le=128 * 1024 * 1024)
    concurrency: int = Field(8, ge=1, le=256)
    memory_mib: int = Field(256, ge=16, le=16384)
    cpu_s: float = Field(30.0, gt=0, le=600)
    processes: int = Field(64, ge=1, le=4096)
    open_files: int = Field(256, ge=16, le=65536)
    file_size_mib: int = Field(64, ge=1, le=16384)
    disk_mib: int = Field(128, ge=1, le=16384)
    inodes: int = Field(16384, ge=16, le=1_000_000)


class BindingSpec(Closed):
    """Where the tool's code is.

    `entry_point` is `module:function` for `inproc_safe` (a closed list of our own) and for `sandbox_job`
    (a module of `sandbox/tools/`, or of the manifest's own directory).
    """

    kind: Binding
    entry_point: str = Field(min_length=1, max_length=256)
    profile: str = Field("job", description="Name of a sandbox profile; `sandbox_job` only.")
    posture: Posture = Field("no-cgroup", description="The least isolation under which this tool may run.")
    workspace: Workspace = Field(
        "none",
        description="`fresh`: empty, `out/` is exported; `project`: the project's files, which survive calls; "
        "`state`: the project's own directory for tools that keep state, out of reach of `project`.",
    )
    packages: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")], ...] = Field(
        (),
        max_length=8,
        description="Installed distributions whose import packages the job may read, at `/packages` and on its path.",
    )
    artifact_argument: str | None = Field(
        None, description="Name of the argument whose artifact is copied into the cell before the job starts."
    )
    egress_argument: str | None = Field(
        None, description="Name of the argument whose http or https URL names a further host that the call reaches."
    )
    shares: tuple[ShareName, ...] = Field(
        (),
        max_length=8,
        description="Directories that the operator shares under these names; the job reads them at `/shares/NAME`.",
    )


class Reversal(Closed):
    """How an effect can be undone."""

    tool: str


class Estimate(Closed):
    """What the author expects one call to take; planners and people read it, nothing enforces it."""

    cost_usd: float | None = Field(None, ge=0)
    latency_ms: float | None = Field(None, ge=0)


class Golden(Closed):
    """One call that must work: arguments in, a part of the structured result out.

    `before` lists calls of other tools that prepare the workspace.
    """

    arguments: JsonObject
    expect: JsonObject
    before: tuple[GoldenStep, ...] = ()


class GoldenStep(Closed):
    """One preparing call of a golden."""

    tool: str
    arguments: JsonObject


class ToolManifest(Closed):
    """One tool: its interface, its labels, its binding, its limits."""

    manifest: Literal[1] = 1
    id: ToolName
    version: str = Field(pattern=r"^\d+\.\d+\.\d+(?:-[0-9A-Za-z.-]+)?$")
    title: str = Field(min_length=1, max_length=128)
    description: str = Field(min_length=1, max_length=4096)
    tags: tuple[str, ...] = ()
    deprecated: str | None = Field(None, description="Why, and what to use instead.")
    input_schema: JsonObject
    output_schema: JsonObject | None = None
    binding: BindingSpec
    auth_type: Literal["none", "bearer", "api_key", "oauth2"] = "none"
    secrets: tuple[str, ...] = Field(
        (),
        max_length=16,
        description="Names of secrets of omni.toml that the job finds in its environment, in upper case; never values.",
    )
    hosts: tuple[str, ...] = Field(
        (),
        max_length=64,
        description="`name:port` or `*.suffix:port` entries that the job may reach when policy agrees.",
    )
    scopes: tuple[str, ...] = ()
    side_effects: SideEffects = "non_idempotent"
    reversible: Reversal | None = None
    estimate: Estimate = Estimate()
    tier: Literal["hot", "cold"] = "cold"
    labels: Labels = Labels()
    limits: Limits = Limits()
    licence: str = Field("Apache-2.0", min_length=1, max_length=64)
    golden: Golden | None = None

    @field_validator("secrets")
    @classmethod
    def _secrets_are_variables(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(_check_secret, names))

    @field_validator("hosts")
    @classmethod
    def _hosts_are_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(check_host, hosts))

    @model_validator(mode="after")
    def _labels_agree(self) -> ToolManifest:
        if self.labels.read_only and (self.labels.destructive or self.side_effects == "non_idempotent"):
            raise ValueError("labels.read_only cannot go with labels.destructive or side_effects non_idempotent")
        if (self.hosts or self.binding.egress_argument is not None) and not self.labels.egress:
            raise ValueError("a tool with hosts or an egress_argument must carry labels.egress")
        return self

    @model_validator(mode="after")
    def _egress_argument_is_a_text(self) -> ToolManifest:
        name = self.binding.egress_argument
        properties = self.input_schema.get("properties")
        schema = properties.get(name) if isinstance(properties, dict) else None
        if name is not None and not (isinstance(schema, dict) and schema.get("type") == "string"):
            raise ValueError(f"binding.egress_argument: the input schema has no property {name!r} of type string")
        return self

    def hosts_for(self, arguments: object) -> tuple[str, ...]:
        """Return the hosts to which a call with *arguments* is given a way out, each as `name:port` or a pattern.

        An argument that should name a host and does not stands in it as `NO_HOST`.
        """
        name = self.binding.egress_argument
        if name is None or not isinstance(arguments, dict) or name not in arguments:
            return self.hosts
        return tuple(dict.fromkeys((*self.hosts, host_of_url(arguments[name]))))
