"""S10, X08: a pack verifies with nothing but itself, and whatever was done to it is named."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from omni_mcp.contracts.errors import LogCorrupt
from omni_mcp.contracts.events import chain_hash, header_bytes, payload_digest
from omni_mcp.contracts.json import canonical
from omni_mcp.engines.runlog.pack import MANIFEST, SIGNATURE
from omni_mcp.engines.runlog.signing import SigningKey
from omni_mcp.engines.runlog.verify import Report
from omni_mcp.engines.runlog.verify_pack import verify_pack
from tests.evidence.conftest import LARGE, Evidence, Files, edited, files_of, fitted, packed

FORGER = SigningKey(bytes(range(32)))


def _checked(pack: bytes | Files, tmp_path: Path, **how: str | None) -> Report:
    file = tmp_path / "checked.tar"
    file.write_bytes(pack if isinstance(pack, bytes) else packed(pack))
    return verify_pack(file, **how)  # type: ignore[arg-type]


def _named(report: Report) -> set[tuple[str, int]]:
    return {(fault.run, fault.seq) for fault in report.faults if fault.seq}


def _what(report: Report) -> str:
    return "\n".join(map(str, report.faults))


async def test_a_pack_verifies_on_a_machine_without_database_home_and_network(
    evidence: Evidence, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    made = evidence.json("audit", "export", evidence.ann, evidence.bob, "--out", str(tmp_path / "pack.tar"))
    shutil.move(tmp_path / "pack.tar", elsewhere / "pack.tar")
    shutil.rmtree(evidence.home.config)
    command = [sys.executable, "-m", "omni_mcp.cli.main", "audit", "verify", "pack.tar", "--json"]
    if os.getuid() == 0:
        command = ["unshare", "--net", *command]
    nowhere = {"HOME": str(elsewhere), "PATH": os.environ["PATH"], "PYTHONPATH": str(Path.cwd())}

    def verified(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *more], cwd=elsewhere, env=nowhere, capture_output=True, text=True)

    done = verified("--key", made["fingerprint"])
    report = orjson.loads(done.stdout)
    assert done.returncode == 0 and report["ok"], done
    assert (report["runs"], report["events"], report["artifacts"]) == (2, made["events"], 1)
    assert report["signed_by"] == made["fingerprint"] and report["notes"] == []
    assert os.listdir(elsewhere) == ["pack.tar"], "verifying leaves nothing behind"
    refused = verified("--key", "0" * 64)
    assert refused.returncode == 1 and "not with the key that was named" in refused.stdout
    unnamed = orjson.loads(verified().stdout)
    assert unnamed["ok"] and "who signed it is not known here" in unnamed["notes"][0]


async def test_a_pack_holds_what_its_events_refer_to_and_any_tar_reads_it(evidence: Evidence) -> None:
    files = files_of(evidence.pack(evidence.ann))
    large = [content for name, content in files.items() if name.startswith("artifacts/")]
    assert len(large) == 1 and LARGE[:100].encode() in large[0]
    assert {"schemas/RunEvent.json", "schemas/ArtifactRef.json"} < files.keys()
    lines = files[f"runs/{evidence.ann}.jsonl"].splitlines()
    assert [orjson.loads(line) for line in lines] == [
        orjson.loads(canonical(event.model_dump())) for event in evidence.events(evidence.ann)
    ]
    assert not [name for name in files if evidence.bob in name] and b"medlar" not in b"".join(files.values())


async def test_the_private_key_is_no_part_of_a_pack_and_nobody_else_can_read_it(evidence: Evidence) -> None:
    pack = evidence.pack()
    key = (evidence.home.secrets / "audit-signing.key").read_bytes()
    assert key not in pack and key.hex().encode() not in pack
    assert (evidence.home.secrets / "audit-signing.key").stat().st_mode & 0o777 == 0o600


def _flip(lines: list[bytes]) -> None:
    lines[3] = lines[3].replace(b"quince", b"quincy")


def _swap(lines: list[bytes]) -> None:
    lines[3], lines[4] = lines[4], lines[3]


def _number(lines: list[bytes]) -> None:
    lines[3] = lines[3].replace(b'"gid":', b'"gid":9')


def _spelling(lines: list[bytes]) -> None:
    lines[3] = lines[3].replace(b'"actor"', b'"\\u0061ctor"')


def _field(lines: list[bytes]) -> None:
    lines[3] = canonical({**orjson.loads(lines[3]), "extra": 1}) + b"\n"


def _drop(lines: list[bytes]) -> None:
    del lines[3]


def _cut(lines: list[bytes]) -> None:
    del lines[3:]


def _insert(lines: list[bytes]) -> None:
    lines.insert(3, lines[1])


def _half(lines: list[bytes]) -> None:
    lines[3:] = [lines[3][:-20]]


def _join(lines: list[bytes]) -> None:
    lines[3] = lines[3][:-1] + b" "


def _twice(lines: list[bytes]) -> None:
    lines[3] = lines[3].replace(b'{"actor"', b'{"actor":"x","actor"', 1)


def _text(lines: list[bytes]) -> None:
    lines[3] = canonical({**orjson.loads(lines[3]), "seq": "4"}) + b"\n"


def _other_run(lines: list[bytes]) -> None:
    lines[3] = canonical({**orjson.loads(lines[3]), "run": "0" * 8}) + b"\n"


def _erased(lines: list[bytes]) -> None:
    lines[3] = canonical({**orjson.loads(lines[3]), "payload": None, "salt": "", "erased_by": 9}) + b"\n"


def _forgery(lines: list[bytes]) -> None:
    """Change an event and make all links behind it fit: what somebody without a key can do best."""
    prev = None
    for at in range(3, len(lines)):
        event = orjson.loads(lines[at])
        if at == 3:
            event["payload"] = {**event["payload"], "name": "harmless"} if "name" in event["payload"] else {"x": 1}
            event["payload_digest"] = payload_digest(bytes.fromhex(event["salt"]), canonical(event["payload"])).hex()
        event["prev"] = prev or event["prev"]
        names = ("v", "run", "seq", "at_ns", "kind", "code", "actor", "call", "parent")
        header = header_bytes(**{name: event[name] for name in names}, privacy=tuple(event["privacy"]))
        digests = (bytes.fromhex(event[name]) for name in ("payload_digest", "body_digest"))
        prev = event["hash"] = chain_hash(bytes.fromhex(event["prev"]), header, *digests).hex()
        lines[at] = canonical(event) + b"\n"


DEEDS: dict[str, Callable[[list[bytes]], None]] = {
    "flipped": _flip, "swapped": _swap, "global number": _number, "spelt otherwise": _spelling, "a field more": _field,
    "dropped": _drop, "cut off": _cut, "put in": _insert, "half a line": _half, "two in a line": _join,
    "a member twice": _twice, "another type": _text, "of another run": _other_run, "emptied": _erased,
    "all links forged": _forgery,
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """One home for all that is only done to packs."""
    import asyncio

    from tests.evidence.conftest import worked

    return asyncio.run(worked(tmp_path_factory.mktemp("evidence")))


@pytest.mark.parametrize("deed", DEEDS)
@pytest.mark.parametrize("care", ["careless", "manifest made to fit", "signed by another"])
def test_what_was_done_to_an_event_is_named_by_run_and_number(
    whole: Evidence, tmp_path: Path, deed: str, care: str
) -> None:
    files = files_of(whole.pack(whole.ann))
    changed = edited(files, whole.ann, DEEDS[deed])
    assert changed != files
    if care != "careless":
        changed = fitted(changed, key=FORGER if care == "signed by another" else None)
    report = _checked(changed, tmp_path)
    assert not report.ok or (deed, care) == ("global number", "signed by another")
    if care == "manifest made to fit":
        assert "the signature does not fit" in _what(report)
    last = len(files[f"runs/{whole.ann}.jsonl"].splitlines())
    place = 4 if care == "careless" else {"put in": 2, "all links forged": last}.get(deed, 4)
    if deed != "global number" or care == "careless":  # that alone is in no link of one run: the signature covers it
        assert (whole.ann, place) in _named(report), _what(report)


async def test_a_forger_who_makes_everything_fit_and_signs_it_is_told_by_the_key(
    whole: Evidence, tmp_path: Path
) -> None:
    files = edited(files_of(whole.pack(whole.ann)), whole.ann, _forgery)
    forged = fitted(files, heads=True, key=FORGER)
    assert _checked(forged, tmp_path).notes, "alone it verifies, and says that the signer is not known"
    own = orjson.loads(files_of(whole.pack(whole.ann))[SIGNATURE])
    fingerprint = whole.json("audit", "export", whole.ann, "-o", str(tmp_path / "x.tar"))["fingerprint"]
    assert own["key"] not in fingerprint
    for how in ({"wanted": fingerprint}, {"own": fingerprint}):
        report = _checked(forged, tmp_path, **how)
        assert not report.ok and FORGER.fingerprint in _what(report)
    (tmp_path / "forged.tar").write_bytes(packed(forged))
    assert whole.omni("audit", "verify", str(tmp_path / "forged.tar")).exit_code == 1, "at home the own key is wanted"
    assert whole.omni("audit", "verify", str(tmp_path / "x.tar")).exit_code == 0


def test_an_exchanged_signature_does_not_fit(whole: Evidence, tmp_path: Path) -> None:
    first, other = files_of(whole.pack(whole.ann)), files_of(whole.pack(whole.bob))
    report = _checked({**first, SIGNATURE: other[SIGNATURE]}, tmp_path)
    assert not report.ok and "signature does not fit" in _what(report)
    report = _checked({**first, MANIFEST: other[MANIFEST], SIGNATURE: other[SIGNATURE]}, tmp_path)
    assert not report.ok and "put into the pack after it was signed" in _what(report)


def test_an_edited_artifact_and_a_missing_one_are_named_with_their_event(whole: Evidence, tmp_path: Path) -> None:
    files = files_of(whole.pack(whole.ann))
    [name] = [name for name in files if name.startswith("artifacts/")]
    sha256 = name.removeprefix("artifacts/")
    [place] = [
        (event.run, event.seq) for event in whole.events(whole.ann) if event.payload and sha256 in str(event.payload)
    ]
    changed = {**files, name: files[name].replace(b"long", b"lang", 1)}
    for pack in (changed, fitted(changed), fitted(changed, key=FORGER)):
        report = _checked(pack, tmp_path)
        assert place in _named(report) and sha256 in _what(report)
    gone = {other: content for other, content in files.items() if other != name}
    for pack in (gone, fitted(gone), fitted(gone, key=FORGER)):
        report = _checked(pack, tmp_path)
        assert place in _named(report) and "is missing from the pack" in _what(report)


def test_a_run_that_was_taken_out_of_a_pack_is_named(whole: Evidence, tmp_path: Path) -> None:
    files = files_of(whole.pack())
    name = f"runs/{whole.bob}.jsonl"
    gone = {other: content for other, content in files.items() if other != name}
    report = _checked(gone, tmp_path)
    expected = {(whole.bob, event.seq) for event in whole.events(whole.bob)}
    assert expected <= _named(report)


@pytest.mark.parametrize(
    "name",
    [
        "../evil", "/etc/passwd", "runs/../../evil.jsonl", "artifacts/../x", "evil", "runs/a/b.jsonl", "runs/.jsonl",
        "schemas/../x.json", "manifest.json/", "./manifest.json", "runs/A.jsonl\\..",
    ],
)  # fmt: skip
def test_a_name_that_is_no_file_of_a_pack_is_refused_and_nothing_is_written(
    whole: Evidence, tmp_path: Path, name: str
) -> None:
    files = files_of(whole.pack(whole.ann))
    with pytest.raises(LogCorrupt, match="not an audit pack"):
        _checked({**files, name: b"x"}, tmp_path)
    assert os.listdir(tmp_path) == ["checked.tar"]


def test_what_stands_in_an_archive_twice_behind_its_end_or_between_its_files_is_refused(
    whole: Evidence, tmp_path: Path
) -> None:
    pack = whole.pack(whole.ann)
    body, end = pack[:-1024], pack[-1024:]
    [first] = [body[:at] for at in (512 + len(files_of(pack)[f"runs/{whole.ann}.jsonl"]),)]
    first += bytes(-len(first) % 512)
    for changed, reason in (
        (body + first + end, "there twice"),
        (pack + bytes(512), "behind its end"),
        (pack + b"x", "behind its end"),
        (pack[:-512], "behind its end, or its end is not whole"),
        (body, "cut off"),
        (pack[:700], "cut off inside"),
        (b"", "cut off"),
        (first[:-1] + b"x" + body[len(first) :] + end, "not empty"),
    ):
        with pytest.raises(LogCorrupt) as refused:
            _checked(changed, tmp_path)
        assert reason in refused.value.detail


def test_a_pack_that_claims_more_than_it_has_or_is_packed_again_is_refused(whole: Evidence, tmp_path: Path) -> None:
    """No bomb: nothing in a pack is longer than the file itself, and packed archives are not opened."""
    import gzip

    from omni_mcp.engines.runlog.tar import END, header

    with pytest.raises(LogCorrupt):
        _checked(header("manifest.json", 8**11 - 1) + END, tmp_path)
    with pytest.raises(LogCorrupt):
        _checked(gzip.compress(whole.pack(whole.ann)), tmp_path)
    with pytest.raises(LogCorrupt, match="not an audit pack"):
        _checked({**files_of(whole.pack(whole.ann)), SIGNATURE: b" " * 5000}, tmp_path)
    file = tmp_path / "packed.gz"
    file.write_bytes(gzip.compress(whole.pack(whole.ann)))
    assert whole.omni("audit", "verify", str(file)).exit_code == 1


async def test_an_erased_run_is_exported_as_tombstones_that_verify(evidence: Evidence, tmp_path: Path) -> None:
    before = evidence.pack(evidence.ann)
    assert evidence.omni("erase", "--run", evidence.ann, "--yes").exit_code == 0
    pack = tmp_path / "erased.tar"
    made = evidence.json("audit", "export", evidence.ann, "-o", str(pack))
    content = pack.read_bytes()
    assert b"quince" in before and b"quince" not in content and made["artifacts"] == 0
    report = evidence.json("audit", "verify", str(pack))
    last = made["events"]
    assert report["ok"] and report["erased"] == [
        {"run": evidence.ann, "seq": seq, "erased_by": last} for seq in range(1, last)
    ]
    text = evidence.omni("audit", "verify", str(pack)).stdout
    assert f"run {evidence.ann} events 1 to {last - 1}: erased by event {last}" in text
    moved = edited(files_of(content), evidence.ann, lambda lines: lines.pop())
    assert (evidence.ann, last) in _named(_checked(moved, tmp_path)), "the erasure itself cannot be taken away"


def test_any_byte_of_a_pack_that_is_changed_is_noticed(whole: Evidence, tmp_path: Path) -> None:
    """Every 97th byte here; `python tests/evidence/every_byte.py` goes through all of them."""
    from tests.evidence.every_byte import unnoticed

    assert unnoticed(whole.pack(whole.bob), tmp_path / "flipped.tar", every=97) == []
