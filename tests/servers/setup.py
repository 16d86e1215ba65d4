"""uv, which runs Python servers from the package index, installed once into a directory that git ignores."""

from __future__ import annotations

import argparse
import fcntl
import shutil
import subprocess
import sys
from pathlib import Path

CACHE = Path(__file__).resolve().parent.parent.parent / ".work" / "uv"
WANTED = "uv>=0.9,<1"
INSTALL_LIMIT_S = 300


class UvMissing(Exception):
    """There is no uv here; the message says why."""


def find_uvx(root: Path = CACHE) -> Path | None:
    """Return the installed `uvx`; never installs anything."""
    found = root / "bin" / "uvx"
    stamp = root / "installed"
    return found if stamp.is_file() and stamp.read_text() == WANTED and found.exists() else None


def install(root: Path = CACHE) -> Path:
    """Install what is missing and return `uvx`; several processes may call this at once.

    Raises:
        UvMissing: pip failed.
    """
    root.parent.mkdir(parents=True, exist_ok=True)
    with root.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ready = find_uvx(root)
        if ready is not None:
            return ready
        shutil.rmtree(root, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-compile", "--target", str(root), WANTED]
        try:
            end = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_LIMIT_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise UvMissing(f"pip took longer than {INSTALL_LIMIT_S} s") from error
        found = root / "bin" / "uvx"
        if end.returncode != 0 or not found.exists():
            raise UvMissing(f"pip could not install {WANTED} ({end.returncode}):\n{end.stderr[-2000:]}")
        (root / "installed").write_text(WANTED)
        return found


def main() -> int:
    """Install, and print where `uvx` is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=CACHE, help="where to install (default: %(default)s)")
    try:
        print(install(parser.parse_args().cache))
    except UvMissing as error:
        print(f"tests/servers/setup.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
