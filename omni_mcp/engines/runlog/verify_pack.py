"""Verifies an audit pack with nothing but the pack: no database, no home, no network.

The signature says that nothing was changed since; the chain, the heads and a mark of each line say which event was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import orjson
from pydantic import ValidationError

from omni_mcp.contracts.errors import LogCorrupt
from omni_mcp.contracts.events import GENESIS, RunEvent
from omni_mcp.contracts.json import canonical
from omni_mcp.engines.runlog.anchor import KnownHead
from omni_mcp.engines.runlog.heads import GLOBAL_NAME
from omni_mcp.engines.runlog.keys import LogKeys
from omni_mcp.engines.runlog.pack import (
    LINE_LIMIT_BYTES,
    MANIFEST,
    MANIFEST_LIMIT_BYTES,
    MEMBER_NAME,
    SIGNATURE,
    SIGNATURE_LIMIT_BYTES,
    SIGNED_AS,
    PackedRun,
    PackManifest,
    mark_of,
    marks_of,
    run_member,
)
from omni_mcp.engines.runlog.references import references_of
from omni_mcp.engines.runlog.rows import Row
from omni_mcp.engines.runlog.signing import Signature, read_signature
from omni_mcp.engines.runlog.tar import Member, members_of
from omni_mcp.engines.runlog.trust import UNKNOWN_SIGNER, distrust
from omni_mcp.engines.runlog.verify import NAMED_EACH, Fault, HeadRecord, Report, Verifier

_READ_BYTES = 1024 * 1024
_TAR_MAGIC_AT = 257
_DATABASE_MAGIC = b"SQLite format 3\0"


def is_pack(file: Path) -> bool:
    """Say whether *file* is a tar archive rather than a database.

    Raises:
        LogCorrupt: it is neither.
        OSError: it cannot be read.
    """
    with file.open("rb") as source:
        begin = source.read(_TAR_MAGIC_AT + 5)
    if begin[_TAR_MAGIC_AT:] == b"ustar":
        return True
    if not begin.startswith(_DATABASE_MAGIC):
        raise LogCorrupt("neither an audit pack nor a run log", detail=f"{file} begins like neither; unpack it first")
    return False


def verify_pack(
    file: Path, *, wanted: str | None = None, own: str | None = None, keys: LogKeys | None = None,
    known: Sequence[KnownHead] = (),
) -> Report:  # fmt: skip
    """Verify the pack in *file*.

    Args:
        wanted: the fingerprint of whose signature is to count.
        own: the fingerprint of this gateway, where there is one; *keys* are its keys, which can check what it wrote.
        known: global heads from earlier that it must contain.

    Raises:
        LogCorrupt: it is no pack, or not a whole one.
        OSError: it cannot be read.
    """
    with file.open("rb") as source:
        return _PackVerifier(source).verify(wanted, own, keys, known)


class _PackVerifier:
    """Goes through one pack."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._members: dict[str, Member] = {}
        self._faults: list[Fault] = []
        self._referred: dict[str, tuple[str, int]] = {}  # artifact -> the first event that refers to it

    def verify(self, wanted: str | None, own: str | None, keys: LogKeys | None, known: Sequence[KnownHead]) -> Report:
        for member in members_of(self._source):
            if MEMBER_NAME.fullmatch(member.name) is None:
                raise LogCorrupt("not an audit pack", detail=f"{member.name!r} is no file of one")
            self._members[member.name] = member
        told = self._content(MANIFEST, MANIFEST_LIMIT_BYTES)
        manifest = _manifest(told)
        signature = self._signature(told)
        if signature is not None and (reason := distrust(signature, wanted=wanted, own=own)):
            self._faults.append(Fault("", 0, reason))
        is_ours = signature is not None and signature.fingerprint == own
        report = self._events(manifest, keys if is_ours else None, known)
        self._artifacts(manifest)
        self._others(manifest)
        report.faults[:0] = self._faults
        report.heads_checked = signature is not None
        report.artifacts = sum(name.startswith("artifacts/") for name in self._members)
        if signature is not None:
            report.signer = signature.fingerprint
            if wanted is None and not is_ours:
                report.notes.append(UNKNOWN_SIGNER)
        if manifest.absent:
            report.notes.append(f"{len(manifest.absent)} artifacts were gone already when the pack was written")
        return report

    def _signature(self, told: bytes) -> Signature | None:
        data = self._content(SIGNATURE, SIGNATURE_LIMIT_BYTES)
        found = _json(data)
        signature = read_signature(found)
        if signature is None or not _is_spelt_so(found, data) or not signature.fits(SIGNED_AS, told):
            self._faults.append(
                Fault("", 0, "the signature does not fit the manifest: one of them was changed or exchanged")
            )
            return None
        return signature

    def _content(self, name: str, limit_bytes: int) -> bytes:
        member = self._members.get(name)
        if member is None:
            raise LogCorrupt("not a whole audit pack", detail=f"it holds no {name}")
        if member.size > limit_bytes:
            raise LogCorrupt("not an audit pack", detail=f"{name} has {member.size} bytes, more than {limit_bytes}")
        self._source.seek(member.offset)
        return self._source.read(member.size)

    def _digest(self, member: Member) -> str:
        digest, left = hashlib.sha256(), member.size
        self._source.seek(member.offset)
        while left:
            part = self._source.read(min(left, _READ_BYTES))
            if not part:
                raise LogCorrupt("not a whole audit pack", detail=f"{member.name} became shorter while it was read")
            digest.update(part)
            left -= len(part)
        return digest.hexdigest()

    def _events(self, manifest: PackManifest, keys: LogKeys | None, known: Sequence[KnownHead]) -> Report:
        verifier = Verifier(keys)
        runs = {packed.run: packed for packed in manifest.runs}.values()  # one that stands there twice is read once
        for packed in runs:
            self._run(verifier, packed, manifest)
        heads = [HeadRecord(run.run, run.count, bytes.fromhex(run.hash), bytes.fromhex(run.mac)) for run in runs]
        if manifest.head is not None and manifest.scope == "all":
            total = manifest.head
            heads.append(HeadRecord(GLOBAL_NAME, total.count, bytes.fromhex(total.hash), bytes.fromhex(total.mac)))
        return verifier.finish(heads, whole_log=manifest.scope == "all", known=known)

    def _run(self, verifier: Verifier, packed: PackedRun, manifest: PackManifest) -> None:
        name = run_member(packed.run)
        member = self._members.get(name)
        if member is None:
            self._faults.append(Fault(packed.run, 0, "its file is missing from the pack"))
            return
        marks = marks_of(packed)
        strange: list[int] = []
        number = 0
        before = len(verifier.report.faults)
        for number, line in enumerate(self._lines(member), 1):
            self._line(verifier, packed.run, line)
            if number > len(marks) or marks[number - 1] != mark_of(line):
                strange.append(number)
        self._name_strange(verifier, packed.run, strange if number == len(marks) else strange[:1], before)
        listed = manifest.files.get(name)
        if listed is None or (listed.size, listed.sha256) != (member.size, self._digest(member)):
            self._faults.append(Fault(packed.run, 0, "its file is not the one that was signed"))

    def _name_strange(self, verifier: Verifier, run: str, lines: Sequence[int], before: int) -> None:
        """Name events whose lines are not those that were signed, where the chain has not named them already."""
        named = {fault.seq for fault in verifier.report.faults[before:] if fault.run == run}
        for seq in lines[:NAMED_EACH]:
            if seq not in named:
                self._faults.append(Fault(run, seq, "changed: its line is not the one that was signed"))

    def _lines(self, member: Member) -> Iterator[bytes]:
        """Yield the lines of a run's file; what follows the last line end counts as one."""
        self._source.seek(member.offset)
        left = member.size
        while left:
            line = self._source.readline(min(left, LINE_LIMIT_BYTES))
            if not line:
                raise LogCorrupt("not a whole audit pack", detail=f"{member.name} became shorter while it was read")
            if len(line) == LINE_LIMIT_BYTES:
                raise LogCorrupt("not an audit pack", detail=f"a line of {member.name} is longer than an event can be")
            left -= len(line)
            yield line

    def _line(self, verifier: Verifier, run: str, line: bytes) -> None:
        found = _json(line)
        if not isinstance(found, dict) or not _is_spelt_so(found, line):
            verifier.skip(run, "it cannot be read, or is not spelt as it was written")
            return
        try:
            event = RunEvent.model_validate_json(line, strict=True)
            row = _row_of(event)
        except (ValidationError, ValueError):
            verifier.skip(run, "it is not an event as the contract has it")
            return
        if event.run != run:
            verifier.skip(run, f"it is an event of run {event.run}")
            return
        verifier.take(row)
        for sha256 in references_of(event):
            self._referred.setdefault(sha256, (run, event.seq))

    def _artifacts(self, manifest: PackManifest) -> None:
        for sha256, (run, seq) in self._referred.items():
            if f"artifacts/{sha256}" not in self._members and sha256 not in manifest.absent:
                self._faults.append(Fault(run, seq, f"its artifact {sha256} is missing from the pack"))
        for name, member in self._members.items():
            sha256 = name.removeprefix("artifacts/")
            if sha256 != name and self._digest(member) != sha256:
                run, seq = self._referred.get(sha256, ("", 0))
                self._faults.append(Fault(run, seq, f"the artifact {sha256} was changed: its bytes are others"))

    def _others(self, manifest: PackManifest) -> None:
        """Check that the files are those of the manifest; runs and artifacts have named their own faults."""
        for name in sorted(manifest.files.keys() - self._members.keys()):
            if not name.startswith("runs/"):
                self._faults.append(Fault("", 0, f"{name} is missing from the pack"))
        for name, member in self._members.items():
            if name in (MANIFEST, SIGNATURE):
                continue
            listed = manifest.files.get(name)
            if listed is None:
                self._faults.append(Fault("", 0, f"{name} was put into the pack after it was signed"))
            elif name.startswith("schemas/") and listed.sha256 != self._digest(member):
                self._faults.append(Fault("", 0, f"{name} is not the one that was signed"))
        runs = [packed.run for packed in manifest.runs]
        if len(set(runs)) != len(runs):
            self._faults.append(Fault("", 0, "a run stands twice in the manifest"))


