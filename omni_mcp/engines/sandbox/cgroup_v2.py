"""Cgroups of version 2: each cell has one directory, which goes with it."""

from __future__ import annotations

import os
from pathlib import Path

from omni_mcp.contracts.manifest import Limits
from omni_mcp.engines.sandbox.cgroup_files import (
    Entrances,
    counter,
    file_cache_bytes,
    kill_all,
    name_of_ours,
    removed,
    sweep,
    words,
    write,
)
from omni_mcp.engines.sandbox.group import CPU_PERIOD_US, KERNEL_MEMORY_MIB, OWN_PROCESSES, Group


class GroupV2:
    """One directory."""

    def __init__(self, place: str, *, counts_cpu: bool) -> None:
        self._place = place
        self._counts_cpu = counts_cpu
        self._entrances = Entrances()

    @property
    def doors(self) -> list[str]:
        return [f"{self._place}/cgroup.procs"]

    def entrances(self) -> list[int]:
        return self._entrances.of(self.doors)

    def limit(self, limits: Limits, cpus: float) -> None:
        place = self._place
        write(f"{place}/memory.max", str((limits.memory_mib + KERNEL_MEMORY_MIB) << 20))
        if os.path.exists(f"{place}/memory.swap.max"):
            write(f"{place}/memory.swap.max", "0")
        write(f"{place}/memory.oom.group", "1")  # else one child dies and the job idles on
        write(f"{place}/pids.max", str(limits.processes + OWN_PROCESSES))
        if self._counts_cpu:
            write(f"{place}/cpu.max", f"{int(cpus * CPU_PERIOD_US)} {CPU_PERIOD_US}")

    def out_of_memory(self) -> bool:
        return bool(counter(f"{self._place}/memory.events", "oom_kill"))

    def over_memory(self, more_bytes: int) -> bool:
        if not more_bytes:
            return False
        limit = counter(f"{self._place}/memory.max")
        if limit is None:
            return False
        over = (counter(f"{self._place}/memory.current") or 0) + more_bytes - limit
        return over > 0 and over > file_cache_bytes(self._place)

    def forks_refused(self) -> bool:
        return bool(counter(f"{self._place}/pids.events", "max"))

    def peak_bytes(self) -> int:
        return counter(f"{self._place}/memory.peak") or 0

    def cpu_s(self) -> float | None:
        used_us = counter(f"{self._place}/cpu.stat", "usage_usec")
        return None if used_us is None else used_us / 1e6

    def kill(self) -> None:
        try:
            write(f"{self._place}/cgroup.kill", "1")
        except OSError:  # before Linux 5.14
            kill_all(self._place)

    def renew(self) -> bool:
        return False  # its counts of kills and refusals cannot begin anew

    def remove(self) -> bool:
        self._entrances.close()
        return removed(self._place)


class HierarchyV2:
    """cgroup version 2, delegated to this process's user."""

    renews = False

    def __init__(self, place: Path) -> None:
        self._place = place
        self._name = name_of_ours()
        self.controllers = frozenset(words(f"{place}/cgroup.subtree_control"))

    @property
    def prefixes(self) -> list[str]:
        return [f"{self._place / self._name}-"]

    def create(self, number: int) -> Group:
        place = f"{self._place / self._name}-{number}"
        os.mkdir(place)
        return GroupV2(place, counts_cpu="cpu" in self.controllers)

    def sweep(self) -> None:
        sweep(self._place)
