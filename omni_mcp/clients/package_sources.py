"""Where `npx` and `uvx` of this person fetch packages: what they are set up with, asked from the tools themselves."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import orjson

from omni_mcp.contracts.hosts import NO_HOST, host_of_url
from omni_mcp.server_definition import ServerDefinition, preset_of

ASK_LIMIT_S = 30.0
_UV_FLAGS = {"--default-index": True, "--index-url": True, "-i": True, "--index": False, "--extra-index-url": False}
_UV_DEFAULTS = ("UV_DEFAULT_INDEX", "UV_INDEX_URL")
_UV_MORE = ("UV_INDEX", "UV_EXTRA_INDEX_URL")
_QUIET = {"npm_config_logs_max": "0", "npm_config_update_notifier": "false"}  # else a question leaves a file behind
# pip reads its own configuration, and knows what it would use without any.
_ASK_PIP = """
import json
from pip._internal.commands import create_command
from pip._internal.models.index import PyPI
index = create_command("download").parser.get_default_values().index_url
print(json.dumps([index, PyPI.simple_url, PyPI.file_storage_domain]))
"""

Run = Callable[[Sequence[str], Mapping[str, str]], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageSource:
    """Where a server's package comes from: `hosts` as HOST:PORT, and the variables that lead its runner there.

    `unknown` says why there are no hosts, where there are none.
    """

    hosts: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    unknown: str = ""

    def covers(self, definition: ServerDefinition) -> bool:
        """Whether *definition* may reach all of it."""
        return bool(self.hosts) and set(self.hosts) <= set(definition.hosts)


def is_source_variable(name: str) -> bool:
    """Say whether a variable only tells a package runner where its source is."""
    return name in (*_UV_DEFAULTS, *_UV_MORE, "npm_config_registry")


def ask_program(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """Run *command* in the person's home, where no project's settings count; returns what it prints, or nothing."""
    try:
        ended = subprocess.run(
            command, env=dict(environment), cwd=environment.get("HOME", "/"), stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=ASK_LIMIT_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ended.stdout if ended.returncode == 0 else ""


class PackageSources:
    """Finds sources, and asks each tool once for the same question.

    Args:
        environment: the person's variables.
        run: runs a program and returns what it prints.
    """

    def __init__(self, environment: Mapping[str, str], *, run: Run = ask_program) -> None:
        self._environment = dict(environment)
        self._run = run
        self._answers: dict[tuple[str, ...], str] = {}

    def source_of(self, definition: ServerDefinition) -> PackageSource | None:
        """Return where the package of *definition* comes from; None for a server that is no package."""
        preset = preset_of(definition.command)
        if not definition.command or preset == "server":
            return None
        said = {name: text for name, text in definition.env.items() if name.lower().startswith(("npm_config_", "uv_"))}
        return self._npm(definition.args, said) if preset == "npx" else self._uv(definition.args, said)

    def _npm(self, args: Sequence[str], said: Mapping[str, str]) -> PackageSource:
        package = next(_values(args, ("-p", "--package")), "") or _first_word(args, ("--registry", "-c", "--call"))
        scope = package.partition("/")[0] if package.startswith("@") and "/" in package else "@none"
        of_scope = f"{scope}:registry"
        found = _pairs(self._ask(["npm", "config", "get", "registry", of_scope]))
        of_its_own = next((text for name, text in said.items() if name.lower() == "npm_config_registry"), "")
        default = next(_values(args, ("--registry",)), "") or of_its_own or found.get("registry", "")
        flag, own = next(_values(args, (f"--{of_scope}",)), ""), found.get(of_scope, "undefined")
        if not default:
            return PackageSource(unknown="npm does not say what its registry is; is it installed?")
        if own != "undefined" and not flag:  # a variable of that name is none that a cell is given
            where = f"--{of_scope}={'URL' if '@' in urlsplit(own).netloc else own} before the package, with its host"
            return PackageSource(unknown=f"packages of {scope} have a registry of their own: give it as {where}")
        return _source({"npm_config_registry": default}, [default, *([flag] if flag else [])], said)

    def _uv(self, args: Sequence[str], said: Mapping[str, str]) -> PackageSource:
        flags = tuple(_UV_FLAGS)
        given = [(_UV_FLAGS[flag], url) for flag in flags for url in _values(args, (flag,))]
        env = {**self._environment, **said}
        default = next((url for is_default, url in given if is_default), "")
        default = default or next((env[name] for name in _UV_DEFAULTS if env.get(name)), "")
        more = [url for is_default, url in given if not is_default]
        more += [word for name in _UV_MORE for word in env.get(name, "").split()]
        for settings in self._uv_settings(env):
            default = default or _default_index(settings)
            more += _other_indexes(settings)
        files = ""
        if not default:
            default, files = self._of_pip()
        if not default:
            return PackageSource(unknown="neither uv nor pip says what its package index is; is pip installed?")
        environment = {"UV_DEFAULT_INDEX": default} | ({"UV_INDEX": " ".join(more)} if more else {})
        return _source(environment, [default, *(_url_alone(url) for url in more), *([files] if files else [])], said)

    def _of_pip(self) -> tuple[str, str]:
        """Return pip's index and where that keeps its files, if it is the one that pip knows that of."""
        for python in (sys.executable, "python3"):
            answer = self._ask([python, "-I", "-c", _ASK_PIP])
            try:
                index, known, files = orjson.loads(answer)
            except ValueError:
                continue
            same = str(index).rstrip("/") == str(known).rstrip("/")
            return str(index), f"https://{files}/" if same else ""
        return "", ""

    def _uv_settings(self, env: Mapping[str, str]) -> Iterator[dict[str, object]]:
        home = Path(env.get("HOME", "/"))
        user = Path(env.get("XDG_CONFIG_HOME") or home / ".config")
        system = [Path(place) for place in (env.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":") if place]
        files = [Path(env["UV_CONFIG_FILE"])] if env.get("UV_CONFIG_FILE") else [
            place / "uv" / "uv.toml" for place in (user, *system, Path("/etc"))
        ]  # fmt: skip
        for file in files if not env.get("UV_NO_CONFIG") else ():
            try:
                yield tomllib.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue

    def _ask(self, command: Sequence[str]) -> str:
        """Ask a program for the person's own settings; those of a definition could lead it to files of others."""
        key = tuple(command)
        if key not in self._answers:
            self._answers[key] = self._run(command, {**self._environment, **_QUIET})
        return self._answers[key]