def _manifest(told: bytes) -> PackManifest:
    found = _json(told)
    if not isinstance(found, dict) or not _is_spelt_so(found, told):
        raise LogCorrupt("not an audit pack that can be read", detail="its manifest is not spelt as one is written")
    try:
        return PackManifest.model_validate(found)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in fault["loc"])
        raise LogCorrupt(
            "not an audit pack that can be read", detail=f"its manifest: {place}: {fault['msg']}"
        ) from error


def _json(data: bytes) -> object:
    """Return the JSON value in *data*; None if there is none."""
    try:
        found: object = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return found


def _is_spelt_so(found: object, data: bytes) -> bool:
    """Whether *data* is the one spelling of *found*; nothing that is nested too deep to be written has one."""
    try:
        return canonical(found) + b"\n" == data
    except TypeError:
        return False


def _row_of(event: RunEvent) -> Row:
    """Return a packed event as a row; the canonical form of its payload is again the bytes that were hashed.

    Raises:
        ValueError: a digest is none.
    """
    digests = tuple(bytes.fromhex(text) for text in (event.payload_digest, event.body_digest, event.prev, event.hash))
    if any(len(digest) != len(GENESIS) for digest in digests):
        raise ValueError("a digest has another length")
    payload = event.payload
    return (
        event.run, event.seq, event.gid, event.at_ns, event.v, event.kind, event.code, event.actor, event.call,
        event.parent, canonical(event.privacy), event.erased_by, *digests,
        None if payload is None else bytes.fromhex(event.salt) + canonical(payload),
    )  # fmt: skip
