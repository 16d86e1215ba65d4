"""A grant file is one small commented permit, with a name that follows from what it allows."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from omni_mcp.contracts.policy import Action
from omni_mcp.engines.policy.request import RESOURCE_TYPE, escape

_PLAIN = re.compile(r"[^A-Za-z0-9_.-]+")
TargetKind = Literal["entry", "server"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantSpec:
    """Who may do what. Empty fields do not narrow; `target` is `server__name`, or a server's name."""

    target: str
    kind: TargetKind = "entry"
    action: Action = "call_tool"
    agent: str = ""
    user: str = ""
    project: str = ""
    read_only: bool = False

    @property
    def id(self) -> str:
        """The rule's id and, with `.cedar`, its file: the same grant always has the same name."""
        parts = ["allow", "" if self.action == "call_tool" else self.action, self.agent, self.user, self.project]
        parts += [self.target + ("__all" if self.kind == "server" else ""), "read-only" if self.read_only else ""]
        exact = "-".join(part for part in parts if part)
        plain = _PLAIN.sub("_", exact)[:90]
        # Two different grants must not share a file, so the name also holds a piece of the hash of what it allows.
        return f"{plain}-{hashlib.sha256(repr(self).encode()).hexdigest()[:6]}"

    @property
    def file_name(self) -> str:
        """The name of its file."""
        return f"{self.id}.cedar"

    def text(self) -> str:
        """Return the rule as Cedar text."""
        head = f"principal{_same('Agent', self.agent) if self.agent else _same('User', self.user) if self.user else ''}"
        whole = f'resource in Omni::Server::"{escape(self.target)}"'
        one = f'resource == {RESOURCE_TYPE[self.action]}::"{escape(self.target)}"'
        conditions = []
        if self.agent and self.user:
            conditions.append(f'principal.owner == Omni::User::"{escape(self.user)}"')
        if self.project:
            conditions.append(f'principal in Omni::Project::"{escape(self.project)}"')
        if self.read_only:
            conditions.append("resource.read_only")
        when = f"\nwhen {{ {' && '.join(conditions)} }}" if conditions else ""
        action = f'action == Omni::Action::"{self.action}"'
        resource = whole if self.kind == "server" else one
        return f'@id("{self.id}")\npermit (\n  {head},\n  {action},\n  {resource}\n){when};\n'

    def command(self) -> str:
        """Return the command that writes it."""
        words = ["omni-mcp", "allow", _quoted(self.target)]
        words += ["--server"] if self.kind == "server" else []
        words += [f"--kind {self.action.rpartition('_')[2]}"] if self.action != "call_tool" else []
        words += self._who()
        words += ["--read-only"] if self.read_only else []
        return " ".join(words)

    def standing_command(self, hosts: Sequence[str] = ()) -> str:
        """Return the command that gives a standing grant for the same callers, tools and *hosts*, for a week."""
        target = self.target + ("__*" if self.kind == "server" else "")
        reaching = [f"--host {_quoted(host)}" for host in hosts]
        words = ["omni-mcp", "approvals", "grant", _quoted(target), *self._who(), *reaching, "--expires", "7d"]
        return " ".join(words)

    def _who(self) -> list[str]:
        given = (("--to", self.agent), ("--user", self.user), ("--project", self.project))
        return [f"{option} {_quoted(value)}" for option, value in given if value]

    def sentence(self) -> str:
        """Say in words what it allows."""
        who = f"agent {self.agent!r}" if self.agent else f"user {self.user!r}" if self.user else "every client"
        who += f" of user {self.user!r}" if self.agent and self.user else ""
        who += f" in project {self.project!r}" if self.project else ""
        verb = {"call_tool": "call", "read_resource": "read", "get_prompt": "get"}[self.action]
        what = f"everything of server {self.target!r}" if self.kind == "server" else f"{self.target!r}"
        return f"{who} may {verb} {what}{' as long as it only reads' if self.read_only else ''}"


def _same(kind: str, name: str) -> str:
    return f' == Omni::{kind}::"{escape(name)}"'


def _quoted(text: str) -> str:
    return text if re.fullmatch(r"[\w@%+=:,./-]+", text, re.ASCII) else "'" + text.replace("'", "'\\''") + "'"
