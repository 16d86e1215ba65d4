"""The modules of the far side are compiled before the first template wants them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from omni_mcp.engines.sandbox.bytecode import compile_ahead
from omni_mcp.paths import bundled
from tests.sandbox.conftest import Opener, in_shell, outside, usable


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    place = tmp_path / "sandbox"
    shutil.copytree(bundled("sandbox"), place, ignore=shutil.ignore_patterns("__pycache__"))
    return place


def compiled(file: Path) -> Path:
    return Path(importlib.util.cache_from_source(str(file)))


def test_what_is_compiled_ahead_is_what_an_interpreter_takes(modules: Path) -> None:
    compile_ahead(modules)
    code = f"import sys; sys.path.insert(0, {str(modules)!r}); import jobs; print(jobs.__cached__, jobs.__loader__)"
    before = compiled(modules / "jobs.py").stat()

    assert str(compiled(modules / "jobs.py")) in outside(code)
    assert compiled(modules / "tools" / "text.py").is_file()
    assert compiled(modules / "jobs.py").stat().st_mtime_ns == before.st_mtime_ns  # it was good: nobody wrote it again


def test_only_what_has_changed_is_compiled_again(modules: Path) -> None:
    compile_ahead(modules)
    kept = compiled(modules / "jobs.py").stat().st_ino
    changed = modules / "wire.py"
    old = compiled(changed).read_bytes()
    changed.write_text(changed.read_text() + "\nMORE = 1\n")
    compile_ahead(modules)

    assert compiled(changed).read_bytes() != old
    assert compiled(modules / "jobs.py").stat().st_ino == kept


@pytest.mark.sandbox
async def test_cells_can_read_what_a_private_gateway_has_compiled(modules: Path, opened: Opener) -> None:
    """One that a client starts has the umask 077, and its cells have other users than it has."""
    modules.parent.chmod(0o755)
    (modules / "__pycache__").mkdir(mode=0o700)  # as an older gateway left it
    before = os.umask(0o077)
    try:
        async with opened(sandbox_dir=modules) as sandbox:
            usable(sandbox)
            end = await sandbox.run(
                in_shell("cat /sandbox/__pycache__/jobs.*.pyc /sandbox/tools/__pycache__/text.*.pyc")
            )
    finally:
        os.umask(before)

    assert (end.reason, end.exit_code) == ("exit", 0), end


def test_nobody_else_can_write_what_the_next_process_will_import(modules: Path) -> None:
    """The process that starts cells imports these modules too, as the gateway's user."""
    before = os.umask(0)
    try:
        compile_ahead(modules)
    finally:
        os.umask(before)
    made = [modules / "__pycache__", modules / "tools" / "__pycache__", *modules.rglob("*.pyc")]

    assert len(made) > 20
    assert [place for place in made if place.stat().st_mode & 0o022] == []


def test_a_link_in_the_place_of_what_is_compiled_changes_nothing_elsewhere(modules: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (modules / "__pycache__").symlink_to(elsewhere)
    compile_ahead(modules)

    assert elsewhere.stat().st_mode & 0o777 == 0o700
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("option", ["PYTHONOPTIMIZE=1", "PYTHONPYCACHEPREFIX=elsewhere"])
def test_options_of_the_gateways_interpreter_do_not_lead_it_elsewhere(
    modules: Path, option: str, tmp_path: Path
) -> None:
    code = (
        "import pathlib, sys; import omni_mcp.engines.sandbox.bytecode as b; b.compile_ahead(pathlib.Path(sys.argv[1]))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    name, value = option.replace("elsewhere", str(tmp_path / "elsewhere")).split("=")
    command = [sys.executable, "-c", code, str(modules)]
    subprocess.run(command, env={**environment, name: value}, check=True, timeout=60)

    assert compiled(modules / "jobs.py").is_file()


def test_a_module_that_cannot_be_compiled_and_a_place_that_is_not_ours_are_left_alone(
    modules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (modules / "wire.py").write_text("not python at all (")
    compile_ahead(modules)
    assert not compiled(modules / "wire.py").exists()
    shutil.rmtree(modules / "__pycache__")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    compile_ahead(modules)

    assert not (modules / "__pycache__").exists()
    assert os.listdir(modules)


def test_modules_of_a_template_leave_out_what_costs_each_cell_time_and_memory() -> None:
    ours = bundled("sandbox")
    code = f"""
import sys
sys.path[:0] = [{str(ours)!r}, {str(ours / "tools")!r}]
import init, artifact, files, json_tools, kv, programs, sql, text
print(sorted(set(sys.modules) & {{"typing", "dataclasses", "inspect", "ast", "dis", "tomllib"}}))
"""
    assert outside(code) == "[]"
