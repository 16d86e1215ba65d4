"""Where clients keep their servers, on each system, from values alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from omni_mcp.clients.places import CLIENTS, ClientName, Scope, Surroundings, place_to_write, places_of, surroundings_of
from omni_mcp.contracts.errors import BadRequest

HOME = Path("/home/ann")
USER_FILES = {
    "linux": {
        "claude-desktop": "/home/ann/.config/Claude/claude_desktop_config.json",
        "claude-code": "/home/ann/.claude.json",
        "cursor": "/home/ann/.cursor/mcp.json",
        "vscode": "/home/ann/.config/Code/User/mcp.json",
        "codex": "/home/ann/.codex/config.toml",
    },
    "darwin": {
        "claude-desktop": "/home/ann/Library/Application Support/Claude/claude_desktop_config.json",
        "claude-code": "/home/ann/.claude.json",
        "cursor": "/home/ann/.cursor/mcp.json",
        "vscode": "/home/ann/Library/Application Support/Code/User/mcp.json",
        "codex": "/home/ann/.codex/config.toml",
    },
    "win32": {
        "claude-desktop": "/home/ann/AppData/Roaming/Claude/claude_desktop_config.json",
        "claude-code": "/home/ann/.claude.json",
        "cursor": "/home/ann/.cursor/mcp.json",
        "vscode": "/home/ann/AppData/Roaming/Code/User/mcp.json",
        "codex": "/home/ann/.codex/config.toml",
    },
}


@pytest.mark.parametrize("platform", USER_FILES)
@pytest.mark.parametrize("client", CLIENTS)
def test_each_client_has_its_usual_file(platform: str, client: ClientName) -> None:
    place = place_to_write(client, "user", Surroundings(platform=platform, home=HOME))
    assert str(place.file) == USER_FILES[platform][client]
    assert places_of(client, Surroundings(platform=platform, home=HOME))[0] == place


def test_variables_move_the_files_that_their_clients_let_them_move() -> None:
    environment = {
        "XDG_CONFIG_HOME": "/x/config", "CLAUDE_CONFIG_DIR": "/x/claude", "CODEX_HOME": "/x/codex", "APPDATA": "/x/app",
    }  # fmt: skip
    linux = Surroundings(platform="linux", home=HOME, environment=environment)
    windows = Surroundings(platform="win32", home=HOME, environment=environment)
    assert str(place_to_write("claude-desktop", "user", linux).file).startswith("/x/config/Claude/")
    assert str(place_to_write("claude-desktop", "user", windows).file).startswith("/x/app/Claude/")
    assert str(place_to_write("claude-code", "user", linux).file) == "/x/claude/.claude.json"
    assert str(place_to_write("codex", "user", linux).file) == "/x/codex/config.toml"


@pytest.mark.parametrize(
    ("client", "scope", "file", "path"),
    [
        ("claude-code", "project", ".mcp.json", ("mcpServers",)),
        ("cursor", "project", ".cursor/mcp.json", ("mcpServers",)),
        ("vscode", "project", ".vscode/mcp.json", ("servers",)),
        ("codex", "project", ".codex/config.toml", ("mcp_servers",)),
    ],
)
def test_a_project_has_a_file_of_its_own(client: ClientName, scope: Scope, file: str, path: tuple[str, ...]) -> None:
    around = Surroundings(platform="linux", home=HOME, project=Path("/home/ann/app"))
    place = place_to_write(client, scope, around)
    assert (place.file, place.path) == (Path("/home/ann/app") / file, path)


def test_the_local_scope_of_claude_code_stands_in_the_users_file_below_the_project() -> None:
    around = Surroundings(platform="linux", home=HOME, project=Path("/home/ann/app"))
    place = place_to_write("claude-code", "local", around)
    assert place.file == HOME / ".claude.json"
    assert place.path == ("projects", "/home/ann/app", "mcpServers")


def test_project_files_are_only_read_if_a_project_is_named() -> None:
    for client in CLIENTS:
        assert all(place.scope == "user" for place in places_of(client, Surroundings(platform="linux", home=HOME)))


@pytest.mark.parametrize(
    ("client", "scope"), [("claude-desktop", "project"), ("cursor", "local"), ("cursor", "project")]
)
def test_a_scope_that_a_client_does_not_have_or_a_missing_project_is_refused(client: ClientName, scope: Scope) -> None:
    with pytest.raises(BadRequest):
        place_to_write(client, scope, Surroundings(platform="linux", home=HOME))


def test_other_profiles_and_editions_of_vs_code_are_read(tmp_path: Path) -> None:
    profile = tmp_path / ".config/Code/User/profiles/5f1a/mcp.json"
    profile.parent.mkdir(parents=True)
    profile.write_text("{}")
    files = [place.file for place in places_of("vscode", Surroundings(platform="linux", home=tmp_path))]
    assert profile in files
    assert tmp_path / ".config/Code - Insiders/User/mcp.json" in files


def test_without_a_home_nothing_is_guessed() -> None:
    with pytest.raises(BadRequest):
        surroundings_of({}, platform="linux")
    assert surroundings_of({"USERPROFILE": "/users/ann"}, platform="win32").home == Path("/users/ann")
