"""Which rule files name a server, and which of them `omni-mcp allow` or `add` wrote for it and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from omni_mcp.engines.policy.files import read_policy_files
from omni_mcp.paths import Home

_WRITTEN_BY = re.compile(r"^//.* Written by: omni-mcp allow (\S+)", re.MULTILINE)
_RULE = re.compile(r"\b(?:permit|forbid)\s*\(")  # one too many that is found keeps the file


def rules_naming(home: Home, server: str) -> list[Path]:
    """Return the operator's rule files that name *server*, or something of it.

    Raises:
        ConfigError: the rules cannot be read.
    """
    name = re.escape(server)
    named = re.compile(rf'"{name}(?:__[^"]*)?"')
    files = read_policy_files(home.policies) if home.policies.exists() else []
    return [home.policies / file.name for file in files if named.search(_without_comments(file.text))]


def for_it_alone(files: Iterable[Path], server: str) -> list[Path]:
    """Return those that a command wrote for *server* or something of it, and that hold no other rule."""
    return [file for file in files if _is_for(file.read_text(encoding="utf-8"), server)]


def _is_for(text: str, server: str) -> bool:
    found = _WRITTEN_BY.search(text)
    target = found[1].strip("'") if found else ""
    return len(_RULE.findall(_without_comments(text))) == 1 and (target == server or target.startswith(f"{server}__"))


def _without_comments(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("//"))
