"""omni.toml becomes one frozen value: read once, unknown keys refused with their line."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError

from omni_mcp.contracts.errors import ConfigError, Problem
from omni_mcp.contracts.hosts import check_exact_host
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.manifest import Binding, Closed, ServerName, ShareName
from omni_mcp.contracts.memory import MemorySettings
from omni_mcp.contracts.openapi import OpenApiSettings
from omni_mcp.server_definition import RESERVED_NAMES, ServerDefinition


def _exact_host(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9.\-]+(:\d+)?|\[[0-9A-Fa-f:.]+\](:\d+)?", value):
        raise ValueError("must be one exact Host value such as mcp.example.org or mcp.example.org:8443; no wildcard")
    return value


def _exact_origin(value: str) -> str:
    scheme, _, host = value.partition("://")
    if scheme not in ("http", "https"):
        raise ValueError("must be one exact origin such as https://app.example.org; no wildcard, no path")
    return f"{scheme}://{_exact_host(host)}"


def _network(value: str) -> str:
    if "/" not in value or ip_network(value).prefixlen == 0:
        raise ValueError("must be an address range such as 10.1.0.0/16, and not all addresses")
    return value


def _header_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}", value) or value.lower() in _TRANSPORT_HEADERS:
        raise ValueError("must be the name of a header that carries a credential, such as Authorization")
    return value


_TRANSPORT_HEADERS = frozenset(
    {"host", "connection", "content-length", "transfer-encoding", "te", "trailer", "upgrade", "expect", "keep-alive"}
)


def _shared_place(value: str) -> str:
    place = Path(value)
    if not place.is_absolute() or ".." in place.parts or len(place.parts) < 2:
        raise ValueError("must be an absolute path of a directory below /")
    if place.parts[1] in ("proc", "sys", "dev", "run"):
        raise ValueError(f"nothing of /{place.parts[1]} can be shared")
    return value


Host = Annotated[str, AfterValidator(_exact_host)]
Origin = Annotated[str, AfterValidator(_exact_origin)]


class ServerSettings(Closed):
    """How clients reach the gateway over HTTP."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(6464, ge=0, le=65535, description="Port to listen on; 0 for any free one.")
    behind_proxy: bool = Field(False, description="A proxy in front ends TLS; without it only loopback is bound.")
    hosts: tuple[Host, ...] = Field(
        (), description="Further exact Host values that are accepted, such as mcp.example.org."
    )
    origins: tuple[Origin, ...] = Field((), description="Exact Origin values that are accepted; browsers only.")
    request_limit_bytes: int = Field(
        4 * 1024 * 1024, ge=1024, le=64 * 1024 * 1024, description="Largest message of a client."
    )
    sessions: int = Field(2000, ge=1, description="Open handshake sessions in all.")
    session_idle_s: float = Field(1800.0, gt=0, description="A session or run that nobody uses ends after this.")
    idle_stop_s: float = Field(
        600.0, gt=0, description="A gateway that a client started ends this long after its last client."
    )


class LimitSettings(Closed):
    """Caps on calls and runs."""

    calls_per_minute: int = Field(
        600, ge=1, description="Calls of one principal; its other requests have a rate of their own of this size."
    )
    pending_per_principal: int = Field(64, ge=1, description="Calls of one principal under way, waiting ones included.")
    pending_in_all: int = Field(1024, ge=1, description="Calls under way in all.")
    events_per_run: int = Field(100_000, ge=10, description="Events of one run; then its calls are refused.")
    artifact_bytes_per_principal: int = Field(
        1 << 30, ge=1 << 20, description="Bytes of artifacts that one principal's calls may leave."
    )
    round_ttl_s: float = Field(600.0, gt=0, description="How long a multi-round call waits for its caller.")


class ApprovalSettings(Closed):
    """How long people and callers wait for each other."""

    wait_s: float = Field(120.0, ge=0, description="How long a caller is kept while a person decides.")
    open_per_principal: int = Field(32, ge=1, description="Open questions of one principal.")
    open_in_all: int = Field(512, ge=1, description="Open questions in all.")


