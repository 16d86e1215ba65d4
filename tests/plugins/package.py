"""A real small package: built as a wheel, installed by pip into a directory of its own, and found by its metadata."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

SHOUT = """\
manifest: 1
id: shout
version: 1.0.0
title: Shout
description: Return the text in capitals.
input_schema:
  type: object
  properties:
    text: {type: string}
  required: [text]
  additionalProperties: false
binding: {kind: sandbox_job, entry_point: "shouting:shout", posture: landlock}
side_effects: none
labels: {read_only: true, destructive: false, egress: false, reads_private: false, reads_untrusted: false}
golden:
  arguments: {text: abc}
  expect: {text: ABC}
"""
SHOUTING = '''\
"""Runs in a cell."""


def shout(arguments):
    return {"text": arguments["text"].upper()}
'''
INIT = 'raise RuntimeError("a package of tools is never imported by the gateway")\n'
ENGINE = """\
import asyncio
from contextlib import asynccontextmanager

from pydantic import BaseModel, ConfigDict

from omni_mcp.contracts.call import Answer
from omni_mcp.contracts.errors import Internal
from omni_mcp.contracts.ports import KeepsDeadlines


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")
    word: str = "ran"
    broken: str = ""


class Runs(KeepsDeadlines):
    def __init__(self, word):
        self._word = word

    async def execute(self, call):
        if call.tool is None:
            raise Internal("there is no tool")
        if call.arguments.get("text") == "burst":
            raise ZeroDivisionError("a fault of the plugin")
        if call.arguments.get("text") == "hang":
            await asyncio.Event().wait()
        text = f"{self._word}: {call.tool.name}"
        return Answer(body={"content": [{"type": "text", "text": text}], "isError": False}, where="remote")


class Plugin:
    binding = "sandbox_job"
    priority = 0
    settings = Settings

    @asynccontextmanager
    async def open(self, settings):
        if settings.broken == "open":
            raise OSError("no room")
        yield Runs(settings.word)
        if settings.broken == "close":
            raise OSError("stuck")


plugin = Plugin()
closed = type("Closed", (Plugin,), {"binding": "inproc_safe"})()
"""
POINTS = """\
[omni_mcp.tools]
acme = acme_tools:manifests
acme-empty = acme_tools:nothing
acme-inner = acme_tools.inner:manifests

[omni_mcp.executors]
acme-engine = acme_engine:plugin
acme-closed = acme_engine:closed
acme-gone = acme_engine:not_there
"""
FILES = {
    "acme_tools/__init__.py": INIT,
    "acme_tools/manifests/shout.yaml": SHOUT,
    "acme_tools/manifests/shouting.py": SHOUTING,
    "acme_tools/nothing/readme.txt": "",
    "acme_engine.py": ENGINE,
}


def install(into: Path, *, version: str = "1.0", changes: Mapping[str, str] | None = None) -> Path:
    """Build the package and have pip install it, without any index; returns the directory that belongs on the path."""
    wheel = into / f"acme_tools-{version}-py3-none-any.whl"
    info = f"acme_tools-{version}.dist-info"
    files = {
        **FILES,
        **(changes or {}),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: acme-tools\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": POINTS,
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr(
            f"{info}/RECORD", "".join(_row(name, text) for name, text in files.items()) + f"{info}/RECORD,,\n"
        )
    place = into / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--upgrade"]
    subprocess.run([*command, "--disable-pip-version-check", "--target", str(place), str(wheel)], check=True)
    return place


def _row(name: str, text: str) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
    return f"{name},sha256={digest},{len(text.encode())}\n"
