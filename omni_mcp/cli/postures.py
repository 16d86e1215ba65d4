"""What each posture leaves open and what would be better, in words for people: `doctor` and `sandbox show` print it."""

from __future__ import annotations

import tomllib

from omni_mcp.contracts.manifest import Posture
from omni_mcp.contracts.sandbox import POSTURES
from omni_mcp.paths import bundled


def _not_stopped() -> dict[Posture, str]:
    """Read the sentences that are kept beside the code of the wall; without the last full stop."""
    said = tomllib.loads((bundled("sandbox") / "not_stopped.toml").read_text(encoding="utf-8"))
    return {posture: " ".join(said[posture]).removesuffix(".") for posture in POSTURES}


NOT_STOPPED = _not_stopped()
BETTER: dict[Posture, str] = {
    "full": "",
    "no-cgroup": "let the gateway write a cgroup: run it as a systemd user service with Delegate=yes, or as root",
    "landlock": "allow user namespaces and install bubblewrap; what is missing is listed above",
    "none": "mend what is missing above; until then sandboxed tools are refused",
}