class SandboxSettings(Closed):
    """Bounds of the sandbox as a whole; a tool's own limits are in its manifest."""

    max_jobs: int | None = Field(None, ge=1, description="Cells at once; unset: twice the cores.")
    cgroups: bool = Field(True, description="Use cgroups where they can be had.")


class CredentialSettings(Closed):
    """A header that the gateway adds to what some tools send to one host; no job sees its value."""

    host: Annotated[str, AfterValidator(check_exact_host)]
    header: Annotated[str, AfterValidator(_header_name)] = "Authorization"
    secret: str
    prefix: Annotated[str, Field(pattern=r"^[ -~]{0,64}$")] = ""
    tools: tuple[Annotated[str, Field(pattern=r"^[a-z0-9]+([_-][a-z0-9]+)*__\S{1,512}$")], ...]


class EgressSettings(Closed):
    """What jobs with a way out get beside it."""

    networks: tuple[Annotated[str, AfterValidator(_network)], ...] = Field(
        (), description="Special address ranges, such as 10.1.0.0/16, that an allowed name may be in."
    )
    credentials: tuple[CredentialSettings, ...] = Field(
        (),
        description="Tables of `host`, `header`, `secret` (a name of `[secrets]`), `prefix` and `tools`: the header is "
        "added to what those tools send to that host over TLS.",
    )


class PluginSettings(Closed):
    """Which installed packages may add something. Without a word here none does."""

    tools: tuple[ServerName, ...] = Field(
        (), description="Entry points of the group `omni_mcp.tools`: their tools run in cells, and wait to be accepted."
    )
    executors: dict[str, JsonObject] = Field(
        {},
        description="Name of an entry point of the group `omni_mcp.executors` = its settings. It runs in the gateway's "
        "own process: enabling it is trusting its author as much as the gateway.",
    )
    select: dict[Binding, str] = Field(
        {}, description="Binding = name of the executor that runs it, `bundled` for the gateway's own."
    )


class RetentionSettings(Closed):
    """How long the texts of runs are kept."""

    days: int = Field(30, ge=1, description="`omni-mcp retention run` erases runs older than this.")


