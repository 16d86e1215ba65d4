"""Finding: one thing that the doctor looked at; Patient: what it looks at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from omni_mcp.config import Settings
from omni_mcp.contracts.errors import ConfigError
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.sandbox import Isolation
from omni_mcp.paths import Home

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at. `next` is what to do, empty where nothing has to be done."""

    name: str
    level: Level
    text: str
    next: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """What the checks look at."""

    home: Home
    settings: Settings | None
    settings_fault: ConfigError | None
    gateway: JsonObject
    isolation: Isolation


Check = Callable[[Patient], Iterator[Finding]]


def faults(name: str, error: ConfigError) -> Iterator[Finding]:
    """Yield what is wrong with a file, with its place."""
    for problem in error.problems:
        yield Finding(name=name, level="fail", text=str(problem), next="mend it there; until then it is not in force")
