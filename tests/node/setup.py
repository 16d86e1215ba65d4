"""Node.js and the npm packages that the tests need, installed once into a directory that git ignores."""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent.parent / ".work" / "node"
MANIFEST = HERE / "package.json"
INSTALL_LIMIT_S = 600
EXIT_FAILED, EXIT_NOT_HERE = 1, 3


class NodeMissing(Exception):
    """There is no usable Node.js here; the message says what to do. `code` is the exit code of the set-up."""

    def __init__(self, message: str, code: int = EXIT_NOT_HERE) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Node:
    """An installed set of packages with the Node.js that runs them."""

    root: Path

    @property
    def binary(self) -> Path:
        """The Node.js of the set, not the system's."""
        return self.root / "node_modules" / ".bin" / "node"

    def script(self, package: str) -> Path:
        """Return the file behind the first command of *package*.

        Raises:
            NodeMissing: the package is not installed or has no command.
        """
        home = self.root / "node_modules" / package
        try:
            entry = json.loads((home / "package.json").read_text())["bin"]
        except (OSError, KeyError) as error:
            raise NodeMissing(f"{package} is not installed in {self.root}: run {MANIFEST.parent}/setup.py") from error
        return home / (entry if isinstance(entry, str) else next(iter(entry.values())))

    def environment(self) -> dict[str, str]:
        """Return this process's environment with our Node.js first on the path."""
        return {**os.environ, "PATH": f"{self.binary.parent}{os.pathsep}{os.environ.get('PATH', '')}", "NO_COLOR": "1"}


def find_node(root: Path = CACHE) -> Node | None:
    """Return what is installed, if it is what `package.json` asks for today; never installs anything."""
    stamp = root / "installed"
    if not stamp.is_file() or stamp.read_text() != _wanted():
        return None
    node = Node(root)
    return node if node.binary.exists() else None


def install(root: Path = CACHE) -> Node:
    """Install what is missing and return it; several processes may call this at once.

    Raises:
        NodeMissing: npm is not there, or it failed.
    """
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root / "lock"):
        ready = find_node(root)
        if ready is not None:
            return ready
        npm = shutil.which("npm")
        if npm is None:
            raise NodeMissing("npm is missing: install Node.js with npm (Debian: apt install npm), then run this again")
        shutil.copy(MANIFEST, root / "package.json")
        _run_npm(npm, root)
        _link_scripts(root)
        node = Node(root)
        version = _version_of(node)
        (root / "installed").write_text(_wanted())
        print(f"Node.js {version} and {len(_packages())} packages are in {root}", file=sys.stderr)
        return node


def _link_scripts(root: Path) -> None:
    """Put our client scripts where Node.js finds the packages: a module is looked for from where its importer lies."""
    link = root / "scripts"
    link.unlink(missing_ok=True)
    link.symlink_to(HERE, target_is_directory=True)


def _run_npm(npm: str, root: Path) -> None:
    """Install exactly the versions named; no lock file, because one would carry download addresses."""
    command = [npm, "install", "--no-package-lock", "--no-audit", "--no-fund", "--loglevel=error"]
    try:
        end = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=INSTALL_LIMIT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise NodeMissing(f"npm install took longer than {INSTALL_LIMIT_S} s", EXIT_FAILED) from error
    if end.returncode != 0:
        raise NodeMissing(f"npm install failed ({end.returncode}):\n{end.stderr[-2000:]}", EXIT_FAILED)


def _version_of(node: Node) -> str:
    try:
        end = subprocess.run([node.binary, "--version"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise NodeMissing(f"the installed Node.js does not start: {error}", EXIT_FAILED) from error
    return end.stdout.strip().removeprefix("v")


def _packages() -> dict[str, str]:
    found: dict[str, str] = json.loads(MANIFEST.read_text())["dependencies"]
    return found


def _wanted() -> str:
    return hashlib.sha256(MANIFEST.read_bytes()).hexdigest()


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Install, and print the directory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=CACHE, help="where to install (default: %(default)s)")
    try:
        print(install(parser.parse_args().cache).root)
    except NodeMissing as error:
        print(f"tests/node/setup.py: {error}", file=sys.stderr)
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
