"""A home that a gateway has worked in, the commands over it, and what somebody can do to a pack."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner, Result

from omni_mcp.cli.root import cli
from omni_mcp.contracts.call import Answer, Call
from omni_mcp.contracts.events import RunEvent
from omni_mcp.contracts.json import JsonObject, canonical
from omni_mcp.engines.artifacts.blobs import BlobStore
from omni_mcp.engines.runlog.export import export
from omni_mcp.engines.runlog.pack import MANIFEST, SIGNATURE, SIGNED_AS, mark_of
from omni_mcp.engines.runlog.reader import LogReader
from omni_mcp.engines.runlog.signing import SigningKey, get_signing_key
from omni_mcp.engines.runlog.tar import TarWriter
from omni_mcp.paths import Home
from omni_mcp.testing import ALLOW_ALL, ANN, BOB, Canary, home_in, local_gateway

LARGE = "a long answer " * 6000
Files = dict[str, bytes]


@dataclass(frozen=True)
class Evidence:
    """One home after a gateway has closed: ann's run with a large answer and a refusal, and bob's run."""

    home: Home
    ann: str
    bob: str

    def omni(self, *words: str) -> Result:
        return CliRunner(env={"OMNI_HOME": str(self.home.config)}).invoke(cli, words)

    def json(self, *words: str, code: int = 0) -> Any:
        result = self.omni(*words, "--json")
        assert result.exit_code == code, result.output
        return orjson.loads(result.stdout)

    def events(self, run: str) -> list[RunEvent]:
        with LogReader(self.home.log_file) as log:
            return log.events(run)

    def pack(self, *runs: str) -> bytes:
        blobs = BlobStore(self.home.artifacts)
        try:
            key = get_signing_key(self.home.secrets)
            out = io.BytesIO()
            export(self.home.log_file, out, runs=runs or None, blobs=blobs, key=key)
            return out.getvalue()
        finally:
            blobs.close()


@pytest.fixture
async def evidence(tmp_path: Path) -> Evidence:
    """What `Evidence` says."""
    return await worked(tmp_path)


async def worked(directory: Path) -> Evidence:
    """Let a gateway work in *directory* and close it."""
    canary = Canary(directory / "touched")

    async def large(call: Call) -> Answer:
        return Answer(body={"content": [{"type": "text", "text": LARGE}], "isError": False}, where="remote")

    canary.tool("echo")
    canary.tool("large", large)
    async with local_gateway(ALLOW_ALL, canary=canary, directory=directory, cells=False) as here:
        runs = []
        for principal, word in ((ANN, "quince"), (BOB, "medlar")):
            async with here.client(principal=principal, version="2025-11-25") as client:
                assert client.run is not None
                runs.append(client.run)
                await client.call("canary__echo", {"word": word})
                if principal is ANN:
                    await client.call("canary__large")
                    await client.call("nobody__knows")
    return Evidence(home_in(directory), *runs)


def files_of(pack: bytes) -> Files:
    """Read a pack as anybody can."""
    with tarfile.open(fileobj=io.BytesIO(pack)) as archive:
        found = {}
        for member in archive.getmembers():
            content = archive.extractfile(member)
            assert content is not None
            found[member.name] = content.read()
        return found


def packed(files: Files) -> bytes:
    """Make a pack of anything, in the spelling of one."""
    out = io.BytesIO()
    archive = TarWriter(out)
    for name, content in files.items():
        archive.begin(name)
        out.write(content)
        archive.end()
    archive.close()
    return out.getvalue()


def fitted(files: Files, *, heads: bool = False, key: SigningKey | None = None) -> Files:
    """Make the manifest say what the files are now, as a careful forger would; with *key* it is signed again.

    *heads* also makes the heads fit the last events.
    """
    manifest: JsonObject = orjson.loads(files[MANIFEST])
    others = {name: content for name, content in files.items() if name not in (MANIFEST, SIGNATURE)}
    manifest["files"] = {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in others.items()
    }
    for run in manifest["runs"]:
        lines = others.get(f"runs/{run['run']}.jsonl", b"").splitlines(keepends=True)
        run["marks"] = base64.b64encode(b"".join(mark_of(line) for line in lines)).decode()
        if heads:
            run["count"], run["hash"] = len(lines), orjson.loads(lines[-1])["hash"]
    told = canonical(manifest) + b"\n"
    signature = files[SIGNATURE] if key is None else canonical(key.sign(SIGNED_AS, told).as_json()) + b"\n"
    return {**others, MANIFEST: told, SIGNATURE: signature}


def edited(files: Files, run: str, change: Callable[[list[bytes]], object]) -> Files:
    """Change the lines of a run's file."""
    name = f"runs/{run}.jsonl"
    lines = files[name].splitlines(keepends=True)
    change(lines)
    return {**files, name: b"".join(lines)}
