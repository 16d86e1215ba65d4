"""What the machine gives: interpreter, database library, disk, descriptors, isolation."""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
import stat
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from omni_mcp.cli.doctor.finding import Finding, Level, Patient, faults
from omni_mcp.cli.postures import BETTER, NOT_STOPPED
from omni_mcp.contracts.errors import ConfigError
from omni_mcp.engines.sandbox.profiles import load_profiles
from omni_mcp.paths import bundled

LEAST_FREE_BYTES = 200 * 1024 * 1024
GOOD_FREE_BYTES = 2 * 1024 * 1024 * 1024
SLOW_FSYNC_MS = 20.0  # every call waits for two
LEAST_SQLITE = (3, 38, 0)
LEAST_BUBBLEWRAP = (0, 8, 0)
GOOD_DESCRIPTORS = 4096


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
        yield from faults("profiles", error)
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
