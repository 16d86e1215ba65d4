"""Snapshot: how a gateway stands at one moment, for `status` and `doctor`."""

from __future__ import annotations

from collections.abc import Sequence

from omni_mcp.contracts.json import JsonObject
from omni_mcp.paths import Home
from omni_mcp.running.engines import Engines


def snapshot(
    engines: Engines, home: Home, *, open_calls: int, is_draining: bool, sessions: int,
    at_next_start: Sequence[str], executors: Sequence[JsonObject],
) -> JsonObject:  # fmt: skip
    """Return what waits, what is in force, and what is wrong.

    Args:
        at_next_start: settings that were edited and are not in force yet.
        executors: which executor serves each binding, and why.
    """
    problems = engines.reports.problems
    return {
        "draining": is_draining,
        "open_calls": open_calls,
        "pending_approvals": engines.desk.pending,
        "standing_grants": len(engines.desk.standing),
        "sessions": sessions,
        "policy": {
            "version": engines.policy.version,
            "rules": len(engines.policy.rules.rules) if engines.policy.rules else 0,
            "denies_all": engines.policy.rules is None,
            "problems": [*map(str, engines.policy.problems), *problems.get("policy", ())],
        },
        "catalog": {
            "version": engines.catalog.version,
            "tools": sum(entry.kind == "tool" for entry in engines.catalog.all_entries()),
            "refused": list(engines.catalog.refused),
            "waiting": engines.behind.waiting,
            "lock_problems": list(problems.get("lockfile", ())),
            "problems": list(problems.get("manifests", ())),
        },
        "settings": {
            "problems": list(problems.get("settings", ())),
            "at_next_start": list(at_next_start),
            "servers": list(problems.get("servers", ())),
        },
        "isolation": engines.sandbox.isolation().as_json(),
        "cells": engines.sandbox.held(),
        "servers": engines.behind.facts(),
        "paused": engines.behind.paused(),
        "plugins": engines.plugins.facts(),
        "executors": list(executors),
        "log": {
            "file": str(home.log_file),
            "run": engines.gateway_run,
            "healthy": engines.log.healthy,
            "problems": list(engines.log.problems),
        },
    }
