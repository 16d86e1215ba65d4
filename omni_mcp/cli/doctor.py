"""`omni-mcp doctor`: what isolation, limits and permissions are in force here, and what to do."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import socket
import sqlite3
import stat
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import click
import orjson

from omni_mcp.cli.postures import BETTER, NOT_STOPPED
from omni_mcp.cli.status import find_status
from omni_mcp.config import Settings, load_settings, read_secrets
from omni_mcp.contracts.errors import ConfigError
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.sandbox import Isolation
from omni_mcp.daemon import is_loopback
from omni_mcp.engines.catalog.manifests import ManifestDirectory, ManifestSource
from omni_mcp.engines.identity.keys import private_file_fault, read_keys
from omni_mcp.engines.policy.policy_set import load_policies, read_shipped
from omni_mcp.engines.sandbox.cells import open_sandbox
from omni_mcp.engines.sandbox.profiles import load_profiles
from omni_mcp.paths import Home, bundled, find_home
from omni_mcp.serving.socket import PATH_LIMIT_BYTES

Level = Literal["ok", "warn", "fail"]

LEAST_FREE_BYTES = 200 * 1024 * 1024
GOOD_FREE_BYTES = 2 * 1024 * 1024 * 1024
SLOW_FSYNC_MS = 20.0  # every call waits for two
LEAST_SQLITE = (3, 38, 0)
LEAST_BUBBLEWRAP = (0, 8, 0)
GOOD_DESCRIPTORS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at. `next` is what to do, empty where nothing has to be done."""

    name: str
    level: Level
    text: str
    next: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """What the checks look at."""

    home: Home
    settings: Settings | None
    settings_fault: ConfigError | None
    gateway: JsonObject
    isolation: Isolation


Check = Callable[[Patient], Iterator[Finding]]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
def doctor(as_json: bool) -> None:
    """Say what isolation, limits and permissions are in force, and what to do.

    Exit code 1 when something fails; a warning alone does not.
    """
    findings = examine(find_home())
    failed = any(finding.level == "fail" for finding in findings)
    if as_json:
        body = {"ok": not failed, "findings": [asdict(finding) for finding in findings]}
        click.echo(orjson.dumps(body, option=orjson.OPT_INDENT_2))
    else:
        for finding in findings:
            click.echo(f"{finding.level:<5} {finding.name:<18} {finding.text}")
            if finding.next:
                click.echo(f"{'':<24} -> {finding.next}")
    sys.exit(1 if failed else 0)


def examine(home: Home) -> list[Finding]:
    """Run every check on *home*, in a fixed order; changes nothing that stays."""
    settings, fault = None, None
    try:
        settings = load_settings(home.settings_file)
    except ConfigError as error:
        fault = error
    gateway = find_status(home)
    isolation = isolation_of(gateway) or asyncio.run(probe_isolation(settings or Settings()))
    patient = Patient(home=home, settings=settings, settings_fault=fault, gateway=gateway, isolation=isolation)
    return [finding for check in CHECKS for finding in check(patient)]


def isolation_of(gateway: JsonObject) -> Isolation | None:
    """Return what a running gateway found: its own view counts, and a second look could disturb its cells."""
    facts = gateway.get("isolation")
    if not gateway["running"] or not isinstance(facts, dict):
        return None
    return Isolation(posture=facts["posture"], layers=tuple(facts["layers"]), missing=dict(facts["missing"]))


async def probe_isolation(settings: Settings) -> Isolation:
    """Make a real cell and say what it got."""
    place = bundled("sandbox")
    async with open_sandbox(profiles={}, sandbox_dir=place, use_cgroups=settings.sandbox.cgroups) as sandbox:
        return sandbox.isolation()


def check_python(patient: Patient) -> Iterator[Finding]:
    """The interpreter, and whether the user that jobs run as can reach it."""
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding(name="python", level="ok", text=f"{version} at {sys.executable}")
    closed = first_closed_directory(Path(sys.base_prefix))
    if closed is None:
        yield Finding(name="interpreter", level="ok", text=f"{sys.base_prefix} can be reached by every user")
    elif patient.isolation.posture != "none":
        yield Finding(name="interpreter", level="ok", text=f"behind {closed}, bound into each cell by the launcher")
    else:
        hint = f"open {closed} for passing through (chmod o+x {closed}), or use an interpreter below /usr"
        yield Finding(name="interpreter", level="warn", text=f"other users cannot pass {closed}", next=hint)


