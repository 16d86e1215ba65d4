"""An eval suite: runs and golden files that are made again, what is expected of them, and how many pass."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from omni_mcp.contracts.errors import ConfigError, NotFound, OmniError, Problem
from omni_mcp.contracts.json import JsonObject, JsonValue, canonical
from omni_mcp.contracts.manifest import Closed
from omni_mcp.engines.catalog.documents import SIZE_LIMIT_BYTES, read_document
from omni_mcp.engines.runlog.golden import Golden, read_golden
from omni_mcp.engines.runlog.signing import find_signing_key
from omni_mcp.paths import Home
from omni_mcp.replay.recorded import RecordedRun, read_run
from omni_mcp.replay.rerun import Options, Report, Rerun

_PART = re.compile(r"\.([A-Za-z_$][\w$-]*)|\[(\d+)\]|\[\"([^\"]*)\"\]")
_ABSENT = object()


class Expected(Closed):
    """What one call is to come back with. `call` counts from 1 in the run; paths are in the payload of its outcome."""

    call: int = Field(ge=1)
    outcome: str | None = Field(None, description="`tool_result`, or the code of an error.")
    fields: dict[str, JsonValue] = Field({}, description="Path such as `$.result.content[0].text` = its value.")
    contains: dict[str, str] = Field({}, description="Path = a text that the value has in it.")


class Case(Closed):
    """One run that is made again. It passes if nothing differs, and all that is expected is so."""

    name: str | None = None
    run: str | None = Field(None, description="Id of a run, or the beginning of one.")
    golden: str | None = Field(None, description="A golden file, beside the suite.")
    key: str | None = Field(None, description="Fingerprint of who may have signed it; without it, this gateway.")
    parity: bool = Field(True, description="false: only what `expect` says counts.")
    allow_writes: bool = False
    accept_changes: bool = False
    ignore: tuple[Annotated[str, Field(pattern=r"^[a-z_]+\.[^.].*$")], ...] = Field(
        (), description="Fields that do not count: kind or code of the event, then the field."
    )
    expect: tuple[Expected, ...] = ()

    @model_validator(mode="after")
    def _one_source(self) -> Case:
        if (self.run is None) == (self.golden is None):
            raise ValueError("a case names either a run or a golden file")
        if not self.parity and not self.expect:
            raise ValueError("without parity something must be expected")
        return self


class Suite(Closed):
    """All of a suite file."""

    suite: Literal[1]
    name: str | None = None
    threshold: float = Field(1.0, ge=0, le=1, description="The share of cases that must pass.")
    cases: tuple[Case, ...] = Field(min_length=1, max_length=1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """One case, ready to be made again; `fault` says why it cannot be."""

    case: Case
    name: str
    run: RecordedRun | None = None
    golden: Golden | None = None
    fault: str = ""

    @property
    def options(self) -> Options:
        """What its replay may do."""
        volatile: dict[str, tuple[str, ...]] = {}
        for field in self.case.ignore:
            code, _, path = field.partition(".")
            volatile[code] = (*volatile.get(code, ()), path)
        return Options(
            allow_writes=self.case.allow_writes, accept_changes=self.case.accept_changes, by="operator:eval",
            volatile=volatile, golden=tuple(self.golden.events) if self.golden is not None else (),
            stop_at_difference=self.case.parity,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of one case."""

    name: str
    faults: tuple[str, ...]
    replay: str | None = None

    def as_json(self) -> JsonObject:
        return {"name": self.name, "passed": not self.faults, "faults": list(self.faults), "replay": self.replay}


def load_suite(file: Path) -> Suite:
    """Read a suite.

    Raises:
        ConfigError: it cannot be read, is no YAML, or says something that a suite cannot say.
    """
    try:
        with file.open("rb") as source:
            document = read_document(source.read(SIZE_LIMIT_BYTES + 1), file=str(file))
    except OSError as error:
        raise ConfigError([Problem(file=str(file), line=0, path="", message=str(error))]) from error
    if document.problems:
        raise ConfigError(document.problems)
    try:
        return Suite.model_validate_json(canonical(document.value))
    except ValidationError as error:
        raise ConfigError([document.problem(one["loc"], one["msg"]) for one in error.errors()]) from error


def prepare(suite: Suite, home: Home, *, beside: Path) -> list[Prepared]:
    """Read what each case is about; a case that cannot be read fails, and takes no other with it."""
    return [_prepared(number, case, home, beside) for number, case in enumerate(suite.cases, 1)]


def judge(prepared: Prepared, report: Report) -> Verdict:
    """Say whether a case passed."""
    faults = [*_refusals(report), *(_differences(report) if prepared.case.parity else ())]
    for expected in prepared.case.expect:
        faults += _unmet(expected, report.calls)
    return Verdict(name=prepared.name, faults=tuple(faults), replay=report.replay)


def _prepared(number: int, case: Case, home: Home, beside: Path) -> Prepared:
    name = case.name or case.run or case.golden or str(number)
    try:
        golden = None
        if case.golden is not None:
            own = find_signing_key(home.secrets)
            golden, _ = read_golden(beside / case.golden, wanted=case.key, own=own.fingerprint if own else None)
        return Prepared(
            case=case, name=name, golden=golden, run=read_run(home, case.run or (golden.run if golden else ""))
        )
    except (OmniError, OSError) as error:
        detail = error.detail if isinstance(error, OmniError) and not isinstance(error, NotFound) else str(error)
        return Prepared(case=case, name=name, fault=detail)


def _refusals(report: Report) -> Iterator[str]:
    if report.refused:
        yield from (f"changed: {one}" for one in report.changed)


def _differences(report: Report) -> Iterator[str]:
    for number, one in enumerate(report.calls, 1):
        if one.difference is not None:
            yield f"step {number} {one.recorded.name} differs at {one.difference.path}"
        elif one.ending == "skipped":
            yield f"step {number} {one.recorded.name} was not made again: {one.why}"


def _unmet(expected: Expected, calls: Sequence[Rerun]) -> Iterator[str]:
    if expected.call > len(calls) or calls[expected.call - 1].outcome is None:
        yield f"call {expected.call} was not made again"
        return
    outcome = calls[expected.call - 1].outcome
    assert outcome is not None
    payload = outcome.payload or {}
    code = payload.get("code") or outcome.kind
    if expected.outcome is not None and code != expected.outcome:
        yield f"call {expected.call} ended as {code}, and {expected.outcome} is expected"
    for path, value in expected.fields.items():
        if (found := _at(payload, path)) != value:
            yield f"call {expected.call}: {path} is {_shown(found)}, and {_shown(value)} is expected"
    for path, text in expected.contains.items():
        if text not in str(found := _at(payload, path)):
            yield f"call {expected.call}: {path} is {_shown(found)}, and has no {text!r} in it"


def _at(value: JsonValue, path: str) -> JsonValue:
    """Return what stands at *path*, or something that equals nothing."""
    if not path.startswith("$") or "".join(found[0] for found in _PART.finditer(path[1:])) != path[1:]:
        return _ABSENT
    for found in _PART.finditer(path[1:]):
        key: str | int = int(found[2]) if found[2] is not None else found[1] if found[1] is not None else found[3]
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return _ABSENT
    return value


def _shown(value: JsonValue) -> str:
    return "(nothing)" if value is _ABSENT else repr(value)[:200]
