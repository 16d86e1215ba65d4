"""Whether jobs can run as plain process trees here, found out by running one that looks around."""

from __future__ import annotations

import errno
import os
import re

from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.sandbox import Isolation
from omni_mcp.engines.sandbox.pool import Pool
from omni_mcp.engines.sandbox.probe import NO_WATCHDOG, PROBE_LIMITS, PROFILE, Missing, children_are_listed, look

_CLOSED_PATHS = ("/etc/passwd", "/etc/shadow", "/etc", "/proc/self/status", "/proc/1/environ", "/var", "/", "/tmp")
_REFUSALS = (
    (r"has no Landlock", "the kernel has no Landlock (Linux 5.13), or it is switched off (boot parameter lsm=)"),
    (r"omni-spawner: exec: .*Permission denied|can't open file|No module named|Fatal Python error",
     "the Python interpreter or the package cannot be reached by the user that jobs run as: install them where "
     "everybody can read them"),
    (r"omni-spawner: user:", "the gateway is root but may not change its uid (no CAP_SETUID): run it as an ordinary "
     "user"),
    (r"no system call filter", "there is no system call filter for this processor"),
    (r"PR_SET_SECCOMP", "the kernel has no seccomp filters (CONFIG_SECCOMP_FILTER)"),
)  # fmt: skip


async def probe_plain(pool: Pool, missing: dict[str, str]) -> Isolation:
    """Run one job in *pool*, whose cells are plain process trees, and report what holds of what it should.

    Args:
        pool: made with a `PlainLauncher`.
        missing: why there are no namespaces.
    """
    report = await look(pool, PROFILE, "selfcheck:report_plain", {"closed_paths": list(_CLOSED_PATHS)})
    if isinstance(report, Missing):
        return Isolation(posture="none", missing={**missing, "landlock": _in_words(report.reason)})
    faults = plain_faults_of(report.facts, gateway_uid=os.geteuid(), alone=pool.runs_as_others)
    if not children_are_listed():
        faults["watchdog"] = NO_WATCHDOG
    if faults:
        return Isolation(posture="none", missing={**missing, **faults})
    layers = [*report.layers, *(["own-uid"] if pool.runs_as_others else []), "watchdog"]
    return Isolation(posture="landlock", layers=tuple(layers), missing=missing)


def _in_words(said: str) -> str:
    fix = next((fix for pattern, fix in _REFUSALS if re.search(pattern, said)), "")
    return f"{fix} [{said}]" if fix else said


def plain_faults_of(facts: JsonObject, *, gateway_uid: int, alone: bool) -> dict[str, str]:
    """Return for each layer that does not hold what was seen instead. Pure, so that each line has a test."""
    faults: dict[str, str] = {}

    def demand(layer: str, holds: bool, seen: object) -> None:
        if not holds:
            faults[layer] = f"seen from inside: {seen}"

    uids, limits = facts["uids"], facts["limits"]
    demand("own-uid", len(uids) == 1 and 0 not in uids and (gateway_uid in uids) is not alone, uids)
    demand("capabilities", facts["capabilities"] == 0, facts["capabilities"])
    demand("no-new-privileges", facts["no_new_privileges"] == 1, facts["no_new_privileges"])
    demand("seccomp", facts["seccomp"] == 2 and facts["new_user_namespace"] == errno.errorcode[errno.EPERM],
           [facts["seccomp"], facts["new_user_namespace"]])  # fmt: skip
    demand("no-sockets", not facts["sockets"], facts["sockets"])
    demand("landlock-files", not facts["readable"] and not facts["writable"], [*facts["readable"], *facts["writable"]])
    demand("workspace", facts["workspace_writable"], "the workspace cannot be written to")
    demand("descriptors", facts["descriptors"] == [0, 1, 2, 3], facts["descriptors"])
    demand("rlimits", _limited(limits, alone=alone), limits)
    return faults


def _limited(limits: JsonObject, *, alone: bool) -> bool:
    """The limit of processes counts on top of what else our user runs, unless nobody else is that user."""
    processes = int(limits["RLIMIT_NPROC"])
    exact = {
        "RLIMIT_DATA": PROBE_LIMITS.memory_mib << 20, "RLIMIT_FSIZE": PROBE_LIMITS.file_size_mib << 20,
        "RLIMIT_RTPRIO": 0, "RLIMIT_NICE": 0, "RLIMIT_CORE": 0,
    }  # fmt: skip
    bounded = processes > 0 and (not alone or processes <= PROBE_LIMITS.processes + 1)
    return bounded and {name: limits[name] for name in exact} == exact