def check_sqlite(patient: Patient) -> Iterator[Finding]:
    """The database library, and how long the disk takes to make a commit durable."""
    options = {row[0] for row in sqlite3.connect(":memory:").execute("PRAGMA compile_options")}
    version = sqlite3.sqlite_version
    if sqlite3.sqlite_version_info < LEAST_SQLITE or not any(option.startswith("ENABLE_FTS5") for option in options):
        yield Finding(
            name="sqlite", level="fail", text=f"{version}, full-text search: {'ENABLE_FTS5' in options}",
            next="use a Python whose sqlite3 is 3.38 or newer and has FTS5",
        )  # fmt: skip
    else:
        yield Finding(name="sqlite", level="ok", text=f"{version} with full-text search")
    place = existing_parent(patient.home.data)
    try:
        took_ms = fsync_ms(place)
    except OSError as error:
        yield Finding(
            name="fsync", level="fail", text=f"{place}: {error}", next="make the data directory writable for you"
        )
        return
    slow = took_ms > SLOW_FSYNC_MS
    hint = "put the data directory on a local SSD (OMNI_HOME or XDG_DATA_HOME)" if slow else ""
    yield Finding(name="fsync", level="warn" if slow else "ok", text=f"{took_ms:.2f} ms (median of 10)", next=hint)


def check_isolation(patient: Patient) -> Iterator[Finding]:
    """bubblewrap, and what a real cell got here."""
    version = bubblewrap_version()
    if version is None:
        yield Finding(
            name="bubblewrap", level="fail", text="not installed",
            next="apt-get install bubblewrap (dnf install bubblewrap, pacman -S bubblewrap)",
        )  # fmt: skip
    elif version < LEAST_BUBBLEWRAP:
        text = ".".join(map(str, version))
        yield Finding(name="bubblewrap", level="fail", text=text, next="install bubblewrap 0.8.0 or newer")
    else:
        yield Finding(name="bubblewrap", level="ok", text=".".join(map(str, version)))
    isolation = patient.isolation
    level: Level = "fail" if isolation.posture == "none" else "ok"
    layers = ", ".join(isolation.layers) or "no layer"
    hint = "sandboxed tools are refused until this is mended; see docs/sandbox.md" if level == "fail" else ""
    yield Finding(name="isolation", level=level, text=f"{isolation.posture}: {layers}", next=hint)
    for layer, reason in isolation.missing.items():
        yield Finding(name=f"layer {layer}", level="warn", text="missing", next=reason)
    better = BETTER[isolation.posture]
    yield Finding(
        name="not stopped", level="warn" if better else "ok", text=NOT_STOPPED[isolation.posture], next=better
    )
    yield from _kernel_switches()


def check_profiles(patient: Patient) -> Iterator[Finding]:
    """Sandbox profiles, shipped and own: which are faulty, and which demand more than this machine gives."""
    try:
        profiles = load_profiles(bundled("sandbox") / "profiles", own=patient.home.profiles)
    except ConfigError as error:
        yield from _faults("profiles", error)
        return
    here = patient.isolation
    unmet = [name for name, profile in sorted(profiles.items()) if not here.at_least(profile.posture)]
    if not unmet:
        yield Finding(name="profiles", level="ok", text=f"{len(profiles)}, each can have what it demands")
    for name in unmet:
        text = f"{name} demands {profiles[name].posture}, {here.posture} can be had: its jobs are refused"
        hint = (
            f"mend the missing layers, or accept less in {patient.home.profiles / name}.toml (docs/sandbox-profiles.md)"
        )
        yield Finding(name="profiles", level="warn", text=text, next=hint)


