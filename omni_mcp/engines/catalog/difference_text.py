"""A difference as lines for a terminal: what was added first, every hidden character written out."""

from __future__ import annotations

import json
from collections.abc import Iterator

from omni_mcp.contracts.json import JsonValue
from omni_mcp.engines.catalog.difference import Difference
from omni_mcp.engines.catalog.difference_characters import shown
from omni_mcp.engines.catalog.difference_finding import Finding
from omni_mcp.engines.catalog.difference_schema import Change

VALUE_LIMIT = 400


def difference_lines(found: Difference) -> list[str]:
    """Return the changes and the findings, a line each; nothing in them acts on a terminal."""
    lines = [line for change in found.changes for line in _change_lines(change)]
    return lines + [_finding_line(finding) for finding in found.findings]


def definition_lines(found: Difference) -> list[str]:
    """Return the whole new definition as JSON, hidden characters written out."""
    return [shown(line) for line in json.dumps(found.new, indent=2, ensure_ascii=False).split("\n")]


def one_line(text: str) -> str:
    """Return *text* without anything that acts on a terminal, begins a line of its own or cannot be seen."""
    return shown(text).replace("\n", "\\n").replace("\t", " ")


def _finding_line(finding: Finding) -> str:
    what = f"{finding.severity}: {finding.rule.replace('_', ' ')} at {finding.path}"
    return "! " + one_line(f"{what}: {finding.excerpt}" if finding.excerpt else what)


def _change_lines(change: Change) -> Iterator[str]:
    mark = "+" if change.widens else "~"
    yield f"{mark} {change.kind.replace('_', ' ')} at {one_line(change.path)}"
    if change.added:
        yield from (f"    + {one_line(sentence)}" for sentence in change.added)
        return
    if change.before is not None:
        yield f"    before: {_value(change.before)}"
    if change.after is not None:
        yield f"    now:    {_value(change.after)}"


def _value(value: JsonValue) -> str:
    text = shown(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= VALUE_LIMIT else f"{text[:VALUE_LIMIT]}… ({len(text)} characters)"
