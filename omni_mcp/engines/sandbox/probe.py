"""What isolation can be had here, found out by making a real cell and looking from its inside."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.manifest import Limits
from omni_mcp.contracts.sandbox import Isolation, Job
from omni_mcp.engines.sandbox.cgroup import NoCgroups
from omni_mcp.engines.sandbox.failures import StartFailed
from omni_mcp.engines.sandbox.jobrun import JobRun, Outcome
from omni_mcp.engines.sandbox.launcher import INSIDE_UID
from omni_mcp.engines.sandbox.pool import Pool
from omni_mcp.engines.sandbox.profiles import Profile

OLDEST_BWRAP = (0, 8)
LAYERS = (
    "namespaces",
    "filesystem",
    "network",
    "tmpfs-limits",
    "capabilities",
    "no-new-privileges",
    "seccomp",
    "rlimits",
)
_HOST_PATHS = ("/etc/shadow", "/var", "/run", "/sys", "/boot", "/mnt")
PROBE_LIMITS = Limits(timeout_s=20, memory_mib=128, disk_mib=7, inodes=64, processes=16, cpu_s=10)
PROFILE = Profile(profile=1, description="The sandbox's look at itself.", warm=0)

NO_WATCHDOG = "the kernel does not list children (CONFIG_PROC_CHILDREN), and no cgroup counts memory"
_INSTALL = "install bubblewrap 0.8 or newer: `apt install bubblewrap`, `dnf install bubblewrap`, `pacman -S bubblewrap`"
# How bubblewrap, or the kernel through it, says no: (what it says, the missing layer, what to do)
_REFUSALS: tuple[tuple[str, str, str], ...] = (
    (r"setting up uid map: Permission denied", "user-namespaces",
     "AppArmor forbids unprivileged user namespaces: add a profile for bwrap, or set "
     "kernel.apparmor_restrict_unprivileged_userns=0"),
    (r"setting up uid map: Operation not permitted", "user-namespaces",
     "the process may not map users (no CAP_SETFCAP in this container): run the gateway as an ordinary user"),
    (r"No permissions to creat(e|ing) new namespace|namespace failed: Operation not permitted", "user-namespaces",
     "user namespaces are forbidden (container seccomp profile, or kernel.unprivileged_userns_clone=0): allow them"),
    (r"nesting depth|ENOSPC|No space left on device", "user-namespaces",
     "user.max_user_namespaces is 0 or used up: raise it"),
    (r"Can't mount proc", "proc",
     "/proc is masked in this container: run it with an unmasked /proc (--security-opt systempaths=unconfined)"),
    (r"omni-spawner: user:", "own-uid",
     "the gateway is root but may not change its uid (no CAP_SETUID): run it as an ordinary user"),
    (r"omni-spawner: cgroup:", "cgroup", "it could not join its cgroup: check who may write its cgroup.procs"),
    (r"omni-spawner: (stage|sources):", "filesystem",
     "the interpreter or the package cannot be bound for the job's user"),
    (r"execvp .*: (Permission denied|No such file)", "interpreter",
     "the Python interpreter cannot be reached from a cell"),
    (r"no system call filter", "seccomp", "there is no system call filter for this processor"),
    (r"PR_SET_SECCOMP", "seccomp", "the kernel has no seccomp filters (CONFIG_SECCOMP_FILTER)"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Missing:
    """A layer that cannot be had, and what to do."""

    layer: str
    reason: str


def machine_fault() -> Missing | None:
    """Return what keeps jobs from running here in any way; nothing if it can be tried."""
    if platform.system() != "Linux":
        return Missing("platform", f"no sandbox on {platform.system()} yet; use Linux")
    try:
        ours = os.readlink("/proc/self")
    except OSError:
        return Missing("proc", "/proc is not mounted: `mount -t proc proc /proc`")
    if ours != str(os.getpid()):
        return Missing("proc", "/proc is that of another pid namespace: mount it anew (`unshare --mount-proc`)")
    return None


def find_bwrap() -> str | Missing:
    """Return the path of a bubblewrap that is new enough."""
    path = shutil.which("bwrap")
    if path is None:
        return Missing("bubblewrap", f"not installed; {_INSTALL}")
    try:
        text = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        return Missing("bubblewrap", f"{path} does not run ({error}); {_INSTALL}")
    numbers = re.search(r"(\d+)\.(\d+)", text)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < OLDEST_BWRAP:
        return Missing("bubblewrap", f"{path} is {text.strip() or 'of unknown version'}; {_INSTALL}")
    return os.path.realpath(path)


def explain_refusal(words: str) -> Missing:
    """Say which layer is missing, from what bubblewrap or our own helpers said."""
    for pattern, layer, fix in _REFUSALS:
        if re.search(pattern, words):
            return Missing(layer, f"{fix} [{words[-300:]}]")
    return Missing("start", f"a cell cannot be started: {words[-300:]}")


async def probe(pool: Pool, no_cgroups: NoCgroups | None, profile: Profile | None = None) -> Isolation:
    """Make one cell after the other, each asking for less, and report the first that stands as it should.

    Settles `pool.proc` and `pool.groups.hierarchy`. Never raises for what the machine lacks. The template of a
    *profile* that is given is kept for its first job.
    """
    missing: dict[str, str] = {}
    if no_cgroups is not None:
        missing["cgroup"] = no_cgroups.reason
    while True:
        report = await look(pool, profile or PROFILE, "selfcheck:report", {"secret_paths": list(_HOST_PATHS)})
        if not isinstance(report, Missing):
            if profile is None:
                await pool.drop_templates()
            return _judge(pool, report, missing)
        await pool.drop_templates()
        missing[report.layer] = report.reason
        if report.layer == "proc" and pool.proc:
            pool.proc = False
        elif report.layer == "cgroup" and pool.groups.hierarchy is not None:
            pool.groups.hierarchy = None
        else:
            return Isolation(posture="none", missing=missing)


@dataclass(frozen=True, slots=True)
class Report:
    """What a look from inside has found: the layers that process 1 names, and what its job has seen."""

    layers: list[str]
    facts: JsonObject


async def look(pool: Pool, profile: Profile, function: str, arguments: JsonObject) -> Report | Missing:
    """Run one *function* of `sandbox/selfcheck.py` and return what it has seen, or what kept it from looking."""
    job = Job(profile="", function=function, arguments=arguments, limits=PROBE_LIMITS, bundled=True)
    try:
        async with pool.cell(profile, (), PROBE_LIMITS) as (cell, _):
            return _facts(await JobRun(cell, job).to_its_end(), cell.layers)
    except StartFailed as error:
        words = str(error)
        return Missing("cgroup", words) if words.startswith("cgroup:") else explain_refusal(words)


def _facts(outcome: Outcome, layers: Sequence[str]) -> Report | Missing:
    try:
        facts = orjson.loads(outcome.result)
    except orjson.JSONDecodeError:
        said = outcome.stderr.decode(errors="replace").strip()[-300:]
        return Missing(
            "start", f"the look from inside ended without an answer ({outcome.cause or said or 'no reason given'})"
        )
    if "error" in facts:
        return Missing("start", f"the look from inside failed: {facts['error']}")
    return Report([str(layer) for layer in (outcome.frame or {}).get("layers", layers)], facts)


def faults_of(facts: JsonObject, *, proc: bool) -> dict[str, str]:
    """Return for each layer that does not hold what was seen instead. Pure, so that each line has a test."""
    faults: dict[str, str] = {}

    def demand(layer: str, holds: bool, seen: object) -> None:
        if not holds:
            faults[layer] = f"seen from inside: {seen}"

    demand(
        "namespaces", facts["uid"] == INSIDE_UID and facts["pid"] == 1, {"uid": facts["uid"], "parent": facts["pid"]}
    )
    demand("filesystem", not facts["visible"] and not facts["root_writable"], facts["visible"] or "a writable root")
    demand("network", facts["interfaces"] in ([], ["lo"]), facts["interfaces"])
    demand("tmpfs-limits", facts["workspace_bytes"] == PROBE_LIMITS.disk_mib << 20, facts["workspace_bytes"])
    demand("rlimits", 0 < facts["processes"] <= PROBE_LIMITS.processes + 2, facts["processes"])
    demand("environment", not facts["outer_environment_readable"], "process 1 can be read")
    demand("descriptors", facts["descriptors"] in ([0, 1, 2], [0, 1, 2, 3]), facts["descriptors"])
    demand("seccomp", facts["new_user_namespace"] == "EPERM", facts["new_user_namespace"])
    if proc:
        nothing = {"0000000000000000"}
        demand("capabilities", {facts["capabilities"], facts["bounding"]} <= nothing, facts["capabilities"])
        demand("no-new-privileges", facts["no_new_privileges"] == "1", facts["no_new_privileges"])
        demand("seccomp", facts["seccomp"] == "2" and "seccomp" not in faults, facts["seccomp"])
    return faults


def _judge(pool: Pool, report: Report, missing: dict[str, str]) -> Isolation:
    faults = faults_of(report.facts, proc=pool.proc)
    if faults:
        return Isolation(posture="none", missing={**missing, **faults})
    pool.layers = frozenset(report.layers)  # from now on every cell is held to it
    layers = dict.fromkeys([*LAYERS, *report.layers])
    if pool.runs_as_others:
        layers["own-uid"] = None
    if pool.groups.hierarchy is not None:
        counted = pool.groups.hierarchy.controllers - {"cpuacct"}
        layers.update(dict.fromkeys(f"cgroup-{name}" for name in sorted(counted)))
        return Isolation(posture="full", layers=tuple(layers), missing=missing)
    if not children_are_listed():
        return Isolation(posture="none", layers=tuple(layers), missing={**missing, "watchdog": NO_WATCHDOG})
    return Isolation(posture="no-cgroup", layers=(*layers, "watchdog"), missing=missing)


def children_are_listed() -> bool:
    """Whether all processes of a job can be found from outside, to measure them together."""
    return Path(f"/proc/self/task/{os.getpid()}/children").exists()