def _source(wanted: Mapping[str, str], urls: Iterable[str], said: Mapping[str, str]) -> PackageSource:
    """Return the source at *urls*; *said* are variables that the definition has already."""
    hosts: dict[str, None] = {}
    for url in urls:
        if "${" in url:
            return PackageSource(unknown="the address of the package source names a variable, which is not filled in")
        parts = urlsplit(url)
        if parts.scheme == "file" or url.startswith("/"):
            return PackageSource(unknown=f"packages come from the directory {parts.path}, which it has to see: --dir")
        if "@" in parts.netloc:
            return PackageSource(unknown="the address of the package source holds a password, which is not copied")
        host = host_of_url(url)
        if host == NO_HOST:
            return PackageSource(unknown="the package source is no URL with a host")
        hosts[host] = None
    have = {name.lower() for name in said}  # npm's names do not depend on case
    environment = {name: text for name, text in wanted.items() if name.lower() not in have}
    return PackageSource(hosts=tuple(hosts), environment=environment)


def _values(args: Sequence[str], flags: Sequence[str]) -> Iterator[str]:
    """Yield what *flags* of a package runner are given: `--flag value` or `--flag=value`."""
    for index, word in enumerate(args):
        flag, joined, value = word.partition("=")
        if flag in flags and (joined or index + 1 < len(args)):
            yield value if joined else args[index + 1]


def _first_word(args: Sequence[str], with_value: Sequence[str]) -> str:
    """Return the first word that is no flag, nor the value of one of *with_value*."""
    before = ""
    for word in args:
        if not word.startswith("-") and before not in with_value:
            return word
        before = word
    return ""


def _pairs(text: str) -> dict[str, str]:
    return {key: value for key, joined, value in (line.partition("=") for line in text.splitlines()) if joined}


def _default_index(settings: Mapping[str, object]) -> str:
    tables = [one for one in _tables(settings) if one.get("default") is True]
    return str(tables[0]["url"]) if tables else str(settings.get("index-url") or "")


def _other_indexes(settings: Mapping[str, object]) -> list[str]:
    tables = [str(one["url"]) for one in _tables(settings) if not one.get("default") and not one.get("explicit")]
    older = settings.get("extra-index-url")
    return tables + ([str(url) for url in older] if isinstance(older, list) else [])


def _tables(settings: Mapping[str, object]) -> list[dict[str, object]]:
    found = settings.get("index")
    return [one for one in found if isinstance(one, dict) and "url" in one] if isinstance(found, list) else []


def _url_alone(index: str) -> str:
    """Return the URL of an index that may have a name in front: `name=https://…`."""
    named = re.fullmatch(r"[A-Za-z0-9_.-]+=(.+)", os.fspath(index))
    return named[1] if named else index
