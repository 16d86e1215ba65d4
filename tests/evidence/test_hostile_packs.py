"""S10: whatever a file says, verifying it ends with an answer, soon and in little memory, and never with a crash."""

from __future__ import annotations

import asyncio
from pathlib import Path

import orjson
import pytest

from omni_mcp.contracts.errors import LogCorrupt
from omni_mcp.contracts.json import JsonObject, canonical
from omni_mcp.engines.runlog.pack import MANIFEST, SIGNATURE, SIGNED_AS
from omni_mcp.engines.runlog.signing import SigningKey
from omni_mcp.engines.runlog.verify import NAMED_IN_ALL, Report
from omni_mcp.engines.runlog.verify_pack import verify_pack
from tests.evidence.conftest import Evidence, Files, edited, files_of, fitted, packed, worked

FORGER = SigningKey(bytes(range(32)))
DEEP = b'{"a":' * 600 + b"1" + b"}" * 600


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return asyncio.run(worked(tmp_path_factory.mktemp("evidence")))


def checked(files: Files, tmp_path: Path) -> Report:
    file = tmp_path / "checked.tar"
    file.write_bytes(packed(files))
    return verify_pack(file)


def with_manifest(files: Files, manifest: JsonObject) -> Files:
    """Exchange the manifest, and sign the new one."""
    told = canonical(manifest) + b"\n"
    return {**files, MANIFEST: told, SIGNATURE: canonical(FORGER.sign(SIGNED_AS, told).as_json()) + b"\n"}


@pytest.mark.long
def test_heads_of_runs_that_are_not_there_do_not_become_millions_of_faults(whole: Evidence, tmp_path: Path) -> None:
    """Each head is 300 bytes, and would be a thousand faults."""
    files = files_of(whole.pack(whole.ann))
    manifest = orjson.loads(files[MANIFEST])
    head = manifest["runs"][0]
    manifest["runs"] = [{**head, "run": f"r{number}", "count": 2**60} for number in range(200)]
    report = checked(with_manifest(files, manifest), tmp_path)
    assert not report.ok and len(report.faults) < NAMED_IN_ALL + 1000
    assert "the others are not named" in "\n".join(map(str, report.faults))


def test_lines_that_are_no_events_do_not_become_as_many_faults(whole: Evidence, tmp_path: Path) -> None:
    files = files_of(whole.pack(whole.ann))
    empty = edited(files, whole.ann, lambda lines: lines.append(b"\n" * (NAMED_IN_ALL + 5000)))
    report = checked(fitted(empty, key=FORGER), tmp_path)
    assert not report.ok and len(report.faults) <= NAMED_IN_ALL + 10


def test_a_run_that_stands_often_in_the_manifest_is_read_once(whole: Evidence, tmp_path: Path) -> None:
    files = files_of(whole.pack(whole.ann))
    manifest = orjson.loads(files[MANIFEST])
    events = manifest["runs"][0]["count"]
    manifest["runs"] = manifest["runs"] * 1000
    report = checked(with_manifest(files, manifest), tmp_path)
    assert [fault.what for fault in report.faults] == ["a run stands twice in the manifest"]
    assert report.events == events


@pytest.mark.parametrize("kind", ["tool_result", "artifact_ref"])
@pytest.mark.parametrize(
    "payload",
    [5, [1], {"artifacts": 5}, {"artifacts": True}, {"artifact": [1]}, {"artifacts": [{"sha256": 5}]},
     {"sha256": ["x"]}],
)  # fmt: skip
def test_an_event_that_names_artifacts_in_no_form_of_ours_is_named(
    whole: Evidence, tmp_path: Path, kind: str, payload: object
) -> None:
    def change(lines: list[bytes]) -> None:
        lines[3] = canonical({**orjson.loads(lines[3]), "kind": kind, "payload": payload}) + b"\n"

    report = checked(fitted(edited(files_of(whole.pack(whole.ann)), whole.ann, change), key=FORGER), tmp_path)
    assert (whole.ann, 4) in {(fault.run, fault.seq) for fault in report.faults}


def test_what_is_nested_too_deep_to_have_been_written_is_named_and_no_crash(whole: Evidence, tmp_path: Path) -> None:
    files = files_of(whole.pack(whole.ann))

    def deep(lines: list[bytes]) -> None:
        lines[3] = DEEP + b"\n"

    report = checked(fitted(edited(files, whole.ann, deep), key=FORGER), tmp_path)
    assert (whole.ann, 4) in {(fault.run, fault.seq) for fault in report.faults}
    assert not checked({**files, SIGNATURE: DEEP + b"\n"}, tmp_path).ok
    with pytest.raises(LogCorrupt):
        checked({**files, MANIFEST: DEEP + b"\n"}, tmp_path)


@pytest.mark.parametrize("command", [("audit", "anchor", "check"), ("runs", "golden", "check")])
def test_a_signed_document_that_is_nested_too_deep_is_refused_in_words(
    whole: Evidence, tmp_path: Path, command: tuple[str, ...]
) -> None:
    file = tmp_path / "signed.json"
    signature = FORGER.sign("x", b"").as_json()
    file.write_bytes(b'{"document":%s,%s' % (DEEP, orjson.dumps(signature)[1:]) + b"\n")
    told = whole.omni(*command, str(file), *([whole.ann] if command[0] == "runs" else []))
    assert told.exit_code == 1 and "it was edited" in told.output, told
