"""Cgroups: hard caps on memory, processes and CPU that count all of a cell's processes together."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from omni_mcp.contracts.manifest import Limits
from omni_mcp.engines.sandbox.failures import CellStuck

PREFIX = "omni-cell-"
OWN_PROCESSES = 2  # our process 1, and one to spare: the limit that counts exactly is RLIMIT_NPROC
_REMOVE_TRIES = 500
_REMOVE_STEP_S = 0.01
_CPU_PERIOD_US = 100_000
_TCP_BYTES = 16 << 20  # of all sockets of a cell together
_NAME = re.compile(rf"^{PREFIX}(\d+)-(\d+)-[0-9a-f]+-\d+$")
_KERNEL_MEMORY_MIB = 16  # what the cell itself takes: bubblewrap, process 1, page tables


class Group(Protocol):
    """The cgroup of one cell."""

    @property
    def procs_files(self) -> list[str]:
        """Files to write a pid into; one per hierarchy."""
        ...

    def limit(self, limits: Limits, cpus: float) -> None:
        """Set what its processes may use together; it has no limit before."""
        ...

    def out_of_memory(self) -> bool:
        """Whether the kernel killed something in it for want of memory."""
        ...

    def forks_refused(self) -> bool: ...

    def peak_bytes(self) -> int: ...

    def cpu_s(self) -> float | None:
        """CPU time of all its processes so far; None where it is not counted."""
        ...

    def kill(self) -> None: ...

    def remove(self) -> bool:
        """Remove it; False while something in it is still dying."""
        ...


class Hierarchy(Protocol):
    """Where cells get their cgroups from."""

    controllers: frozenset[str]

    @property
    def prefixes(self) -> list[str]:
        """What the paths of all its groups, and of nobody else's, begin with."""
        ...

    def create(self, number: int) -> Group: ...

    def sweep(self) -> None:
        """Remove what gateways that have ended left behind."""
        ...


@dataclass(frozen=True, slots=True)
class NoCgroups:
    """Why there is none, and how to get one."""

    reason: str


def find_hierarchy(proc: Path = Path("/proc")) -> Hierarchy | NoCgroups:
    """Return what this process may create cgroups in: version 2 where it is delegated, else version 1."""
    own = _own_paths((proc / "self/cgroup").read_text())
    mounts = _mounts((proc / "self/mountinfo").read_text())
    unified = mounts.get("")
    if unified is not None and "" in own:
        place = _existing(unified, own[""])
        if {"memory", "pids"} <= set(_words(place / "cgroup.controllers")):
            return _delegated(place)
    places = {name: _existing(mounts[name], own[name]) for name in ("memory", "pids", "cpu", "cpuacct")
              if name in mounts and name in own}  # fmt: skip
    if not {"memory", "pids"} <= set(places):
        return NoCgroups("no memory and pids controller is in reach; with systemd: " + _HOW)
    refused = [str(places[name]) for name in ("memory", "pids") if not os.access(places[name], os.W_OK)]
    if refused:
        return NoCgroups(f"not writable: {', '.join(refused)}; with systemd: {_HOW}")
    return HierarchyV1({name: place for name, place in places.items() if os.access(place, os.W_OK)})


_HOW = "systemd-run --user --scope -p Delegate=yes omni-mcp serve"


async def remove_when_empty(group: Group) -> None:
    """Remove *group*, killing what may still be in it.

    Raises:
        CellStuck: a process in it does not die.
    """
    for _ in range(_REMOVE_TRIES):
        if await asyncio.to_thread(group.remove):  # takes a millisecond where there are four hierarchies
            return
        group.kill()
        await asyncio.sleep(_REMOVE_STEP_S)
    raise CellStuck("the cell's cgroup cannot be removed: a process in it does not die")


def _own_paths(text: str) -> dict[str, str]:
    """Parse /proc/self/cgroup: controller → path; the unified hierarchy has the empty name."""
    found = {}
    for line in text.splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            found[name] = path
    return found


