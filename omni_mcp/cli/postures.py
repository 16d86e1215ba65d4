"""What each posture leaves open, in words for people: `doctor` and `sandbox show` print it."""

from __future__ import annotations

from omni_mcp.contracts.manifest import Posture

NOT_STOPPED: dict[Posture, str] = {
    "full": "a fault of the kernel itself; watching the machine's load",
    "no-cgroup": "as `full`, and: memory and CPU time are looked at every 100 ms, so several processes of a job can be "
    "over a limit for that long; files in its /tmp and workspace are not part of that sum",
    "landlock": "as `no-cgroup`, and: a job sees the host's processes and shares its process numbers, user and some "
    "kernel objects with other jobs; what of it stays behind is hunted down, not gone by itself",
    "none": "everything: whatever may run at all runs with the gateway's own rights",
}
BETTER: dict[Posture, str] = {
    "full": "",
    "no-cgroup": "let the gateway write a cgroup: run it as a systemd user service with Delegate=yes, or as root",
    "landlock": "allow user namespaces and install bubblewrap; what is missing is listed above",
    "none": "mend what is missing above; until then sandboxed tools are refused",
}
