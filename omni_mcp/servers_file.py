"""servers.toml: the servers behind the gateway, as commands write them; the same tables stand in a person's omni.toml.

A definition names a command that the gateway will start, so the file is code: it is read only where nobody but its
owner can write, and never through a link. It is written whole, in order, so comments in it are not kept; a person who
wants to write definitions by hand puts them into omni.toml, which no command ever changes.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from omni_mcp.contracts.errors import BadRequest, ConfigError, Problem
from omni_mcp.host_places import HostPlaces
from omni_mcp.paths import Home, find_home, write_private
from omni_mcp.server_definition import ServerDefinition, Servers
from omni_mcp.toml_writer import toml_key, toml_value

FILE_NAME = "servers.toml"
FILE_LIMIT_BYTES = 4 * 1024 * 1024
SECRET_LIMIT_BYTES = 64 * 1024
_HEAD = "# Written by omni-mcp; comments in here are not kept. Definitions by hand belong into omni.toml.\n"


def servers_file_of(home: Home) -> Path:
    """Return where the file stands: beside omni.toml."""
    return home.config / FILE_NAME


def load_servers(file: Path) -> Servers:
    """Read *file*; a missing one means no servers.

    Raises:
        ConfigError: somebody else could have written it, it is no TOML, or a key is unknown or wrong, with its line.
    """
    text = _read_trusted(file)
    if text is None:
        return Servers()
    try:
        return Servers.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"line (\d+)", str(error))
        raise _refused(file, str(error), line=int(place[1]) if place else 0) from error
    except ValidationError as error:
        raise ConfigError([_problem(file, text, item) for item in error.errors()]) from error


def save_servers(file: Path, servers: Servers) -> None:
    """Replace *file* in one step, mode 0600, durable; the order of definitions is kept.

    Raises:
        ConfigError: the directory cannot be made or written, or others can write to it.
    """
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_trusted(file.parent, os.stat(file.parent), "700")
        write_private(file, to_toml(servers).encode("utf-8"))
    except OSError as error:
        raise _refused(file, f"cannot be written: {error.strerror}") from error


def edit_servers(file: Path, change: Callable[[Servers], Servers]) -> Servers:
    """Read *file*, apply *change* and save, while no other command of ours does; returns what stands there now.

    Raises:
        ConfigError: as `load_servers` and `save_servers`.
        BadRequest: *change* would show a server what no cell may be shown.
    """
    shown = HostPlaces(replace(find_home(), config=file.parent))
    with _locked(file):
        before = load_servers(file)
        after = change(before)
        for name, definition in after.servers.items():
            check_mounts(name, definition, shown, before=before.servers.get(name))
        if after != before or list(after.servers) != list(before.servers):
            save_servers(file, after)
    return after


def names_in_settings(settings_file: Path, table: Literal["servers", "secrets"]) -> frozenset[str]:
    """Return the names that a table of omni.toml defines; what is wrong in that file is for its own reader to say."""
    try:
        found = tomllib.loads(settings_file.read_text(encoding="utf-8")).get(table, {})
    except (OSError, ValueError):
        return frozenset()
    return frozenset(found) if isinstance(found, dict) else frozenset()


def check_disjoint(file: Path, servers: Servers, by_hand: frozenset[str]) -> None:
    """Refuse a name that omni.toml defines too: which of the two holds must not be a guess.

    Raises:
        ConfigError: a name stands in both files.
    """
    both = sorted(servers.servers.keys() & by_hand)
    if both:
        message = "is defined in omni.toml too; remove it there, or with: omni-mcp servers remove"
        raise ConfigError(
            [Problem(file=str(file), line=0, path=f"$.servers.{name}", message=f"{message} {name}") for name in both]
        )


def check_mounts(
    name: str, definition: ServerDefinition, shown: HostPlaces, *, before: ServerDefinition | None = None
) -> None:
    """Refuse what *definition* names and no cell may be shown, unless it said so *before* and is in use no more than
    then.

    Raises:
        BadRequest: with the reason and what to name instead.
    """
    if before is not None and before.mounts == definition.mounts and before.enabled >= definition.enabled:
        return
    if fault := mount_fault(definition, shown):
        raise BadRequest(f"{name!r} cannot be given a directory: {fault}; with --dir name only what it works on")


def mount_fault(definition: ServerDefinition, shown: HostPlaces) -> str:
    """Return why no cell may be shown a directory that *definition* names; nothing if all of them may."""
    faults = (shown.fault(mount.source, writable=mount.writable) for mount in definition.mounts)
    return next(filter(None, faults), "")


def read_reference(reference: str, environment: Mapping[str, str]) -> str:
    """Return the value that `env:VARIABLE` or `file:/path` stands for.

    Raises:
        ValueError: there is none; the message names the place and never a value.
    """
    form, _, rest = reference.partition(":")
    if form == "env":
        if rest not in environment:
            raise ValueError(f"{rest} is not set in the environment")
        return environment[rest]
    try:
        with Path(rest).expanduser().open("rb") as stream:
            data = stream.read(SECRET_LIMIT_BYTES + 1)
        if len(data) > SECRET_LIMIT_BYTES:
            raise ValueError(f"{rest} is larger than {SECRET_LIMIT_BYTES // 1024} KiB")
        return data.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise ValueError(f"{rest} is not UTF-8") from None
    except OSError as error:
        raise ValueError(f"{rest} cannot be read: {error.strerror}") from error


def read_server_secrets(
    servers: Servers, environment: Mapping[str, str], *, known: Mapping[str, str] | None = None
) -> tuple[dict[str, str], dict[str, str]]:
    """Resolve the secrets of all enabled servers.

    A server whose secret cannot be had must not take the others down, so this does not raise.

    Args:
        known: secrets of omni.toml by name; they may be named here too.

    Returns:
        Values by name of the secret, and for each server that lacks one the reason, which holds no value.
    """
    values = dict(known or {})
    lacking: dict[str, str] = {}
    for name, definition in servers.servers.items():
        for secret in sorted(definition.secret_names) if definition.enabled else ():
            if secret in values:
                continue
            try:
                if secret not in servers.secrets:
                    raise ValueError("neither servers.toml nor omni.toml says where it is")
                values[secret] = read_reference(servers.secrets[secret], environment)
            except ValueError as error:
                lacking[name] = f"secret {secret}: {error}"
    return values, lacking


def to_toml(servers: Servers) -> str:
    """Return the text of the file."""
    parts = [_HEAD]
    for name, definition in servers.servers.items():
        lines = [f"\n[servers.{toml_key(name)}]"]
        lines += [f"{key} = {toml_value(value)}" for key, value in definition.as_json().items()]
        parts.append("\n".join(lines) + "\n")
    if servers.secrets:
        lines = [f"{toml_key(name)} = {toml_value(reference)}" for name, reference in servers.secrets.items()]
        parts.append("\n[secrets]\n" + "\n".join(lines) + "\n")
    return "".join(parts)


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(
            file.with_name(f".{file.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
    except OSError as error:
        raise _refused(file, f"cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _read_trusted(file: Path) -> str | None:
    try:
        directory = os.stat(file.parent)
        # O_NONBLOCK: opening a named pipe must not hang the reader.
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        hint = "cannot be read (links are not followed; put the file itself here)"
        raise _refused(file, f"{hint}: {error.strerror}") from error
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise _refused(file, "is no regular file")
        _check_trusted(file.parent, directory, "700")
        _check_trusted(file, facts, "600")
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            data = stream.read(FILE_LIMIT_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(data) > FILE_LIMIT_BYTES:
        raise _refused(file, f"is larger than {FILE_LIMIT_BYTES // 1024} KiB")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _refused(file, "is not UTF-8", line=data.count(b"\n", 0, error.start) + 1) from error


def _check_trusted(path: Path, facts: os.stat_result, mode: str) -> None:
    """Root's files are as good as ours: whoever is root decides anyway."""
    if facts.st_uid not in (os.geteuid(), 0):
        raise _refused(path, f"belongs to user {facts.st_uid}; it must be yours (chown)")
    if facts.st_mode & 0o022:
        raise _refused(
            path, f"others can write to it (mode {stat.S_IMODE(facts.st_mode):o}); mend it with: chmod {mode} {path}"
        )


