"""What happens to the gateway itself goes on record in its own run: reloads, and files that were refused."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from omni_mcp.contracts.errors import Problem
from omni_mcp.contracts.events import CatalogChanged, ConfigRejected, PolicyChanged, draft
from omni_mcp.contracts.manifest import Closed
from omni_mcp.contracts.ports import RunLog

PROBLEMS_SHOWN = 20


class Reports:
    """Keeps the problems that are not mended yet, and writes each change down once."""

    def __init__(self, log: RunLog, gateway_run: str) -> None:
        self._log = log
        self._run = gateway_run
        self._open: dict[str, tuple[str, ...]] = {}
        self._say = structlog.get_logger("omni_mcp")

    @property
    def problems(self) -> dict[str, tuple[str, ...]]:
        """What is refused now: `policy`, `manifests`, `settings` to their problems."""
        return dict(self._open)

    def stands(self, what: str, problems: Sequence[Problem] = ()) -> None:
        """Say how files are that were read: good, or refused for *problems*; then the last good one stays in force."""
        texts = tuple(str(problem) for problem in problems[:PROBLEMS_SHOWN])
        if self._open.get(what, ()) == texts:
            return
        if not texts:
            del self._open[what]
            self._say.info("mended", what=what)
            return
        self._open[what] = texts
        self._append(ConfigRejected.model_validate({"what": what, "problems": texts}))
        self._say.error("refused; the last good one stays in force", what=what, problems=texts)

    def policy_changed(self, version: str, previous: str, rules: int) -> None:
        """Another policy version is in force."""
        self._append(PolicyChanged(policy_version=version, previous=previous, rules=rules))
        self._say.info("policy in force", version=version, rules=rules)

    def catalog_changed(
        self, version: str, added: tuple[str, ...], changed: tuple[str, ...], removed: tuple[str, ...]
    ) -> None:
        """Definitions were added, changed or removed."""
        self._append(CatalogChanged(catalog_version=version, added=added, changed=changed, removed=removed))
        self._say.info("catalog changed", added=len(added), changed=len(changed), removed=len(removed))

    def _append(self, payload: Closed) -> None:
        self._log.append(self._run, draft(payload, actor="gateway"))
