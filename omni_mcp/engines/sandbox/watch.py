"""What a cell uses, measured from outside through /proc: the stand-in where no cgroup counts it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_COUNTED = ("RssAnon:", "RssShmem:", "VmPTE:")


@dataclass(frozen=True, slots=True)
class Usage:
    """Of all live processes together. Memory that several share is counted for each: too much, never too little."""

    memory_bytes: int
    cpu_s: float
    processes: int


def measure(init_pid: int) -> Usage:
    """Measure all descendants of process 1 of a cell, which is ours and shares its memory with its template."""
    memory, cpu, pids = 0, 0.0, _family(init_pid)[1:]
    for pid in pids:
        memory += _memory_of(pid)
        cpu += _cpu_of(pid)
    return Usage(memory, cpu, len(pids))


def _family(root_pid: int) -> list[int]:
    found, todo = [], [root_pid]
    while todo:
        pid = todo.pop()
        found.append(pid)
        for path in _tasks(pid):
            todo += [int(word) for word in _text(path / "children").split()]
    return found


def _tasks(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []


def _memory_of(pid: int) -> int:
    """Asked of its threads: the first of them may have ended, and then says nothing of the memory of the rest."""
    for task in _tasks(pid):
        counted = [line for line in _text(task / "status").splitlines() if line.startswith(_COUNTED)]
        if counted:
            return sum(int(line.split()[1]) for line in counted) * 1024
    return 0


def _cpu_of(pid: int) -> float:
    """Own time and that of reaped children."""
    fields = _text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return sum(int(word) for word in fields[11:15]) / _TICKS_PER_S if len(fields) > 15 else 0.0


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # it has ended meanwhile
        return ""
