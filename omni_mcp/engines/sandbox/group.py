"""Group: the cgroup of one cell, which counts all its processes together; Hierarchy: where it comes from."""

from __future__ import annotations

from typing import Protocol

from omni_mcp.contracts.manifest import Limits

OWN_PROCESSES = 1  # our process 1
KERNEL_MEMORY_MIB = 16  # what the cell itself takes: bubblewrap, process 1, page tables
CPU_PERIOD_US = 100_000


class Group(Protocol):
    """The cgroup of one cell, or of one template."""

    @property
    def doors(self) -> list[str]:
        """Files, one for each hierarchy: a process with a single thread joins by writing "0" to each of them."""
        ...

    def entrances(self) -> list[int]:
        """Return open descriptors of its doors, which are the group's own: it is the opener's right that counts.

        Raises:
            OSError: this process has no room for them.
        """
        ...

    def limit(self, limits: Limits, cpus: float) -> None:
        """Set what its processes may use together; before it has no limit, or those of its last cell."""
        ...

    def out_of_memory(self) -> bool:
        """Whether the kernel killed something in it for want of memory."""
        ...

    def over_memory(self, more_bytes: int) -> bool:
        """Whether it is over its limit with what the kernel ends nothing for, and with *more_bytes* in no account.

        Copies of files do not count: they fill whatever room there is, and go when it is wanted.
        """
        ...

    def forks_refused(self) -> bool: ...

    def peak_bytes(self) -> int: ...

    def cpu_s(self) -> float | None:
        """CPU time of all its processes so far; None where it is not counted."""
        ...

    def kill(self) -> None: ...

    def renew(self) -> bool:
        """Make it fit for one more cell; False if it cannot be: what one job leaves there must not reach the next."""
        ...

    def remove(self) -> bool:
        """Remove it; False while something in it is still dying."""
        ...


class Hierarchy(Protocol):
    """Where cells get their cgroups from."""

    controllers: frozenset[str]
    renews: bool  # whether its groups can serve one cell after another

    @property
    def prefixes(self) -> list[str]:
        """What the paths of all its groups, and of nobody else's, begin with."""
        ...

    def create(self, number: int) -> Group: ...

    def sweep(self) -> None:
        """Remove what gateways that have ended left behind."""
        ...