def _refused(file: Path, message: str, *, line: int = 0) -> ConfigError:
    return ConfigError([Problem(file=str(file), line=line, path="", message=message)])


def _problem(file: Path, text: str, item: Any) -> Problem:
    location = [str(part) for part in item["loc"] if part != "[key]"]
    message = "unknown key" if item["type"] == "extra_forbidden" else str(item["msg"]).removeprefix("Value error, ")
    return Problem(file=str(file), line=_line_of(text, location), path="$." + ".".join(location), message=message)


def _line_of(text: str, location: list[str]) -> int:
    """Find the line of a key: tomllib keeps no positions, so look for the deepest table header, then for the key."""
    best = (0, 0)
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("["):
            path = _path_of_header(line)
            if path and path == location[: len(path)] and len(path) > best[1]:
                best = (number, len(path))
    rest = location[best[1] :]
    if not rest:
        return best[0]
    for number, line in enumerate(text.splitlines()[best[0] :], start=best[0] + 1):
        if re.match(rf"\s*[\"']?{re.escape(rest[0])}[\"']?\s*[.=]", line):
            return number
        if line.lstrip().startswith("[") and _path_of_header(line):
            break
    return best[0]


def _path_of_header(line: str) -> list[str]:
    try:
        value: Any = tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return []
    path: list[str] = []
    while isinstance(value, dict) and value:
        key = next(iter(value))
        path.append(key)
        value = value[key]
    return path
