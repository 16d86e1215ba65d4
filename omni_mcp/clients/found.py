"""A server as it stands in a client's file, read but not yet turned into a definition of ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from omni_mcp.clients.places import Place
from omni_mcp.clients.template import Template
from omni_mcp.contracts.errors import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """Something that a client asks a person for (VS Code, `inputs`)."""

    id: str
    description: str = ""
    secret: bool = True
    default: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundServer:
    """One entry. Values may be secrets, so they stay out of `repr`. `notes` say what is not taken over."""

    name: str
    place: Place
    command: Template | None = field(default=None, repr=False)
    args: tuple[Template, ...] = field(default=(), repr=False)
    env: Mapping[str, Template] = field(default_factory=dict, repr=False)
    cwd: Template | None = None
    url: Template | None = field(default=None, repr=False)
    headers: Mapping[str, Template] = field(default_factory=dict, repr=False)
    transport: Literal["auto", "http", "sse"] = "auto"
    enabled: bool = True
    timeout_s: float | None = None
    inputs: Mapping[str, Input] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()

    @property
    def origin(self) -> str:
        """Where it comes from, for people."""
        return f"{self.place.label}: {self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NotTaken:
    """An entry that is not understood; it stays where it is."""

    name: str
    place: Place
    reason: str
    line: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What one file said: servers, entries that are not understood, and faults of the file itself. `readable` is
    whether it could be read as a whole; `own` are the entries that lead to this gateway, name to command; "" for a URL.
    """

    place: Place
    exists: bool
    readable: bool = True
    servers: tuple[FoundServer, ...] = ()
    own: Mapping[str, str] = field(default_factory=dict)
    not_taken: tuple[NotTaken, ...] = ()
    problems: tuple[Problem, ...] = ()
