"""Finds where this process may make cgroups: version 2 where it is delegated, else version 1."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from omni_mcp.engines.sandbox.cgroup_files import words, write
from omni_mcp.engines.sandbox.cgroup_v1 import HierarchyV1
from omni_mcp.engines.sandbox.cgroup_v2 import HierarchyV2
from omni_mcp.engines.sandbox.group import Hierarchy

_HOW = "systemd-run --user --scope -p Delegate=yes omni-mcp serve"


@dataclass(frozen=True, slots=True)
class NoCgroups:
    """Why there is none, and how to get one."""

    reason: str


def find_hierarchy(proc: Path = Path("/proc")) -> Hierarchy | NoCgroups:
    """Return what this process may create cgroups in."""
    own = _own_paths((proc / "self/cgroup").read_text())
    mounts = _mounts((proc / "self/mountinfo").read_text())
    unified = mounts.get("")
    if unified is not None and "" in own:
        place = _existing(unified, own[""])
        if {"memory", "pids"} <= set(words(f"{place}/cgroup.controllers")):
            return _delegated(place)
    places = {name: _existing(mounts[name], own[name]) for name in ("memory", "pids", "cpu", "cpuacct")
              if name in mounts and name in own}  # fmt: skip
    if not {"memory", "pids"} <= set(places):
        return NoCgroups("no memory and pids controller is in reach; with systemd: " + _HOW)
    refused = [str(places[name]) for name in ("memory", "pids") if not os.access(places[name], os.W_OK)]
    if refused:
        return NoCgroups(f"not writable: {', '.join(refused)}; with systemd: {_HOW}")
    return HierarchyV1({name: place for name, place in places.items() if os.access(place, os.W_OK)})


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


def _delegated(place: Path) -> Hierarchy | NoCgroups:
    """Switch the controllers on for our children.

    A cgroup that has controllers for children may hold no process itself, so the gateway moves into a leaf of its
    own; where other processes share its cgroup that is not for us to change.
    """
    wanted = {"memory", "pids", "cpu"} & set(words(f"{place}/cgroup.controllers"))
    try:
        if not wanted <= set(words(f"{place}/cgroup.subtree_control")):
            strangers = set(words(f"{place}/cgroup.procs")) - {str(os.getpid())}
            if strangers:
                return NoCgroups(f"{place} holds other processes too; with systemd: {_HOW}")
            leaf = place / "omni-gateway"
            leaf.mkdir(exist_ok=True)
            write(f"{leaf}/cgroup.procs", str(os.getpid()))
            write(f"{place}/cgroup.subtree_control", " ".join(f"+{name}" for name in sorted(wanted)))
    except OSError as error:
        return NoCgroups(f"{place} is not delegated to this user ({error.strerror}); with systemd: {_HOW}")
    return HierarchyV2(place)
