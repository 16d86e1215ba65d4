"""What the cell writes: requests made by its own modules, in a process of their own, without sending them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omni_mcp.contracts.json import JsonObject
from omni_mcp.paths import bundled
from tests.openapi.world import document, operation, source_of

_WRITE = """
import json, sys
sys.path[:0] = sys.argv[1:3]
import openapi_request
from failure import ToolFailure
found = []
for plan, arguments in json.loads(sys.stdin.read()):
    try:
        asked = openapi_request.build(plan, arguments)
        found.append({"url": asked.url, "headers": asked.headers, "body": asked.body.decode("latin-1"), "error": ""})
    except ToolFailure as failure:
        found.append({"url": "", "headers": {}, "body": "", "error": str(failure)})
print(json.dumps(found))
"""


@dataclass(frozen=True, kw_only=True)
class Written:
    """One request, or why there is none."""

    url: str
    headers: dict[str, str]
    body: str
    error: str

    @property
    def target(self) -> str:
        return self.url.removeprefix("https://odd.example")


def write(cases: Sequence[tuple[JsonObject, Any]]) -> list[Written]:
    """Return what becomes of each (plan, arguments)."""
    places = [str(bundled("sandbox")), str(bundled("sandbox") / "tools")]
    done = subprocess.run(
        [sys.executable, "-I", "-c", _WRITE, *places], input=json.dumps(cases), text=True, capture_output=True,
        check=True, timeout=60, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    return [Written(**one) for one in json.loads(done.stdout)]


def plans_of(place: Path, paths: dict[str, Any], **settings: Any) -> dict[str, JsonObject]:
    """Return the plan of each operation of a document with these *paths*, by the tool's name."""
    source = source_of(place, document(paths), **settings)
    return {entry.name: source.plan_of(entry) or {} for entry in source.load()}


def plan_with(
    place: Path, *parameters: dict[str, Any], path: str = "/x", method: str = "get", **more: Any
) -> JsonObject:
    """Return the plan of one operation with these *parameters*."""
    (plan,) = plans_of(place, {path: {method: operation(*parameters, **more)}}).values()
    return plan
