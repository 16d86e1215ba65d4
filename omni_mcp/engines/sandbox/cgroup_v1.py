"""Cgroups of version 1: each cell has one directory for each controller, and the next cell has the same ones."""

from __future__ import annotations

import contextlib
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
    write,
)
from omni_mcp.engines.sandbox.group import CPU_PERIOD_US, KERNEL_MEMORY_MIB, OWN_PROCESSES, Group

_TCP_BYTES = 16 << 20  # of all sockets of a cell together
_START_CPU_US = CPU_PERIOD_US // 2  # of a period: what the last job had to do with may be a hundredth
_LEFT_BYTES = 2 << 20  # so much memory that is still charged for one job is little to the next

_KEPT_OPEN = (
    ("memory", "memory.oom_control", os.O_RDONLY),
    ("memory", "memory.usage_in_bytes", os.O_RDONLY),
    ("memory", "memory.max_usage_in_bytes", os.O_RDWR),
    ("pids", "pids.current", os.O_RDONLY),
    ("pids", "pids.events", os.O_RDONLY),
    ("cpuacct", "cpuacct.usage", os.O_RDWR),
    ("cpu", "cpu.cfs_quota_us", os.O_WRONLY),
)
_KEPT_OPEN_IF_THERE = ("memory", "memory.kmem.tcp.usage_in_bytes", os.O_RDONLY)


