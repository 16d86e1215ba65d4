"""Where each client keeps its servers, on each system.

Sources (read November 2026): modelcontextprotocol.io/docs/develop/connect-local-servers (Claude Desktop);
code.claude.com/docs/en/mcp and anthropics/claude-code#4193, #48448 (Claude Code, `CLAUDE_CONFIG_DIR`);
cursor.com/docs/mcp (Cursor); code.visualstudio.com/docs/copilot/reference/mcp-configuration (VS Code);
developers.openai.com/codex/mcp and openai/codex, codex-rs/config/src/mcp_types.rs (Codex, `CODEX_HOME`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from omni_mcp.contracts.errors import BadRequest

ClientName = Literal["claude-desktop", "claude-code", "cursor", "vscode", "codex"]
Scope = Literal["user", "project", "local"]
Syntax = Literal["none", "shell", "editor"]

CLIENTS: tuple[ClientName, ...] = get_args(ClientName)
VSCODE_EDITIONS = ("Code", "Code - Insiders")


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """How one client writes servers.

    `syntax` says which references are filled in: none; `shell`: `${VAR}` and `${VAR:-default}`; `editor`:
    `${env:VAR}`, `${input:id}`, `${workspaceFolder}` and the like. `names_type` clients want a `type` in every entry.
    """

    key: str
    syntax: Syntax
    comments: bool
    names_type: bool
    scopes: tuple[Scope, ...]


TRAITS: Mapping[ClientName, Traits] = {
    "claude-desktop": Traits(key="mcpServers", syntax="none", comments=False, names_type=False, scopes=("user",)),
    "claude-code": Traits(
        key="mcpServers", syntax="shell", comments=False, names_type=True, scopes=("user", "project", "local")
    ),
    "cursor": Traits(key="mcpServers", syntax="editor", comments=True, names_type=False, scopes=("user", "project")),
    "vscode": Traits(key="servers", syntax="editor", comments=True, names_type=True, scopes=("user", "project")),
    "codex": Traits(key="mcp_servers", syntax="none", comments=True, names_type=False, scopes=("user", "project")),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """The person's system, as values: nothing here is read from the process.

    `platform` is as in `sys.platform`; `project` is the directory whose own configuration is meant too, if one is.
    """

    platform: str
    home: Path
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    project: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One table of servers: the file, and the keys that lead to the table in it."""

    client: ClientName
    scope: Scope
    file: Path
    path: tuple[str, ...]
    project: Path | None = None

    @property
    def is_toml(self) -> bool:
        """Whether the file is TOML; all others are JSON."""
        return self.file.suffix == ".toml"

    @property
    def label(self) -> str:
        """Client and scope, for people."""
        where = f" of {self.project}" if self.scope != "user" and self.project else ""
        return self.client if self.scope == "user" else f"{self.client}, {self.scope} scope{where}"


def surroundings_of(environment: Mapping[str, str], *, platform: str, project: Path | None = None) -> Surroundings:
    """Return the surroundings that *environment* describes.

    Raises:
        BadRequest: it does not say where the home directory is.
    """
    home = environment.get("HOME") or environment.get("USERPROFILE")
    if not home or not Path(home).is_absolute():
        raise BadRequest("HOME is not set, so the files of clients cannot be found")
    return Surroundings(platform=platform, home=Path(home), environment=environment, project=project)


def places_of(client: ClientName, around: Surroundings) -> list[Place]:
    """Return where *client* may keep servers, user-wide first; project files only if a project is named.

    The tables of single projects inside `~/.claude.json` are found when that file is read.
    """
    files = [("user", file) for file in _user_files(client, around)]
    if around.project is not None and "project" in TRAITS[client].scopes:
        files.append(("project", around.project / _PROJECT_FILES[client]))
    key = (TRAITS[client].key,)
    return [
        Place(
            client=client, scope="project" if scope == "project" else "user", file=file, path=key,
            project=around.project if scope == "project" else None,
        )
        for scope, file in files
    ]  # fmt: skip


def place_to_write(client: ClientName, scope: Scope, around: Surroundings) -> Place:
    """Return the one place that *scope* means.

    Raises:
        BadRequest: the client has no such scope, or it needs a project.
    """
    traits = TRAITS[client]
    if scope not in traits.scopes:
        raise BadRequest(f"{client} has no scope {scope!r}; it has: {', '.join(traits.scopes)}")
    if scope == "user":
        return Place(client=client, scope=scope, file=_user_files(client, around)[0], path=(traits.key,))
    if around.project is None:
        raise BadRequest(f"the scope {scope!r} needs a project; add --project DIR")
    if scope == "local":
        return Place(
            client=client, scope=scope, file=_user_files(client, around)[0],
            path=("projects", str(around.project), traits.key), project=around.project,
        )  # fmt: skip
    file = around.project / _PROJECT_FILES[client]
    return Place(client=client, scope=scope, file=file, path=(traits.key,), project=around.project)


_PROJECT_FILES: Mapping[ClientName, str] = {
    "claude-code": ".mcp.json",
    "cursor": ".cursor/mcp.json",
    "vscode": ".vscode/mcp.json",
    "codex": ".codex/config.toml",
}


def _user_files(client: ClientName, around: Surroundings) -> list[Path]:
    """Return the user-wide files, the usual one first."""
    home, env = around.home, around.environment
    if client == "claude-desktop":
        return [_application_data(around) / "Claude" / "claude_desktop_config.json"]
    if client == "claude-code":
        return [Path(env.get("CLAUDE_CONFIG_DIR") or home) / ".claude.json"]
    if client == "cursor":
        return [home / ".cursor" / "mcp.json"]
    if client == "codex":
        return [Path(env.get("CODEX_HOME") or home / ".codex") / "config.toml"]
    files = []
    for edition in VSCODE_EDITIONS:
        user = _application_data(around) / edition / "User"
        files += [user / "mcp.json", *sorted(user.glob("profiles/*/mcp.json"))]
    return files


def _application_data(around: Surroundings) -> Path:
    """Return where desktop applications keep their settings."""
    if around.platform == "darwin":
        return around.home / "Library" / "Application Support"
    if around.platform == "win32":
        return Path(around.environment.get("APPDATA") or around.home / "AppData" / "Roaming")
    return Path(around.environment.get("XDG_CONFIG_HOME") or around.home / ".config")
