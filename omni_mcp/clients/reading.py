"""Reads a client's file. What cannot be understood is reported, entry by entry; nothing here fails as a whole."""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from omni_mcp.clients.dotenv import read_dotenv
from omni_mcp.clients.found import FoundServer, Input, NotTaken, Reading
from omni_mcp.clients.jsonc import JsonText, NotJson, path_of, read_jsonc, repeated_keys, writable
from omni_mcp.clients.places import TRAITS, Place, Surroundings
from omni_mcp.clients.template import Reference, Template, Unclear, parse_template
from omni_mcp.clients.toml_edit import NotToml, read_toml
from omni_mcp.contracts.errors import Problem
from omni_mcp.contracts.json import JsonObject, JsonValue

FILE_LIMIT_BYTES = 64 * 1024 * 1024  # `~/.claude.json` keeps histories, too
SERVERS_LIMIT = 1000
OWN_PORT = 6464

_KNOWN = frozenset(
    {"type", "command", "args", "env", "envFile", "cwd", "url", "headers", "disabled", "enabled", "timeout"}
)
_KNOWN_TO_CODEX = frozenset(
    {
        "command", "args", "env", "env_vars", "cwd", "url", "http_headers", "env_http_headers", "bearer_token_env_var",
        "enabled", "tool_timeout_sec", "startup_timeout_sec", "startup_timeout_ms", "name",
    }
)  # fmt: skip
_HARMLESS = frozenset({"gallery", "version", "description", "dev", "icon", "name", "$schema"})
_TRANSPORTS: Mapping[str, Literal["auto", "http", "sse"]] = {
    "http": "http", "streamable-http": "http", "streamableHttp": "http", "streamable_http": "http", "sse": "sse",
}  # fmt: skip


def read_place(place: Place, around: Surroundings) -> Reading:
    """Read the file of *place*, with the tables of single projects in it; a missing file has no servers."""
    try:
        text = read_client_file(place.file)
        if text is None:
            return Reading(place=place, exists=False)
        if place.is_toml:
            return _read_tables(place, around, read_toml(text), None)
        document = read_jsonc(text)
        return _read_tables(place, around, document.value, document)
    except (NotJson, NotToml) as error:
        return _unreadable(place, str(error), error.line)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return _unreadable(place, f"cannot be read: {reason}", 0)


def read_client_file(file: Path) -> str | None:
    """Return the text of *file*, None if there is none.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file, too large, or not UTF-8.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("is no regular file")
        data = stream.read(FILE_LIMIT_BYTES + 1)
    if len(data) > FILE_LIMIT_BYTES:
        raise ValueError(f"is larger than {FILE_LIMIT_BYTES // 1024 // 1024} MiB")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 (byte {error.start})") from None


def server_from_json(name: str, entry: JsonValue, place: Place, around: Surroundings) -> FoundServer:
    """Read one entry that a person gave by hand, spelled as for the client of *place*.

    Raises:
        Unclear: it cannot be understood.
    """
    return _server(name, entry, place, around, {})


def is_own_entry(entry: JsonValue) -> bool:
    """Whether an entry of a client's file leads to this gateway."""
    if not isinstance(entry, dict):
        return False
    command, args = entry.get("command"), entry.get("args")
    if isinstance(command, str):
        words = [word for word in args if isinstance(word, str)] if isinstance(args, list) else []
        own = re.split(r"[/\\]", command)[-1] in ("omni-mcp", "omni-mcp.exe") or "omni_mcp.cli.main" in words
        return own and "stdio" in words
    url = entry.get("url")
    if not isinstance(url, str):
        return False
    try:
        parts = urlsplit(url)
        loopback = parts.hostname in ("127.0.0.1", "localhost", "::1")
        return loopback and parts.port == OWN_PORT and parts.path.split("/")[1:2] in (["mcp"], ["sse"])
    except ValueError:
        return False


def _unreadable(place: Place, message: str, line: int) -> Reading:
    problem = Problem(file=str(place.file), line=line, path="", message=message)
    return Reading(place=place, exists=True, readable=False, problems=(problem,))


