"""What ships beside the code is found in a checkout, in an editable install and in a wheel, and is the same in each."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from omni_mcp.paths import bundled

ROOT = Path(__file__).resolve().parent.parent.parent
NAMES = ("manifests", "policies", "sandbox")
FIND = "from omni_mcp.paths import bundled; import sys; print(*(bundled(n) for n in sys.argv[1:]), sep='\\n')"


def contents(directory: Path) -> dict[str, str]:
    """Return the sha256 of every shipped file by its relative path."""
    return {
        str(file.relative_to(directory)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(directory.rglob("*"))
        if file.is_file() and "__pycache__" not in file.parts
    }


def found_by(package_parent: Path) -> list[Path]:
    """Ask a fresh interpreter that has *package_parent* first on its path."""
    done = subprocess.run(
        [sys.executable, "-c", FIND, *NAMES], env={**os.environ, "PYTHONPATH": str(package_parent)},
        cwd=package_parent, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [Path(line) for line in done.stdout.splitlines()]


def test_a_checkout_and_an_editable_install_find_the_directories_beside_the_package() -> None:
    assert [bundled(name) for name in NAMES] == [ROOT / name for name in NAMES]
    assert found_by(ROOT) == [ROOT / name for name in NAMES]
    for name in NAMES:
        assert contents(ROOT / name), name


@pytest.mark.long
@pytest.mark.slow
def test_a_wheel_carries_the_same_files_inside_the_package(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--disable-pip-version-check"]
    subprocess.run([*command, "--wheel-dir", str(tmp_path), str(ROOT)], check=True, capture_output=True)
    [wheel] = tmp_path.glob("omni_mcp-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    places = found_by(tmp_path / "site")
    assert places == [tmp_path / "site" / "omni_mcp" / "_data" / name for name in NAMES]
    for place, name in zip(places, NAMES, strict=True):
        assert contents(place) == contents(ROOT / name)


def test_a_package_without_its_data_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "omni_mcp").mkdir()
    for name in ("__init__.py", "paths.py"):
        (tmp_path / "omni_mcp" / name).write_text((ROOT / "omni_mcp" / name).read_text() if name == "paths.py" else "")
    done = subprocess.run(
        [sys.executable, "-c", FIND, "manifests"], env={**os.environ, "PYTHONPATH": str(tmp_path)}, cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "the shipped directory 'manifests' is missing" in done.stderr
