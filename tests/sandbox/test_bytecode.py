"""The modules of the far side are compiled before the first template wants them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest

from omni_mcp.engines.sandbox.bytecode import compile_ahead
from omni_mcp.paths import bundled
from tests.sandbox.conftest import outside


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