def _read_tables(place: Place, around: Surroundings, value: JsonValue, document: JsonText | None) -> Reading:
    problems = list(_faults_of_the_file(place, document))
    if not isinstance(value, dict):
        return _unreadable(place, "is no object", 0)
    inputs = _inputs(value.get("inputs")) if place.client == "vscode" else {}
    servers: list[FoundServer] = []
    own: dict[str, str] = {}
    not_taken: list[NotTaken] = []
    readable = True
    for table in [place, *_projects_in(place, value)]:
        entries = _table_at(value, table.path)
        if document is not None:
            problems += [
                _problem(table, document, path, "stands twice; the last one counts")
                for path in repeated_keys(document, table.path)
            ]
        if entries is not None and not isinstance(entries, dict):
            problems.append(_problem(table, document, path_of(table.path), "must be an object"))
            readable = False
            continue
        for name, entry in list((entries or {}).items())[:SERVERS_LIMIT]:
            if is_own_entry(entry):
                own[writable(name)] = entry.get("command") or "" if isinstance(entry, dict) else ""
                continue
            try:
                if writable(name) != name:
                    raise Unclear("has a name that is no text")
                servers.append(_server(name, entry, table, around, inputs))
            except Unclear as error:
                line = _line_of(document, table.path, name)
                reason = writable(str(error))
                not_taken.append(NotTaken(name=writable(name), place=table, reason=reason, line=line))
        if len(entries or {}) > SERVERS_LIMIT:
            problems.append(_problem(table, document, path_of(table.path), f"only {SERVERS_LIMIT} entries are read"))
    return Reading(
        place=place,
        exists=True,
        readable=readable,
        servers=tuple(servers),
        own=own,
        not_taken=tuple(not_taken),
        problems=tuple(problems),
    )


def _faults_of_the_file(place: Place, document: JsonText | None) -> Iterator[Problem]:
    if document is None or TRAITS[place.client].comments:
        return
    for found, what in ((document.comments, "comments"), (document.trailing_commas, "trailing commas")):
        if found:
            message = f"has {what}, which {place.client} itself does not read"
            yield Problem(file=str(place.file), line=0, path="", message=message)


def _projects_in(place: Place, value: JsonObject) -> Iterator[Place]:
    """Find the servers of single projects that Claude Code keeps in the user's own file ("local" scope)."""
    projects = value.get("projects")
    if place.client != "claude-code" or place.scope != "user" or not isinstance(projects, dict):
        return
    for name, project in projects.items():
        if writable(name) == name and isinstance(project, dict) and project.get("mcpServers"):
            yield replace(place, scope="local", path=("projects", name, "mcpServers"), project=Path(name))


def _table_at(value: JsonValue, path: tuple[str, ...]) -> JsonValue:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _problem(place: Place, document: JsonText | None, path: str, message: str) -> Problem:
    return Problem(file=str(place.file), line=_line_of(document, place.path, None), path=path, message=message)


def _line_of(document: JsonText | None, path: tuple[str, ...], name: str | None) -> int:
    table = document.object_at(path) if document else None
    if document is None or table is None:
        return 0
    member = table.find(name) if name is not None else None
    return document.line_of(member.start if member else table.start)


def _inputs(value: JsonValue) -> dict[str, Input]:
    found: dict[str, Input] = {}
    for item in value if isinstance(value, list) else ():
        if not isinstance(item, dict) or not isinstance(item.get("id"), str):
            continue
        default = item.get("default")
        password = item.get("password") is True
        found[item["id"]] = Input(
            id=item["id"],
            description=item["description"] if isinstance(item.get("description"), str) else "",
            secret=password or not isinstance(default, str),
            default=default if isinstance(default, str) else None,
        )
    return found


def _server(
    name: str, entry: JsonValue, place: Place, around: Surroundings, inputs: Mapping[str, Input]
) -> FoundServer:
    if not isinstance(entry, dict):
        raise Unclear("is no object")
    reader = _EntryReader(entry, place, around)
    command, url = reader.text("command"), reader.text("url")
    kind = reader.plain("type") or ("stdio" if command else "")
    if command and url:
        raise Unclear("has both a command and a url")
    if kind not in ("stdio", "", *_TRANSPORTS):
        raise Unclear(f"the type {kind!r} is not supported")
    if (kind == "stdio" and not command) or (kind in _TRANSPORTS and not url) or not (command or url):
        raise Unclear("has no command" if kind == "stdio" else "has neither a command nor a url")
    common = reader.codex() if place.client == "codex" else reader.common()
    if "headersHelper" in entry:
        raise Unclear("its headers come from a program (headersHelper), which is not run here")
    return FoundServer(
        name=name, place=place, command=command, url=url, transport=_TRANSPORTS.get(kind, "auto"),
        args=reader.list_of_texts("args"), cwd=reader.text("cwd"), inputs=inputs,
        notes=reader.notes(), **common,
    )  # fmt: skip


