"""Manifests: what is accepted, and that every fault is named with its file, line and JSON path."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from omni_mcp.contracts.errors import ConfigError, Problem
from omni_mcp.contracts.manifest import ToolManifest
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.catalog.documents import DEPTH_LIMIT, SIZE_LIMIT_BYTES, VALUE_LIMIT, read_document
from omni_mcp.engines.catalog.manifests import ManifestDirectory, ManifestReader, ManifestSource
from omni_mcp.paths import bundled

CODE = bundled("sandbox") / "tools"
GOOD = """\
manifest: 1
id: echo
version: 1.2.3
title: Echo
description: Return the text.
input_schema:
  type: object
  properties:
    text: {type: string}
  required: [text]
  additionalProperties: false
binding:
  kind: sandbox_job
  entry_point: text:text_hash
golden:
  arguments: {text: abc}
  expect: {size: 3}
"""


def problems_of(tmp_path: Path, text: str) -> list[Problem]:
    file = tmp_path / "m.yaml"
    file.write_text(text)
    problems: list[Problem] = []
    ManifestReader(code=CODE).read(file, trusted=True, problems=problems)
    return problems


def places_of(tmp_path: Path, text: str) -> list[tuple[int, str]]:
    return [(problem.line, problem.path) for problem in problems_of(tmp_path, text)]


def private(path: Path) -> Path:
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def load(*directories: Path) -> list[Entry]:
    return list(ManifestSource([ManifestDirectory(path=path) for path in directories], code=CODE).load())


def write(file: Path, text: str = GOOD, mode: int = 0o600) -> None:
    file.write_text(text)
    file.chmod(mode)


def test_a_manifest_becomes_an_entry_with_the_worst_labels_unless_it_says_otherwise(tmp_path: Path) -> None:
    write(tmp_path / "echo.yaml")
    (entry,) = load(tmp_path)
    assert (entry.server, entry.name, entry.version, entry.state) == ("tools", "echo", "1.2.3", "accepted")
    assert entry.definition["inputSchema"]["required"] == ["text"]
    assert entry.labels.destructive
    assert entry.labels.egress
    assert not entry.labels.read_only
    assert entry.definition["annotations"]["destructiveHint"]


@pytest.mark.parametrize(
    ("old", "new", "line", "path"),
    [
        ("id: echo", "id: Echo__x", 2, "$.id"),
        ("version: 1.2.3", "version: 1", 3, "$.version"),
        ("title: Echo", "titel: Echo", 1, "$.title"),
        ("title: Echo", "titel: Echo", 4, "$.titel"),
        ("kind: sandbox_job", "kind: root_shell", 13, "$.binding.kind"),
        ("kind: sandbox_job", "kind: openapi_proxy", 13, "$.binding.kind"),
        ("kind: sandbox_job", "kind: inproc_safe", 14, "$.binding.entry_point"),
        ("text:text_hash", "os:system", 14, "$.binding.entry_point"),
        ("text:text_hash", "../../etc/x:y", 14, "$.binding.entry_point"),
        (
            "entry_point: text:text_hash",
            "entry_point: text:text_hash\n  artifact_argument: blob",
            15,
            "$.binding.artifact_argument",
        ),
        (
            "entry_point: text:text_hash",
            "entry_point: text:text_hash\n  workspace: project\n  artifact_argument: text",
            16,
            "$.binding.artifact_argument",
        ),
        (
            "entry_point: text:text_hash",
            "entry_point: text:text_hash\n  workspace: state\n  artifact_argument: text",
            16,
            "$.binding.artifact_argument",
        ),
        ("{type: string}", "{type: strin}", 9, "$.input_schema.properties.text.type"),
        ("{type: string}", "{$ref: 'http://127.0.0.1/x'}", 9, "$.input_schema.properties.text.$ref"),
        ("{type: string}", "{pattern: '('}", 6, "$.input_schema"),
        ("  type: object", "  type: array", 7, "$.input_schema.type"),
        ("  type: object\n", "", 6, "$.input_schema.type"),
        (
            "  type: object",
            "  $schema: http://json-schema.org/draft-07/schema\n  type: object",
            7,
            "$.input_schema.$schema",
        ),
        ("{text: abc}", "{text: 5}", 16, "$.golden.arguments"),
        ("title: Echo", "title: Echo\ntitle: Again", 5, "$.title"),
        ("title: Echo", "title: Ec\u200bho", 4, "$.title"),
        ("title: Echo", "title: !!python/object:os.system x", 4, "$"),
        ("title: Echo", "title: &a Echo", 4, "$"),
        ("title: Echo", "title: *a", 4, "$"),
        ("title: Echo", "title: ]", 4, ""),
        ("title: Echo", "limits: {timeout_s: .inf}", 4, "$.limits.timeout_s"),
        ("title: Echo", "1: Echo", 4, '$["1"]'),
        ("title: Echo", "labels: {read_only: yes}", 4, "$.labels.read_only"),
        ("title: Echo", "limits: {timeout_s: '5'}", 4, "$.limits.timeout_s"),
        ("title: Echo", "title: Echo\nhosts: [a:1]\nlabels: {egress: false}", 1, "$"),
    ],
)
def test_a_fault_is_named_with_its_line_and_path(tmp_path: Path, old: str, new: str, line: int, path: str) -> None:
    assert old in GOOD
    assert (line, path) in places_of(tmp_path, GOOD.replace(old, new, 1))


def test_all_faults_of_a_file_are_named_at_once(tmp_path: Path) -> None:
    broken = GOOD.replace("version: 1.2.3", "version: x").replace("{type: string}", "{type: strin}") + "extra: 1\n"
    paths = {path for _, path in places_of(tmp_path, broken)}
    assert {"$.version", "$.input_schema.properties.text.type", "$.extra"} <= paths


def test_words_and_dates_stay_text(tmp_path: Path) -> None:
    document = read_document(b"a: no\nb: 2026-11-20\nc: 0o17\nd: 1e3\ne: ~\nf: '5'\n<<: x", file="f")
    assert document.problems == []
    assert document.value == {"a": "no", "b": "2026-11-20", "c": "0o17", "d": 1000.0, "e": None, "f": "5", "<<": "x"}


@pytest.mark.parametrize(
    "data",
    [
        b"a: " + b"[" * (DEPTH_LIMIT + 1) + b"]" * (DEPTH_LIMIT + 1),
        b"[" * 100_000,
        b"a: " + b"x" * SIZE_LIMIT_BYTES,
        b"- 1\n" * (VALUE_LIMIT + 1),
        b"a: 1\n---\nb: 2",
        b"\xff\xfe",
        b"a: 99999999999999999999",
        b"a: 1e999",
        b"? [a]\n: b",
        b"a: \x07",
        b"{a: 1",
        b"- b: &x [*x]",
    ],
)
def test_a_hostile_document_is_refused_and_never_raises(data: bytes) -> None:
    assert read_document(data, file="f").problems


def test_the_reader_agrees_with_the_usual_one_on_every_bundled_manifest() -> None:
    for file in bundled("manifests").glob("*.yaml"):
        document = read_document(file.read_bytes(), file=str(file))
        assert document.value == yaml.safe_load(file.read_text())


def test_a_subdirectory_is_a_server_and_the_same_id_may_stand_in_both(tmp_path: Path) -> None:
    write(tmp_path / "echo.yaml")
    write(private(tmp_path / "lab") / "echo.yml")
    assert [(entry.server, entry.name) for entry in load(tmp_path)] == [("lab", "echo"), ("tools", "echo")]


@pytest.mark.parametrize("name", ["runs", "memory", "a__b", "Upper", "x" * 25])
def test_a_directory_cannot_name_a_server_that_is_ours_or_malformed(tmp_path: Path, name: str) -> None:
    write(private(tmp_path / name) / "echo.yaml")
    with pytest.raises(ConfigError, match="not the name of a server"):
        load(tmp_path)


def test_one_tool_defined_twice_is_refused_and_both_files_are_named(tmp_path: Path) -> None:
    one, two = private(tmp_path / "one"), private(tmp_path / "two")
    write(one / "a.yaml")
    write(two / "b.yaml")
    with pytest.raises(ConfigError) as caught:
        load(one, two)
    assert "a.yaml" in str(caught.value)
    assert "b.yaml" in str(caught.value)


def test_faults_of_all_files_are_reported_together(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "x: 1")
    write(tmp_path / "b.yaml", "[")
    write(tmp_path / "good.yaml")
    with pytest.raises(ConfigError) as caught:
        load(tmp_path)
    assert {Path(problem.file).name for problem in caught.value.problems} == {"a.yaml", "b.yaml"}


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    write(tmp_path / "echo.yaml", mode=mode)
    with pytest.raises(ConfigError, match="others can write"):
        load(tmp_path)


def test_a_directory_that_others_can_write_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "echo.yaml")
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError, match="others can write"):
        load(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "echo.yaml")
    os.chown(tmp_path / "echo.yaml", 12345, 12345)
    with pytest.raises(ConfigError, match="belongs to uid 12345"):
        load(tmp_path)


def test_links_and_pipes_are_refused_without_opening_what_is_behind(tmp_path: Path) -> None:
    here = private(tmp_path / "here")
    write(tmp_path / "real.yaml")
    (here / "link.yaml").symlink_to(tmp_path / "real.yaml")
    os.mkfifo(here / "pipe.yaml", 0o600)
    with pytest.raises(ConfigError) as caught:
        load(here)
    assert len(caught.value.problems) == 2
    (tmp_path / "elsewhere").symlink_to(here)
    with pytest.raises(ConfigError, match="not a link"):
        load(tmp_path / "elsewhere")


def test_a_missing_directory_holds_nothing(tmp_path: Path) -> None:
    assert load(tmp_path / "none") == []


def test_an_entry_point_beside_the_manifest_is_found_and_its_change_changes_the_digest(tmp_path: Path) -> None:
    write(tmp_path / "echo.yaml", GOOD.replace("text:text_hash", "own_tool:run"))
    write(tmp_path / "own_tool.py", "def run(arguments): return {}")
    (before,) = load(tmp_path)
    assert before.code_dir == str(tmp_path)
    write(tmp_path / "own_tool.py", "def run(arguments): return {'evil': 1}")
    (after,) = load(tmp_path)
    assert after.digest != before.digest


def test_a_file_beside_the_manifest_cannot_take_the_place_of_a_bundled_module(tmp_path: Path) -> None:
    write(tmp_path / "echo.yaml")
    write(tmp_path / "text.py", "evil")
    (entry,) = load(tmp_path)
    assert entry.code_dir == ""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("text:text_hash", "text:text_encode"),
        ("kind: sandbox_job", "kind: sandbox_job\n  workspace: project"),
        ("title: Echo", "title: Echo\nsecrets: [token]"),
        ("description: Return", "description: Return "),
    ],
)
def test_whatever_changes_what_a_tool_does_or_says_changes_its_digest(tmp_path: Path, old: str, new: str) -> None:
    write(tmp_path / "echo.yaml")
    (before,) = load(tmp_path)
    write(tmp_path / "echo.yaml", GOOD.replace(old, new + ("!" if "description" in new else ""), 1))
    (after,) = load(tmp_path)
    assert after.digest != before.digest


def test_the_page_names_every_field_and_its_example_passes_the_linter(tmp_path: Path) -> None:
    page = (bundled("manifests").parent / "docs" / "manifest.md").read_text()
    example = page.split("```yaml\n", 1)[1].split("```", 1)[0]
    (tmp_path / "word_count.py").write_text("def word_count(arguments): return {}")
    assert problems_of(tmp_path, example) == []
    rows = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}
    fields = set(ToolManifest.model_fields)
    for name in ("binding", "labels", "limits"):
        model = ToolManifest.model_fields[name].annotation
        assert model is not None
        fields |= {f"{name}.{field}" for field in model.model_fields}
    assert rows == fields