def _mounts(text: str) -> dict[str, Path]:
    """Parse /proc/self/mountinfo: controller → mount point; the unified hierarchy has the empty name."""
    found: dict[str, Path] = {}
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        point = Path(before.split(" ")[4])
        if kind == "cgroup2":
            found.setdefault("", point)
        elif kind == "cgroup":
            for name in options.split(","):
                found.setdefault(name, point)
    return found


def _existing(mount: Path, own: str) -> Path:
    """Return our own cgroup below *mount*; the mount itself where a container hides the rest of the path."""
    place = mount / own.lstrip("/")
    return place if place.is_dir() else mount


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _write(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _read_counter(path: Path, key: str | None = None) -> int | None:
    """Return the number in a file, or the one after *key* in a flat keyed file."""
    words = _words(path)
    if key is None:
        return int(words[0]) if words and words[0].isdigit() else None
    pairs = dict(zip(words[::2], words[1::2], strict=False))
    return int(pairs[key]) if key in pairs else None


def _start_time(pid: int) -> str | None:
    """Return when *pid* started, in clock ticks: with the pid it names a process for ever; None if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def _name_of_ours() -> str:
    """Return what the names of one hierarchy's cells begin with: unlike any other's, also in the same process."""
    return f"{PREFIX}{os.getpid()}-{_start_time(os.getpid())}-{os.urandom(4).hex()}"


def _kill_all(place: Path) -> None:
    for word in _words(place / "cgroup.procs"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(int(word), signal.SIGKILL)


def _removed(place: Path) -> bool:
    try:
        place.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _sweep(place: Path) -> None:
    for left in place.glob(f"{PREFIX}*"):
        parts = _NAME.match(left.name)
        if parts is not None and _start_time(int(parts.group(1))) != parts.group(2):
            _kill_all(left)
            _removed(left)


class GroupV1:
    """One directory per controller."""

    def __init__(self, places: dict[str, Path]) -> None:
        self._places = places

    def make(self) -> None:
        for place in set(self._places.values()):  # cpu and cpuacct are often mounted together
            place.mkdir()

    @property
    def procs_files(self) -> list[str]:
        return [str(place / "cgroup.procs") for place in self._places.values()]

    def limit(self, limits: Limits, cpus: float) -> None:
        places, memory = self._places, self._places["memory"]
        most = str((limits.memory_mib + _KERNEL_MEMORY_MIB) << 20)
        _write(memory / "memory.limit_in_bytes", most)
        if (memory / "memory.memsw.limit_in_bytes").exists():
            _write(memory / "memory.memsw.limit_in_bytes", most)
        if (memory / "memory.kmem.tcp.limit_in_bytes").exists():  # buffers of TCP are in an account of their own
            _write(memory / "memory.kmem.tcp.limit_in_bytes", str(_TCP_BYTES))
        _write(memory / "memory.swappiness", "0")  # else a bomb is slowed down and not stopped
        _write(places["pids"] / "pids.max", str(limits.processes + OWN_PROCESSES))
        if "cpu" in places:
            _write(places["cpu"] / "cpu.cfs_period_us", str(_CPU_PERIOD_US))
            _write(places["cpu"] / "cpu.cfs_quota_us", str(int(cpus * _CPU_PERIOD_US)))

    def out_of_memory(self) -> bool:
        return bool(_read_counter(self._places["memory"] / "memory.oom_control", "oom_kill"))

    def forks_refused(self) -> bool:
        return bool(_read_counter(self._places["pids"] / "pids.events", "max"))

    def peak_bytes(self) -> int:
        return _read_counter(self._places["memory"] / "memory.max_usage_in_bytes") or 0

    def cpu_s(self) -> float | None:
        if "cpuacct" not in self._places:
            return None
        used_ns = _read_counter(self._places["cpuacct"] / "cpuacct.usage")
        return None if used_ns is None else used_ns / 1e9

    def kill(self) -> None:
        _kill_all(self._places["pids"])

    def remove(self) -> bool:
        return sum(_removed(place) for place in self._places.values()) == len(self._places)  # each is tried


class HierarchyV1:
    """cgroup version 1, as root."""

    def __init__(self, places: dict[str, Path]) -> None:
        self._places = places
        self._name = _name_of_ours()
        self.controllers = frozenset(places)

    @property
    def prefixes(self) -> list[str]:
        return [f"{place / self._name}-" for place in self._places.values()]

    def create(self, number: int) -> Group:
        name = f"{self._name}-{number}"
        group = GroupV1({controller: place / name for controller, place in self._places.items()})
        try:
            group.make()
        except BaseException:
            group.remove()
            raise
        return group

    def sweep(self) -> None:
        for place in self._places.values():
            _sweep(place)


class GroupV2:
    """One directory."""

    def __init__(self, place: Path, *, counts_cpu: bool) -> None:
        self._place = place
        self._counts_cpu = counts_cpu

    @property
    def procs_files(self) -> list[str]:
        return [str(self._place / "cgroup.procs")]

    def limit(self, limits: Limits, cpus: float) -> None:
        place = self._place
        _write(place / "memory.max", str((limits.memory_mib + _KERNEL_MEMORY_MIB) << 20))
        if (place / "memory.swap.max").exists():
            _write(place / "memory.swap.max", "0")
        _write(place / "memory.oom.group", "1")  # else one child dies and the job idles on
        _write(place / "pids.max", str(limits.processes + OWN_PROCESSES))
        if self._counts_cpu:
            _write(place / "cpu.max", f"{int(cpus * _CPU_PERIOD_US)} {_CPU_PERIOD_US}")

    def out_of_memory(self) -> bool:
        return bool(_read_counter(self._place / "memory.events", "oom_kill"))

    def forks_refused(self) -> bool:
        return bool(_read_counter(self._place / "pids.events", "max"))

    def peak_bytes(self) -> int:
        return _read_counter(self._place / "memory.peak") or 0

    def cpu_s(self) -> float | None:
        used_us = _read_counter(self._place / "cpu.stat", "usage_usec")
        return None if used_us is None else used_us / 1e6

    def kill(self) -> None:
        try:
            _write(self._place / "cgroup.kill", "1")
        except OSError:  # before Linux 5.14
            _kill_all(self._place)

    def remove(self) -> bool:
        return _removed(self._place)


class HierarchyV2:
    """cgroup version 2, delegated to this process's user."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._name = _name_of_ours()
        self.controllers = frozenset(_words(place / "cgroup.subtree_control"))

    @property
    def prefixes(self) -> list[str]:
        return [f"{self._place / self._name}-"]

    def create(self, number: int) -> Group:
        place = self._place / f"{self._name}-{number}"
        place.mkdir()
        return GroupV2(place, counts_cpu="cpu" in self.controllers)

    def sweep(self) -> None:
        _sweep(self._place)


def _delegated(place: Path) -> Hierarchy | NoCgroups:
    """Switch the controllers on for our children.

    A cgroup that has controllers for children may hold no process itself, so the gateway moves into a leaf of its
    own; where other processes share its cgroup that is not for us to change.
    """
    wanted = {"memory", "pids", "cpu"} & set(_words(place / "cgroup.controllers"))
    try:
        if not wanted <= set(_words(place / "cgroup.subtree_control")):
            strangers = set(_words(place / "cgroup.procs")) - {str(os.getpid())}
            if strangers:
                return NoCgroups(f"{place} holds other processes too; with systemd: {_HOW}")
            leaf = place / "omni-gateway"
            leaf.mkdir(exist_ok=True)
            _write(leaf / "cgroup.procs", str(os.getpid()))
            _write(place / "cgroup.subtree_control", " ".join(f"+{name}" for name in sorted(wanted)))
    except OSError as error:
        return NoCgroups(f"{place} is not delegated to this user ({error.strerror}); with systemd: {_HOW}")
    return HierarchyV2(place)