def check_permissions(patient: Patient) -> Iterator[Finding]:
    """Who can write where decisions, code and keys come from."""
    home = patient.home
    for name, path in (
        ("home", home.config), ("data", home.data), ("policies", home.policies), ("manifests", home.manifests),
        ("profiles", home.profiles), ("runtime", home.runtime), ("secrets", home.secrets),
    ):  # fmt: skip
        yield _directory_finding(f"{name} directory", path)
    for name, path in (("keys file", home.keys_file), ("token file", home.token_file)):
        fault = private_file_fault(path)
        if fault:
            yield Finding(name=name, level="fail", text=f"{path}: {fault}", next=f"chmod 600 {path}")
        else:
            yield Finding(name=name, level="ok", text=str(path) if path.exists() else f"{path} (not made yet)")
    if len(os.fsencode(home.socket)) > PATH_LIMIT_BYTES:
        hint = "set XDG_RUNTIME_DIR to a shorter path"
        yield Finding(name="socket path", level="fail", text=f"{home.socket} is too long", next=hint)


def check_room(patient: Patient) -> Iterator[Finding]:
    """Disk and descriptors."""
    place = existing_parent(patient.home.data)
    free = shutil.disk_usage(place).free
    level: Level = "fail" if free < LEAST_FREE_BYTES else "warn" if free < GOOD_FREE_BYTES else "ok"
    hint = "" if level == "ok" else "free some room: when the log cannot be written, every call is refused"
    yield Finding(name="disk", level=level, text=f"{free // 2**20} MiB free at {place}", next=hint)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    few = hard != resource.RLIM_INFINITY and hard < GOOD_DESCRIPTORS
    text = "no limit" if hard == resource.RLIM_INFINITY else str(hard)
    yield Finding(
        name="descriptors", level="warn" if few else "ok", text=text,
        next=f"allow at least {GOOD_DESCRIPTORS} open files (ulimit -Hn, LimitNOFILE=)" if few else "",
    )  # fmt: skip


def check_files(patient: Patient) -> Iterator[Finding]:
    """Settings, policies and manifests, with the place of every fault."""
    if patient.settings_fault is not None:
        yield from _faults("settings", patient.settings_fault)
    elif patient.settings is not None:
        try:
            read_secrets(patient.settings, dict(os.environ))
            yield Finding(name="settings", level="ok", text=str(patient.home.settings_file))
        except ConfigError as error:
            yield from _faults("settings", error)
    yield from _policy_findings(patient.home)
    directories = [
        ManifestDirectory(path=bundled("manifests"), bundled=True),
        ManifestDirectory(path=patient.home.manifests),
    ]
    try:
        entries = list(ManifestSource(directories, code=bundled("sandbox") / "tools").load())
        yield Finding(name="manifests", level="ok", text=f"{len(entries)} tools")
    except ConfigError as error:
        yield from _faults("manifests", error)


def check_gateway(patient: Patient) -> Iterator[Finding]:
    """Whether one runs, else whether its port is free; and whether any client could get in."""
    facts = patient.gateway
    if facts["running"]:
        yield Finding(name="gateway", level="ok", text=f"process {facts.get('pid')} at {facts.get('url', 'stdio')}")
    elif "pid" in facts:
        yield Finding(
            name="gateway", level="fail", text=facts["next"], next=f"look at its log, or: kill {facts['pid']}"
        )
    else:
        yield Finding(name="gateway", level="ok", text="not running; a client or `omni-mcp serve` starts it")
        yield from _port_findings(patient.settings)
    try:
        valid = sum(key.holds_at(time.time_ns()) for key in read_keys(patient.home.keys_file))
    except ConfigError as error:
        yield from _faults("tokens", error)
        return
    hint = "" if valid else "the first `omni-mcp serve` makes one; so does `omni-mcp keys create NAME`"
    yield Finding(name="tokens", level="ok" if valid else "warn", text=f"{valid} valid", next=hint)


CHECKS: tuple[Check, ...] = (
    check_python, check_sqlite, check_isolation, check_profiles, check_permissions, check_room, check_files,
    check_gateway,
)  # fmt: skip


def first_closed_directory(path: Path) -> Path | None:
    """Return the first directory on the way to *path* that other users cannot pass, or None."""
    for place in (*reversed(path.resolve().parents), path.resolve()):
        if not place.stat().st_mode & stat.S_IXOTH:
            return place
    return None


def existing_parent(path: Path) -> Path:
    """Return *path*, or the nearest directory above it that exists."""
    while not path.exists():
        path = path.parent
    return path


