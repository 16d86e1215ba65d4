"""Watch: what the processes of a cell use, measured from outside through /proc: the stand-in where no cgroup counts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_COUNTED = ("RssAnon:", "RssShmem:", "VmPTE:")
_OWN_TIME, _REAPED_TIME, _BEGAN = slice(11, 13), slice(13, 15), 19  # proc_pid_stat(5), from the third field on

_REMEMBERED = 8192  # twice as many as a job may have at a time

Name = tuple[int, str]  # pid and when it began: no other process is called so


@dataclass(frozen=True, slots=True)
class Usage:
    """Of all processes together. Memory that several share is counted for each: too much, never too little."""

    memory_bytes: int = 0
    cpu_s: float = 0.0
    tasks: int = 0


class Watch:
    """Looks at all descendants of process 1 of a cell, which is ours and shares its memory with its template.

    `most` is the most of each that was seen so far.
    """

    def __init__(self, init_pid: int) -> None:
        self._init_pid = init_pid
        self._own: dict[Name, int] = {}  # of processes that were seen, also of those that are gone
        self._long_gone = 0
        self.most = Usage()

    def look(self) -> Usage:
        """Measure what lives now; of CPU time what can be known of those that are gone too.

        A parent has the time of a child that it waited for, and process 1 that of orphans. Nobody has the time of a
        child that nobody waits for, so what was last seen of each process is kept: the larger of both sums is told.
        """
        memory, tasks, reaped = 0, 0, _ticks(_stat(self._init_pid), _REAPED_TIME)
        alive: set[Name] = set()
        for pid in _family(self._init_pid)[1:]:
            memory += _memory_of(pid)
            tasks += len(_tasks(pid))
            stat = _stat(pid)
            if len(stat) > _BEGAN:
                own = _ticks(stat, _OWN_TIME)
                self._own[pid, stat[_BEGAN]] = own
                alive.add((pid, stat[_BEGAN]))
                reaped += own + _ticks(stat, _REAPED_TIME)
        self._remember_fewer(alive)
        seen = sum(self._own.values()) + self._long_gone
        now = Usage(memory, max(reaped, seen) / _TICKS_PER_S, tasks)
        most = self.most
        self.most = Usage(
            max(most.memory_bytes, now.memory_bytes), max(most.cpu_s, now.cpu_s), max(most.tasks, now.tasks)
        )
        return now

    def _remember_fewer(self, alive: set[Name]) -> None:
        """A server may have had any number of processes: of the first of them only the sum is kept."""
        while len(self._own) > _REMEMBERED:
            name = next(iter(self._own))
            ticks = self._own.pop(name)
            if name in alive:
                self._own[name] = ticks
            else:
                self._long_gone += ticks


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


def _stat(pid: int) -> list[str]:
    return _text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()


def _ticks(stat: list[str], which: slice) -> int:
    return sum(map(int, stat[which]))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # it has ended meanwhile
        return ""