class GroupV1:
    """One directory per controller. Files that are looked at for each cell stay open: `remove` closes them."""

    def __init__(self, places: dict[str, str]) -> None:
        self._places = places
        self._memory, self._pids = places["memory"], places["pids"]
        self._written: dict[str | int, str] = {}
        self._entrances = Entrances()
        self._open: dict[str, int] = {}
        self._memory_limits: list[str] = []
        self._memory_bytes: int | None = None

    def make(self) -> None:
        """Make its directories, with what is the same for each cell."""
        for place in set(self._places.values()):  # cpu and cpuacct are often mounted together
            os.mkdir(place)
        names = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
        self._memory_limits = [file for name in names if os.path.exists(file := f"{self._memory}/{name}")]
        write(f"{self._memory}/memory.swappiness", "0")  # else a bomb is slowed down and not stopped
        tcp = f"{self._memory}/memory.kmem.tcp.limit_in_bytes"  # buffers of TCP are in an account of their own
        if os.path.exists(tcp):
            write(tcp, str(_TCP_BYTES))
        if "cpu" in self._places:
            write(f"{self._places['cpu']}/cpu.cfs_period_us", str(CPU_PERIOD_US))
        for controller, name, mode in _KEPT_OPEN:
            if controller in self._places:
                self._open[name] = os.open(f"{self._places[controller]}/{name}", mode | os.O_CLOEXEC)
        controller, name, mode = _KEPT_OPEN_IF_THERE
        with contextlib.suppress(FileNotFoundError):
            self._open[name] = os.open(f"{self._places[controller]}/{name}", mode | os.O_CLOEXEC)

    @property
    def doors(self) -> list[str]:
        # Not cgroup.procs: whoever writes there stops every fork, exec and exit of the machine for that moment.
        return [f"{place}/tasks" for place in dict.fromkeys(self._places.values())]

    def entrances(self) -> list[int]:
        return self._entrances.of(self.doors)

    def limit(self, limits: Limits, cpus: float) -> None:
        self._limit_memory((limits.memory_mib + KERNEL_MEMORY_MIB) << 20)
        self._set(f"{self._pids}/pids.max", str(limits.processes + OWN_PROCESSES))
        if "cpu" in self._places:
            self._set(self._open["cpu.cfs_quota_us"], str(int(cpus * CPU_PERIOD_US)))

    def out_of_memory(self) -> bool:
        return bool(counter(self._open["memory.oom_control"], "oom_kill"))

    def over_memory(self, more_bytes: int) -> bool:
        """Count the buffers of TCP in: their own limit only slows down, and lets each socket have its first 64 KiB."""
        more_bytes += self._buffer_bytes()
        if self._memory_bytes is None or not more_bytes:
            return False
        over = (counter(self._open["memory.usage_in_bytes"]) or 0) + more_bytes - self._memory_bytes
        return over > 0 and over > file_cache_bytes(self._memory)

    def forks_refused(self) -> bool:
        return bool(counter(self._open["pids.events"], "max"))

    def peak_bytes(self) -> int:
        return counter(self._open["memory.max_usage_in_bytes"]) or 0

    def cpu_s(self) -> float | None:
        if "cpuacct" not in self._places:
            return None
        used_ns = counter(self._open["cpuacct.usage"])
        return None if used_ns is None else used_ns / 1e9

    def kill(self) -> None:
        kill_all(self._pids)

    def renew(self) -> bool:
        """Begin all accounts anew; False if something is left in it, or charged to it, or if it met a limit.

        The limits stay, but for a small share of the processor: whoever runs the next job sets those that differ.
        """
        try:
            if counter(self._open["pids.current"]) != 0 or self.forks_refused() or self.out_of_memory():
                return False
            if self._left_bytes() > _LEFT_BYTES:
                return False
            write(self._open["memory.max_usage_in_bytes"], "0")
            if "cpuacct" in self._places:
                write(self._open["cpuacct.usage"], "0")
            if "cpu" in self._places:
                self._fill_up_time(self._open["cpu.cfs_quota_us"])
        except OSError:
            return False
        return True

    def remove(self) -> bool:
        if sum(removed(place) for place in self._places.values()) < len(self._places):  # each is tried
            return False
        self._entrances.close()
        kept, self._open = self._open, {}
        for descriptor in kept.values():
            os.close(descriptor)
        return True

    def _fill_up_time(self, quota: int) -> None:
        """Give the period's time again, by writing what is in force, or what the start of a cell needs at least."""
        last_us = int(self._written.get(quota, "-1"))
        now_us = last_us if last_us < 0 else max(last_us, _START_CPU_US)
        self._set_anyway(quota, str(now_us))

    def _left_bytes(self) -> int:
        """Return what is still charged; raises OSError if that cannot be told."""
        left = counter(self._open["memory.usage_in_bytes"])
        if left is None:
            raise OSError("there is no account of memory")
        return left + self._buffer_bytes()

    def _buffer_bytes(self) -> int:
        buffers = self._open.get("memory.kmem.tcp.usage_in_bytes")
        return (counter(buffers) or 0) if buffers is not None else 0

    def _limit_memory(self, most_bytes: int) -> None:
        """Set the limits of memory with and without swap: the one with must never be the lower one."""
        rises = self._memory_bytes is not None and most_bytes > self._memory_bytes
        for file in reversed(self._memory_limits) if rises else self._memory_limits:
            self._set(file, str(most_bytes))
        self._memory_bytes = most_bytes

    def _set(self, file: str | int, text: str) -> None:
        if self._written.get(file) != text:
            self._set_anyway(file, text)

    def _set_anyway(self, file: str | int, text: str) -> None:
        write(file, text)
        self._written[file] = text


class HierarchyV1:
    """cgroup version 1, as root."""

    renews = True

    def __init__(self, places: dict[str, Path]) -> None:
        self.places = places
        self._name = name_of_ours()
        self.controllers = frozenset(places)

    @property
    def prefixes(self) -> list[str]:
        return [f"{place / self._name}-" for place in self.places.values()]

    def create(self, number: int) -> Group:
        name = f"{self._name}-{number}"
        group = GroupV1({controller: f"{place}/{name}" for controller, place in self.places.items()})
        try:
            group.make()
        except BaseException:
            group.remove()
            raise
        return group

    def sweep(self) -> None:
        for place in self.places.values():
            sweep(place)