class _EntryReader:
    """Takes the fields of one entry; each that is of the wrong kind makes the entry unclear."""

    def __init__(self, entry: JsonObject, place: Place, around: Surroundings) -> None:
        self._entry = entry
        self._place = place
        self._around = around
        self._syntax = TRAITS[place.client].syntax
        self._fixed = _fixed_names(place, around)
        self._notes: list[str] = []

    def plain(self, key: str) -> str | None:
        value = self._entry.get(key)
        if value is None or isinstance(value, str):
            return value or None
        raise Unclear(f"says something else than a text for {key!r}")

    def text(self, key: str) -> Template | None:
        value = self.plain(key)
        return self._template(value) if value else None

    def list_of_texts(self, key: str) -> tuple[Template, ...]:
        value = self._entry.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise Unclear(f"{key} is no list of texts")
        return tuple(self._template(item) for item in value)

    def common(self) -> dict[str, Any]:
        env = self._table("env")
        file = self.plain("envFile")
        if file:
            env = {**self._env_file(file), **env}
        return {
            "env": env,
            "headers": self._table("headers"),
            "enabled": self._switch("enabled", True) and not self._switch("disabled", False),
            "timeout_s": self._seconds("timeout", 0.001),
        }

    def codex(self) -> dict[str, Any]:
        env = self._table("env")
        named = self._entry.get("env_vars", [])
        if not isinstance(named, list):
            raise Unclear("env_vars is no list")
        for item in named:
            name = item.get("name") if isinstance(item, dict) else item
            if not isinstance(name, str) or not name or (isinstance(item, dict) and item.get("source") == "remote"):
                raise Unclear("env_vars names something that cannot be had here")
            env.setdefault(name, (Reference(kind="env", name=name, optional=True),))
        headers = self._table("http_headers")
        for name, template in self._table("env_http_headers").items():
            headers[name] = tuple(Reference(kind="env", name=str(part)) for part in template)
        bearer = self.plain("bearer_token_env_var")
        if bearer:
            headers["Authorization"] = ("Bearer ", Reference(kind="env", name=bearer))
        if "bearer_token" in self._entry:
            raise Unclear("has a bearer_token, which Codex itself refuses; use bearer_token_env_var")
        return {
            "env": env,
            "headers": headers,
            "enabled": self._switch("enabled", True),
            "timeout_s": self._seconds("tool_timeout_sec", 1.0),
        }

    def notes(self) -> tuple[str, ...]:
        known = _KNOWN_TO_CODEX if self._place.client == "codex" else _KNOWN
        rest = sorted(key for key in self._entry if key not in known and key not in _HARMLESS)
        return (*self._notes, *([writable(f"not taken over: {', '.join(rest)}")] if rest else ()))

    def _template(self, value: str) -> Template:
        return parse_template(value, self._syntax, self._fixed)

    def _table(self, key: str) -> dict[str, Template]:
        value = self._entry.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise Unclear(f"{key} is no object")
        found: dict[str, Template] = {}
        for name, item in value.items():
            if item is None and self._place.client == "vscode":
                self._notes.append(f"{key}.{name} is null; the variable is not set here anyway")
                continue
            if isinstance(item, bool) or not isinstance(item, str | int | float):
                raise Unclear(f"says something else than a text for {key}.{name}")
            found[name] = self._template(item if isinstance(item, str) else _number(item))
        return found

    def _env_file(self, name: str) -> dict[str, Template]:
        template = self._template(name)
        if len(template) != 1 or not isinstance(template[0], str):
            raise Unclear("envFile depends on the environment")
        file = Path(template[0])
        if not file.is_absolute():
            if self._place.project is None:
                raise Unclear("envFile is relative, and outside a project that means nothing")
            file = self._place.project / file
        try:
            text = read_client_file(file)
        except (OSError, ValueError) as error:
            raise Unclear(f"envFile {file} cannot be read: {error}") from error
        if text is None:
            raise Unclear(f"envFile {file} is not there")
        return {key: (value,) for key, value in read_dotenv(text).items()}

    def _switch(self, key: str, default: bool) -> bool:
        value = self._entry.get(key, default)
        if not isinstance(value, bool):
            raise Unclear(f"{key} is neither true nor false")
        return value

    def _seconds(self, key: str, unit_s: float) -> float | None:
        value = self._entry.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise Unclear(f"{key} is no positive number")
        return value * unit_s


def _fixed_names(place: Place, around: Surroundings) -> dict[str, str | None]:
    project = str(place.project) if place.project else None
    if TRAITS[place.client].syntax == "shell":
        return {"CLAUDE_PROJECT_DIR": project} if project else {}
    separator = "\\" if around.platform == "win32" else "/"
    return {
        "workspaceFolder": project,
        "workspaceFolderBasename": Path(project).name if project else None,
        "workspaceRoot": project,
        "userHome": str(around.home),
        "pathSeparator": separator,
        "/": separator,
    }


def _number(value: int | float) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