class LogSettings(Closed):
    """What the process says on stderr, and what the run log keeps beside its events."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="How much is said on stderr.")
    # On: without bodies there is no replay, and when somebody wants one it is too late (docs/decisions/0014).
    keep_bodies: bool = Field(
        True, description="Seal what was really asked and answered beside the events, so that runs can be replayed."
    )
    keep_bodies_of: dict[str, bool] = Field({}, description="Project = true or false, where it differs.")

    def keeps_bodies(self, project: str) -> bool:
        """Whether bodies of *project* are kept."""
        return self.keep_bodies_of.get(project, self.keep_bodies)


SurfaceMode = Literal["auto", "full", "search"]
TokenBudget = Annotated[int, Field(ge=0, le=10_000_000)]


class SurfaceSettings(Closed):
    """Whether clients are listed all tools or a search for them; a profile can say otherwise."""

    mode: SurfaceMode = Field(
        "auto",
        description="`full`: the list of all tools; `search`: `search_tools` and `call_tool` in its place; `auto`: the "
        "list while it costs a model no more than `token_budget`.",
    )
    # Hosts that compact long lists do better with them up to some 100 tools (docs/surfaces.md, "Which is better").
    token_budget: TokenBudget = Field(40_000, description="What the list may cost with `auto`, in tokens.")
    clients: dict[str, SurfaceMode] = Field(
        {"claude-code": "full"},
        description="Name that a client gives itself = mode. Those that search long lists themselves need the list.",
    )


class ProfileSettings(Closed):
    """One endpoint `/mcp/NAME`: which servers it shows, under which names, and how; unset: as `[surface]` says."""

    servers: tuple[ServerName, ...] = Field(min_length=1)
    names: Literal["prefixed", "identity"] = "prefixed"
    surface: SurfaceMode | None = None
    token_budget: TokenBudget | None = None


def _free_name(value: str) -> str:
    if value in RESERVED_NAMES:
        raise ValueError(f"{value} is a server of the gateway itself; choose another name")
    return value


FreeName = Annotated[ServerName, AfterValidator(_free_name)]


class Settings(Closed):
    """All settings. Each has a default that needs no thought."""

    server: ServerSettings = ServerSettings()
    limits: LimitSettings = LimitSettings()
    approvals: ApprovalSettings = ApprovalSettings()
    sandbox: SandboxSettings = SandboxSettings()
    egress: EgressSettings = EgressSettings()
    retention: RetentionSettings = RetentionSettings()
    plugins: PluginSettings = PluginSettings()
    log: LogSettings = LogSettings()
    surface: SurfaceSettings = SurfaceSettings()
    memory: MemorySettings = MemorySettings()
    profiles: dict[str, ProfileSettings] = Field(
        {},
        description="Name = { servers = [...], names = `prefixed` or `identity` }: what `/mcp/NAME` shows. "
        "`surface` and `token_budget` as in `[surface]`, for this profile alone.",
    )
    servers: dict[FreeName, ServerDefinition] = Field(
        {}, description="Name = a server behind the gateway: a `command` in the sandbox, or a `url`."
    )
    openapi: dict[FreeName, OpenApiSettings] = Field(
        {}, description="Name = an OpenAPI document whose operations become the tools of a server of that name."
    )
    secrets: dict[str, str] = Field({}, description="Name = `env:VARIABLE` or `file:/path`: references, never values.")
    shares: dict[ShareName, Annotated[str, AfterValidator(_shared_place)]] = Field(
        {}, description="Name = `/path` of a directory that manifests may name in `binding.shares`, read-only."
    )


def surface_of(settings: Settings, profile: str) -> SurfaceSettings:
    """Return how *profile* shows its tools. One that names a mode means it for every client."""
    own, general = settings.profiles.get(profile), settings.surface
    if own is None:
        return general
    return SurfaceSettings(
        mode=own.surface or general.mode,
        token_budget=general.token_budget if own.token_budget is None else own.token_budget,
        clients={} if own.surface else general.clients,
    )


def load_settings(file: Path) -> Settings:
    """Read *file*; a missing one means all defaults.

    Raises:
        ConfigError: it is not TOML, or a key is unknown or wrong; each problem has its line. Or it defines servers
            or plugins, which is code, and somebody else could have written it.
    """
    try:
        with file.open(encoding="utf-8") as stream:
            text = stream.read()
            fault = _others_may_write(os.fstat(stream.fileno()))
    except FileNotFoundError:
        return Settings()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([Problem(file=str(file), line=0, path="", message=f"cannot be read: {error}")]) from error
    try:
        settings = Settings.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"line (\d+)", str(error))
        line = int(place.group(1)) if place else 0
        raise ConfigError([Problem(file=str(file), line=line, path="", message=str(error))]) from error
    except ValidationError as error:
        raise ConfigError([_problem(file, text, item) for item in error.errors()]) from error
    if fault and (settings.servers or settings.plugins != PluginSettings()):
        raise ConfigError([Problem(file=str(file), line=0, path="", message=f"it says what runs, and {fault}")])
    if problems := list(_loose_ends(file, text, settings)):
        raise ConfigError(problems)
    return settings


def _others_may_write(facts: os.stat_result) -> str:
    if facts.st_uid not in (os.geteuid(), 0):
        return f"belongs to user {facts.st_uid}; it must be yours (chown)"
    return "others can write to it; mend it with: chmod go-w" if facts.st_mode & 0o022 else ""


def _loose_ends(file: Path, text: str, settings: Settings) -> Iterator[Problem]:
    """Find what names something that the file does not define."""
    for number, credential in enumerate(settings.egress.credentials):
        if credential.secret not in settings.secrets:
            location = ["egress", "credentials", str(number), "secret"]
            yield Problem(
                file=str(file), line=_line_of(text, location), path="$." + ".".join(location),
                message=f"[secrets] defines no {credential.secret!r}",
            )  # fmt: skip
    if settings.memory.secret is not None and settings.memory.secret not in settings.secrets:
        yield Problem(
            file=str(file), line=_line_of(text, ["memory", "secret"]), path="$.memory.secret",
            message=f"[secrets] defines no {settings.memory.secret!r}",
        )  # fmt: skip
    for name, document in settings.openapi.items():
        location = ["openapi", name]
        for wanted in document.credentials:
            if wanted.secret not in settings.secrets:
                yield Problem(
                    file=str(file), line=_line_of(text, [*location, "credentials"]),
                    path="$." + ".".join([*location, "credentials"]),
                    message=f"[secrets] defines no {wanted.secret!r}",
                )  # fmt: skip
        if name in settings.servers:
            yield Problem(
                file=str(file), line=_line_of(text, location), path="$." + ".".join(location),
                message=f"there is a server {name!r} already",
            )  # fmt: skip


def _problem(file: Path, text: str, item: object) -> Problem:
    assert isinstance(item, dict)
    location = [str(part) for part in item["loc"]]
    message = "unknown key" if item["type"] == "extra_forbidden" else str(item["msg"])
    return Problem(file=str(file), line=_line_of(text, location), path="$." + ".".join(location), message=message)


def _line_of(text: str, location: list[str]) -> int:
    """Find the line that sets the key: tomllib keeps no positions, so look for the table, then for the key below it."""
    lines = text.splitlines()
    start = 0
    tables = 0  # of a list of tables, those that have begun
    for number, line in enumerate(lines):
        header = re.match(r"\s*(\[+)\s*([^\]]+?)\s*\]+", line)
        if header and (name := header.group(2).split(".")) == location[: len(name)]:
            tables += header.group(1) == "[["
            if header.group(1) == "[" or _index(location[len(name) :]) == tables - 1:
                start = number
    for number in range(start, len(lines)):
        if any(re.match(rf"\s*\"?{re.escape(key)}\"?\s*=", lines[number]) for key in location):
            return number + 1
    return start + 1 if location else 0


def _index(rest: Sequence[str]) -> int | None:
    """Return the place in a list that a location goes on with."""
    return int(rest[0]) if rest and rest[0].isdigit() else None


def changed_keys(old: Settings, new: Settings) -> list[str]:
    """Return the keys, such as `limits.calls_per_minute`, whose values differ."""
    found = []
    for name in Settings.model_fields:
        before, after = getattr(old, name), getattr(new, name)
        if isinstance(before, Closed):
            found += [
                f"{name}.{key}" for key in type(before).model_fields if getattr(before, key) != getattr(after, key)
            ]
        elif before != after:
            found.append(name)
    return found


def read_secrets(settings: Settings, environment: dict[str, str]) -> dict[str, str]:
    """Resolve the secret references of *settings* to values, for masking and for jobs.

    Raises:
        ConfigError: a reference has an unknown form, or what it names is not there.
    """
    found, problems = find_secrets(settings, environment)
    if problems:
        raise ConfigError(problems)
    return found


def find_secrets(settings: Settings, environment: dict[str, str]) -> tuple[dict[str, str], list[Problem]]:
    """As `read_secrets`: what can be had, and what is wrong with the others."""
    found: dict[str, str] = {}
    problems: list[Problem] = []
    for name, reference in settings.secrets.items():
        form, _, rest = reference.partition(":")
        try:
            if form == "env":
                found[name] = environment[rest]
            elif form == "file":
                found[name] = Path(rest).expanduser().read_text(encoding="utf-8").strip()
            else:
                raise ValueError("must be env:VARIABLE or file:/path; values do not belong in omni.toml")
        except (KeyError, OSError, ValueError) as error:
            text = f"{rest} is not set in the environment" if isinstance(error, KeyError) else str(error)
            problems.append(Problem(file="omni.toml", line=0, path=f"$.secrets.{name}", message=text))
    return found, problems
