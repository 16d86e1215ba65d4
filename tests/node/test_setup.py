"""The set-up of Node.js: exact versions, nothing half done called done, and a clear word when it cannot be."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.node.presence import needed_node
from tests.node.setup import MANIFEST, find_node, install

SETUP = MANIFEST.with_name("setup.py")


def run_setup(cache: Path, path: Path) -> subprocess.CompletedProcess[str]:
    """Run the set-up where only what *path* holds is a command."""
    return subprocess.run(
        [sys.executable, str(SETUP), "--cache", str(cache)],
        env={**os.environ, "PATH": str(path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def fake_npm(path: Path, script: str) -> None:
    path.mkdir()
    (path / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (path / "npm").chmod(0o755)


def test_every_package_has_one_exact_version_and_no_address() -> None:
    versions = json.loads(MANIFEST.read_text())["dependencies"].values()
    assert versions
    for version in versions:
        assert re.fullmatch(r"(npm:@?[a-z/-]+@)?\d+\.\d+\.\d+(-alpha\.\d+)?", version), version


def test_without_npm_it_says_what_to_install_and_exits_3(tmp_path: Path) -> None:
    end = run_setup(tmp_path / "cache", tmp_path)
    assert end.returncode == 3
    assert "npm is missing" in end.stderr and "apt install npm" in end.stderr


def test_a_failing_npm_is_quoted_and_leaves_nothing_that_counts_as_installed(tmp_path: Path) -> None:
    fake_npm(tmp_path / "bin", "echo the registry is on fire >&2; exit 7")
    end = run_setup(tmp_path / "cache", tmp_path / "bin")
    assert end.returncode == 1 and "the registry is on fire" in end.stderr
    assert find_node(tmp_path / "cache") is None


def test_an_npm_that_installs_no_node_is_not_believed(tmp_path: Path) -> None:
    fake_npm(tmp_path / "bin", "exit 0")
    end = run_setup(tmp_path / "cache", tmp_path / "bin")
    assert end.returncode == 1 and "does not start" in end.stderr
    assert find_node(tmp_path / "cache") is None


@pytest.mark.node
def test_what_is_installed_is_not_installed_again(tmp_path: Path) -> None:
    node = needed_node()
    end = run_setup(node.root, tmp_path)  # there is no npm on this path, so a second installation would fail
    assert (end.returncode, end.stdout.strip()) == (0, str(node.root))
    assert install(node.root) == node


@pytest.mark.node
def test_the_node_that_the_packages_need_is_the_one_that_runs() -> None:
    said = subprocess.run([needed_node().binary, "--version"], capture_output=True, text=True, check=True).stdout
    major, minor = (int(part) for part in said.strip().removeprefix("v").split(".")[:2])
    assert (major, minor) >= (22, 19)