def fsync_ms(directory: Path) -> float:
    """Return the median milliseconds that writing 4 KiB and making it durable takes in *directory*."""
    file = directory / f".doctor-{os.getpid()}"
    times: list[float] = []
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        for _ in range(10):
            begun = time.perf_counter()
            os.pwrite(descriptor, bytes(4096), 0)
            os.fsync(descriptor)
            times.append((time.perf_counter() - begun) * 1000)
    finally:
        os.close(descriptor)
        file.unlink()
    return statistics.median(times)


def try_port(host: str, port: int) -> None:
    """Bind the address for an instant.

    Raises:
        OSError: it cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))


def bubblewrap_version() -> tuple[int, ...] | None:
    """Return the version of bubblewrap, or None if it is not installed."""
    found = shutil.which("bwrap")
    if found is None:
        return None
    done = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=10, check=False)
    numbers = "".join(letter if letter.isdigit() else " " for letter in done.stdout).split()
    return tuple(int(number) for number in numbers[:3])


def _kernel_switches() -> Iterator[Finding]:
    """Yield the switches by which distributions forbid user namespaces, where they do."""
    switches = (
        ("kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "give bwrap an AppArmor profile that allows userns"),
        ("user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=15000"),
    )
    for name, bad, mend in switches:
        try:
            value = Path("/proc/sys", name).read_text("ascii").strip()
        except OSError:
            continue  # this kernel has no such switch
        if value == bad and os.getuid() != 0:
            yield Finding(name="user namespaces", level="warn", text=f"{name.replace('/', '.')} = {value}", next=mend)


def _directory_finding(name: str, path: Path) -> Finding:
    try:
        facts = path.lstat()
    except FileNotFoundError:
        return Finding(name=name, level="ok", text=f"{path} (not made yet)")
    except OSError as error:
        return Finding(name=name, level="fail", text=f"{path}: {error.strerror}", next="run this as the gateway's user")
    if not stat.S_ISDIR(facts.st_mode):
        return Finding(name=name, level="fail", text=f"{path} is no directory", next=f"move {path} away")
    if facts.st_uid not in (os.getuid(), 0):
        return Finding(
            name=name, level="fail", text=f"{path} belongs to user {facts.st_uid}", next=f"chown {os.getuid()} {path}"
        )
    if facts.st_mode & 0o022:
        mode = stat.S_IMODE(facts.st_mode)
        return Finding(
            name=name, level="fail", text=f"others can write to {path} ({mode:04o})", next=f"chmod go-w {path}"
        )
    return Finding(name=name, level="ok", text=str(path))


def _faults(name: str, error: ConfigError) -> Iterator[Finding]:
    for problem in error.problems:
        yield Finding(name=name, level="fail", text=str(problem), next="mend it there; until then it is not in force")


def _policy_findings(home: Home) -> Iterator[Finding]:
    if not home.policies.exists():
        text = f"{home.policies} is not there, so every call is denied"
        yield Finding(name="policy", level="warn", text=text, next="omni-mcp allow tools__files_read")
        return
    try:
        policies = load_policies(home.policies, read_shipped(bundled("policies")))
    except ConfigError as error:
        yield from _faults("policy", error)
        return
    yield Finding(name="policy", level="ok", text=f"{len(policies.rules)} rules")
    for warning in policies.warnings:
        yield Finding(name="policy", level="warn", text=str(warning), next="omni-mcp policy check")


def _port_findings(settings: Settings | None) -> Iterator[Finding]:
    if settings is None:
        return
    server = settings.server
    try:
        try_port(server.host, server.port)
    except OSError as error:
        text = f"cannot listen on {server.host}:{server.port}: {error.strerror}"
        yield Finding(name="port", level="fail", text=text, next="set server.port in omni.toml, or use --port")
    else:
        yield Finding(name="port", level="ok", text=f"{server.host}:{server.port} is free")
    if not is_loopback(server.host):
        level: Level = "ok" if server.behind_proxy else "fail"
        hint = "" if server.behind_proxy else "put a proxy that ends TLS in front and set server.behind_proxy = true"
        yield Finding(name="address", level=level, text=f"{server.host} can be reached from outside", next=hint)
