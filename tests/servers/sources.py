"""Sources: where this machine's own npm and pip get packages from, as hosts that a server may be allowed to reach.

Names and addresses come from the configuration of those clients, so that the tests work behind a mirror too.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from omni_mcp.contracts.sandbox import Mount
from omni_mcp.engines.sandbox.profile_rules import read_fault
from tests.servers.setup import find_uvx

_LIMIT_S = 60
_REQUIRED = frozenset(os.environ.get("OMNI_REQUIRE", "").split(","))


_ELSEWHERE = "/opt/uv"


@dataclass(frozen=True, slots=True)
class Source:
    """What a server needs to fetch its package.

    `networks` are the special ranges that the hosts are in here, where they are in any; `directories` hold an index
    that is no web site.
    """

    hosts: tuple[str, ...]
    networks: tuple[str, ...]
    environment: dict[str, str]
    directories: tuple[Path, ...] = ()


def lacking(why: str) -> None:
    """Skip, or fail where package indexes were promised to be there."""
    if "packages" in _REQUIRED:
        pytest.fail(f"OMNI_REQUIRE names packages, but: {why}")
    pytest.skip(why)


def npx_prefix() -> tuple[str, ...]:
    """Return the directories that a cell must see for `npx`, besides /usr."""
    npx, node = shutil.which("npx"), shutil.which("node")
    if npx is None or node is None:
        lacking("Node.js with npx is not installed")
        raise AssertionError
    tops = {str(Path(os.path.realpath(node)).parent.parent), str(Path(os.path.realpath(npx)).parents[4])}
    return tuple(sorted(top for top in tops if not f"{top}/".startswith("/usr/") and _may_be_shown(top)))


def npx_path() -> str:
    """Return the PATH on which a cell finds `npx`; nothing if the usual one does."""
    return f"{Path(os.path.realpath(shutil.which('node') or '')).parent}:/usr/bin:/bin" if npx_prefix() else ""


@functools.cache
def npm_source() -> Source:
    """Return npm's registry, or end the test where it cannot be reached."""
    said = _said(["npm", "config", "get", "registry"])
    url = said.strip().splitlines()[-1] if said.strip() else ""
    return _source([url], {"npm_config_registry": url})


@functools.cache
def pypi_source() -> Source:
    """Return pip's index and where it keeps its files, or end the test where they cannot be reached."""
    pip = [sys.executable, "-m", "pip"]
    index = _said([*pip, "config", "get", "global.index-url"]).strip() or os.environ.get("PIP_INDEX_URL", "")
    if not index:
        index = _said([sys.executable, "-c", "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"])
    index = index.strip()
    look = [*pip, "install", "-q", "--dry-run", "--no-deps", "--ignore-installed", "--report", "-", "mcp-server-time"]
    report = _said([*look, "--index-url", index])
    if not report.startswith("{"):
        lacking("pip does not reach its package index")
    file = json.loads(report)["install"][0]["download_info"]["url"]
    return _source([index, file], {"UV_DEFAULT_INDEX": index})


def uvx() -> Path:
    """Return where a server finds the installed `uvx`, or end the test."""
    return _uv() / "bin" / "uvx" if uv_read() else Path(_ELSEWHERE, "bin", "uvx")


def uv_read() -> tuple[str, ...]:
    """Return what a profile shows of uv; nothing where no profile may, as in a checkout below /tmp."""
    place = str(_uv())
    return () if read_fault(place) else (place,)


def uv_mounts() -> tuple[Mount, ...]:
    """Return the view of uv at another place, where no profile may show it."""
    return () if uv_read() else (Mount(source=_uv(), inside=_ELSEWHERE),)


def _uv() -> Path:
    found = find_uvx()
    if found is None:
        lacking("uv is not installed: run tests/servers/setup.py")
        raise AssertionError
    return found.parent.parent


def _may_be_shown(place: str) -> bool:
    fault = read_fault(place)
    if fault:
        lacking(f"{fault}; use another checkout or installation")
    return not fault


def _source(urls: list[str], environment: dict[str, str]) -> Source:
    hosts, directories = [], []
    for url in urls:
        parts = urlsplit(url)
        if parts.scheme == "file":
            directories.append(Path(unquote(parts.path)))
        elif parts.hostname:
            hosts.append((parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)))
    networks: set[str] = set()
    for name, port in hosts:
        try:
            found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
            socket.create_connection((name, port), 10).close()
        except OSError as error:
            lacking(f"a package index cannot be reached: {error}")
        networks |= {f"{address[4][0]}/{32 if address[0] == socket.AF_INET else 128}" for address in found}
    return Source(
        tuple(sorted({f"{name}:{port}" for name, port in hosts})), tuple(sorted(networks)), environment,
        tuple(directories),
    )  # fmt: skip


def _said(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
