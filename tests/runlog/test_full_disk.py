"""On a disk without a byte left texts can still be erased: there is a reserve for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from omni_mcp.engines.runlog.reserve import RESERVE_BYTES, RESERVE_FILE, Reserve
from tests.runlog.conftest import Place, new_run

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")
ON_A_SMALL_DISK = """
import asyncio, errno, os, sys
from pathlib import Path
from click.testing import CliRunner
from omni_mcp.cli.root import cli
from omni_mcp.contracts.errors import LogUnavailable
from omni_mcp.engines.runlog.reserve import Reserve
from omni_mcp.engines.artifacts.blobs import BlobStore
from tests.runlog.conftest import Place, new_run, said

place = Place(Path(sys.argv[1]))
data = place.file.parent
kept = sys.argv[2] == "with-reserve"

def fill():
    with open(place.directory / "filler", "wb", buffering=0) as filler:
        for size in (65536, 4096):
            try:
                while True:
                    filler.write(bytes(size))
            except OSError as error:
                assert error.errno == errno.ENOSPC

def command(*words):
    done = CliRunner(env={"OMNI_HOME": str(place.directory)}).invoke(cli, words)
    print(words[0], done.exit_code, done.output.strip().replace("\\n", " "), flush=True)

async def main():
    async with place.open() as log:
        for _ in range(3):
            run = await new_run(log)
            for _ in range(12):
                await log.append(run, said("w" * 50_000)).durable()
        BlobStore(data / "artifacts").close()
        if not kept:
            os.unlink(data / "reserve")
        fill()
        refused = 0
        for _ in range(200):
            try:
                await log.append(run, said("x" * 100_000)).durable()
            except LogUnavailable:
                refused += 1
        print("refused", refused > 0, flush=True)
        command("erase", "--run", "last", "--yes")
        fill() if not kept else None
        command("retention", "run", "--older-than", "0s")
    os.unlink(place.directory / "filler")
    command("audit", "verify")
    Reserve(data).hold()
    print("held", Reserve(data).held)

asyncio.run(main())
"""


def _on_a_small_disk(directory: Path, how: str) -> dict[str, str]:
    """Run the story on a file system of 16 MiB in a namespace of its own; returns its lines by their first word."""
    mount = f"mount -t tmpfs -o size=16m,mode=700 tmpfs {directory} && exec {sys.executable} - {directory} {how}"
    done = subprocess.run(
        [*NAMESPACE, "sh", "-c", mount], input=ON_A_SMALL_DISK, capture_output=True, text=True, cwd=ROOT, timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)


@pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode != 0,
    reason="no namespace in which a small file system can be mounted",
)
def test_on_a_full_disk_a_run_is_erased_and_retention_works(tmp_path: Path) -> None:
    lines = _on_a_small_disk(tmp_path, "with-reserve")
    assert lines["refused"] == "True"
    assert lines["erase"].startswith("0 erased")
    assert lines["retention"].startswith("0 erased")
    assert lines["audit"].startswith("0") and "events were erased" in lines["audit"]
    assert lines["held"] == "True"


@pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode != 0,
    reason="no namespace in which a small file system can be mounted",
)
def test_without_the_reserve_that_fails_and_changes_nothing(tmp_path: Path) -> None:
    lines = _on_a_small_disk(tmp_path, "without-reserve")
    assert lines["refused"] == "True"
    assert lines["erase"].startswith("1 ")
    assert lines["audit"].startswith("0")


async def test_a_start_makes_the_reserve_and_an_erasure_has_its_room(place: Place) -> None:
    async with place.open() as log:
        await new_run(log)
        file = place.file.parent / RESERVE_FILE
        assert file.stat().st_size == RESERVE_BYTES and file.stat().st_blocks * 512 >= RESERVE_BYTES
        assert file.stat().st_mode & 0o077 == 0
        reserve = Reserve(place.file.parent)
        with pytest.raises(RuntimeError), reserve.released():
            assert not reserve.held
            raise RuntimeError
        assert reserve.held


def test_a_reserve_that_cannot_be_made_is_told_and_leaves_nothing_behind(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    assert "no room could be reserved" in Reserve(directory).hold()
    directory.mkdir()
    (directory / RESERVE_FILE).symlink_to(tmp_path / "elsewhere")
    assert "no room could be reserved" in Reserve(directory).hold()
    assert not (tmp_path / "elsewhere").exists()
