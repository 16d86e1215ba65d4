"""An operator's tool with a module of its own, from its files to its answer; run by root or by an ordinary user."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from omni_mcp.contracts.call import Call, ClientFacts, Principal
from omni_mcp.contracts.errors import OmniError
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.artifacts.store import open_artifacts
from omni_mcp.engines.catalog.manifests import ManifestDirectory, ManifestSource
from omni_mcp.engines.sandbox.cells import open_sandbox
from omni_mcp.engines.sandbox.executor import SandboxExecutor
from omni_mcp.engines.sandbox.profiles import load_profiles
from omni_mcp.engines.sandbox.workspaces import Workspaces
from omni_mcp.engines.secrets.masking import SecretMasker

MANIFEST = """\
manifest: 1
id: {id}
version: 1.0.0
title: Trial
description: A trial.
input_schema: {{type: object}}
binding: {{kind: sandbox_job, entry_point: "{entry_point}", workspace: {workspace}}}
side_effects: none
labels: {{read_only: true, destructive: false, egress: false, reads_private: false, reads_untrusted: false}}
"""
MODULE = """\
import os
def greet(arguments):
    return {"greeting": "hello " + arguments["name"], "file": __file__}
def close(arguments):
    os.mkdir("inner")
    os.chmod("inner", 0)
    os.chmod(".", 0)
    return {}
"""
IMPOSTOR = "def text_hash(arguments): return {'impostor': True}\n"


def place_files(directory: Path) -> None:
    """Write the manifests and modules as an operator would who trusts nobody: mode 0700 and 0600."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    files = {
        "greet.yaml": MANIFEST.format(id="greet", entry_point="own_tools:greet", workspace="none"),
        "close.yaml": MANIFEST.format(id="close", entry_point="own_tools:close", workspace="project"),
        "look.yaml": MANIFEST.format(id="look", entry_point="files:files_list", workspace="project"),
        "hash.yaml": MANIFEST.format(id="hash", entry_point="text:text_hash", workspace="none"),
        "own_tools.py": MODULE,
        "text.py": IMPOSTOR,
    }
    for name, text in files.items():
        (directory / name).touch(mode=0o600)
        (directory / name).write_text(text)


async def answer_of(executor: SandboxExecutor, entry: Entry, arguments: dict[str, Any]) -> Any:
    call = Call(
        id="c1", run="r1", principal=Principal(kind="User", id="ann"), client=ClientFacts(), kind="tool",
        name=entry.name, arguments=arguments, profile="default", tool=entry,
    )  # fmt: skip
    try:
        answer = await executor.execute(call)
    except OmniError as error:
        return {"code": error.code, "message": error.message, "detail": error.detail}
    return answer.body.get("structuredContent", answer.body["content"])


async def try_all(base: Path, sandbox_dir: Path) -> dict[str, Any]:
    """Return what each step answered, or the isolation that cannot be had."""
    manifests = base / "manifests"
    place_files(manifests)
    source = ManifestSource([ManifestDirectory(path=manifests)], code=sandbox_dir / "tools")
    tools = {entry.name: entry for entry in source.load()}
    profiles = load_profiles(sandbox_dir / "profiles")
    async with (
        open_sandbox(profiles=profiles, sandbox_dir=sandbox_dir) as sandbox,
        open_artifacts(base / "artifacts", SecretMasker({})) as artifacts,
    ):
        found: dict[str, Any] = {"isolation": sandbox.isolation().as_json()}
        if sandbox.isolation().posture == "none":
            return found
        executor = SandboxExecutor(sandbox, artifacts, Workspaces(base / "workspaces"))
        steps: dict[str, dict[str, Any]] = {"greet": {"name": "ann"}, "close": {}, "look": {}, "hash": {"text": "a"}}
        for step, arguments in steps.items():
            found[step] = await answer_of(executor, tools[step], arguments)
        (manifests / "own_tools.py").write_text(MODULE.replace("hello", "goodbye"))
        found["changed"] = await answer_of(executor, tools["greet"], {"name": "ann"})
        again = {entry.name: entry for entry in source.load()}
        found["reloaded"] = await answer_of(executor, again["greet"], {"name": "ann"})
        (manifests / "own_tools.py").unlink()
        found["removed"] = await answer_of(executor, again["greet"], {"name": "ann"})
    return found


def main(sandbox_dir: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="omni-t-") as base:
        print(json.dumps(asyncio.run(try_all(Path(base), sandbox_dir))))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
