"""All probes, in the order of their groups."""

from __future__ import annotations

from tests.escape.probe import Probe
from tests.escape.probes import (
    cross_job,
    exports,
    files,
    kernel,
    life_time,
    namespaces,
    network,
    processes,
    resources,
    socket_memory,
    terminals,
    unix_sockets,
)

PROBES: tuple[Probe, ...] = (
    *files.PROBES, *processes.PROBES, *kernel.PROBES, *namespaces.PROBES, *network.PROBES, *unix_sockets.PROBES,
    *resources.PROBES, *life_time.PROBES, *exports.PROBES, *cross_job.PROBES,
    *socket_memory.PROBES, *terminals.PROBES,
)  # fmt: skip
BITING = tuple(probe for probe in PROBES if not probe.no_control)
GROUPS = tuple(dict.fromkeys(probe.group for probe in PROBES))
