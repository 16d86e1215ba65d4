"""Difference: what a person has to see before accepting a definition, against an accepted one or against nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from omni_mcp.contracts.json import JsonObject, canonical
from omni_mcp.contracts.lock import RiskClass
from omni_mcp.contracts.manifest import Labels
from omni_mcp.engines.catalog.difference_characters import character_findings, name_findings, without_hidden
from omni_mcp.engines.catalog.difference_finding import RANK, Finding, Severity, Text, excerpt_of, texts_of
from omni_mcp.engines.catalog.difference_risks import risks_of
from omni_mcp.engines.catalog.difference_schema import Change, changes_between
from omni_mcp.engines.catalog.difference_words import word_findings

FINDINGS_LIMIT = 200
GROWTH_FACTOR, GROWTH_BYTES = 2.0, 1024
LARGE_BYTES = 16 * 1024
SPLIT_LIMIT = 64 * 1024

_PARAMETER_MAPS = frozenset({"properties", "$defs", "definitions"})
_CHANGES_SOMETHING = frozenset(
    {
        "delete",
        "remove",
        "drop",
        "write",
        "create",
        "update",
        "send",
        "post",
        "put",
        "insert",
        "execute",
        "exec",
        "kill",
    }
)
_SECRET_WORDS = ("token", "secret", "password", "passwd", "api_key", "apikey", "credential", "private_key")


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """Names of tools beside which a definition stands: the server's own, and those of other servers."""

    siblings: frozenset[str] = frozenset()
    others: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What a definition says that the accepted one does not, and what stands out in it.

    `findings` are of the new definition as a whole where `old` is None, else of what is new in it. `risks` says by
    class why accepting it with `labels` is a risk.
    """

    old: JsonObject | None
    new: JsonObject
    changes: tuple[Change, ...]
    findings: tuple[Finding, ...]
    texts: tuple[Text, ...]

    @property
    def severity(self) -> Severity | None:
        """The highest class among the findings."""
        return max((finding.severity for finding in self.findings), key=RANK.__getitem__, default=None)

    @property
    def widens(self) -> bool:
        """Whether arguments fit that did not before, or a promise was dropped."""
        return any(change.widens for change in self.changes)

    def risks(self, labels: Labels, *, before: Labels | None) -> dict[RiskClass, tuple[str, ...]]:
        """Return why accepting this with *labels* is a risk; *before* is what was vouched for until now."""
        known = (
            frozenset((text.path, text.text) for text in texts_of(self.old)) if self.old is not None else frozenset()
        )
        return risks_of(
            self.old, self.new, old_labels=before, labels=labels, findings=self.findings, texts=self.texts, known=known
        )

    def as_json(self) -> JsonObject:
        return {
            "severity": self.severity,
            "widens": self.widens,
            "changes": [change.as_json() for change in self.changes],
            "findings": [finding.as_json() for finding in self.findings],
        }


def difference(old: JsonObject | None, new: JsonObject, *, beside: Surroundings | None = None) -> Difference:
    """Compare two definitions of one name, or look at a new one where *old* is None.

    Nothing is left out: a place in which the two differ is among the changes, whatever it is called.
    """
    beside = beside or Surroundings()
    texts = tuple(texts_of(new))
    findings = [*_findings_of(new, texts, beside)]
    if old is not None:
        findings = [*_not_in(old, findings, texts, beside), *_growth(old, new)]
    findings.sort(key=lambda finding: -RANK[finding.severity])
    changes = tuple(changes_between(old, new)) if old is not None else ()
    return Difference(old=old, new=new, changes=changes, findings=tuple(findings[:FINDINGS_LIMIT]), texts=texts)


def _not_in(
    old: JsonObject, findings: Iterable[Finding], texts: Iterable[Text], beside: Surroundings
) -> Iterator[Finding]:
    """Leave out what was found in *old* already, at places where nothing changed: who edits a text answers for it."""
    old_texts = tuple(texts_of(old))
    known = {(finding.rule, finding.path, finding.excerpt) for finding in _findings_of(old, old_texts, beside)}
    changed = {path for path, _ in _facts(old_texts) ^ _facts(texts)}
    for finding in findings:
        is_touched = finding.path in changed or (finding.path == "$" and changed)
        if is_touched or (finding.rule, finding.path, finding.excerpt) not in known:
            yield finding


def _facts(texts: Iterable[Text]) -> frozenset[tuple[str, str]]:
    return frozenset((text.path, text.text) for text in texts)


def _findings_of(definition: JsonObject, texts: tuple[Text, ...], beside: Surroundings) -> Iterator[Finding]:
    own_name = str(definition.get("name", ""))
    siblings = beside.siblings - {own_name}
    names = [text for text in texts if text.is_name and len(text.place) > 1 and text.place[-2] in _PARAMETER_MAPS]
    names += [text for text in texts if text.place == ("name",)]
    yield from character_findings(texts)
    yield from name_findings(names, siblings=siblings, others=beside.others)
    words = list(word_findings(texts, siblings=siblings, others=beside.others - {own_name}))
    yield from words
    yield from _split_over_texts(texts, known={finding.rule for finding in words})
    yield from _hint_findings(definition)
    yield from _schema_findings(definition, ())
    size = len(canonical(definition))
    if size > LARGE_BYTES:
        yield Finding(rule="large", severity="note", path="$", excerpt=f"{size} bytes")


def _split_over_texts(texts: Iterable[Text], *, known: set[str]) -> Iterator[Finding]:
    """An instruction that begins in one description and ends in the next; *known* are rules that one text breaks."""
    prose = [text.text for text in texts if not text.is_name and text.place and text.place[-1] == "description"]
    if len(prose) < 2:
        return
    joined = Text((), " ".join(part.strip().rstrip(".…") for part in prose)[:SPLIT_LIMIT])
    for finding in word_findings([joined], siblings=(), others=()):
        if finding.rule in ("override", "concealment") and finding.rule not in known:
            yield replace(finding, rule="split_text", severity="warning")


def _hint_findings(definition: JsonObject) -> Iterator[Finding]:
    hints = definition.get("annotations")
    if not isinstance(hints, dict):
        return
    if hints.get("readOnlyHint") is True:
        if hints.get("destructiveHint") is True:
            yield Finding(
                rule="hints_disagree", severity="warning", path="$.annotations", excerpt="read-only, destructive"
            )
        name = without_hidden(str(definition.get("name", ""))).replace("-", "_")
        first = name.split("_", 1)[0].lower()
        if first in _CHANGES_SOMETHING:
            yield Finding(rule="hint_against_name", severity="warning", path="$.annotations.readOnlyHint", excerpt=name)


def _schema_findings(value: object, place: tuple[str | int, ...]) -> Iterator[Finding]:
    """References out of the document, and parameters that are copied into headers."""
    todo: list[tuple[tuple[str | int, ...], object]] = [(place, value)]
    while todo:
        here, item = todo.pop()
        if isinstance(item, list):
            todo += [((*here, number), inner) for number, inner in enumerate(item)]
        if not isinstance(item, dict):
            continue
        todo += [((*here, name), inner) for name, inner in item.items()]
        reference = item.get("$ref")
        if isinstance(reference, str) and not reference.startswith("#"):
            yield _at("remote_reference", "warning", (*here, "$ref"), reference)
        if "x-mcp-header" in item:
            secret = any(word in str(here[-1] if here else "").lower() for word in _SECRET_WORDS)
            where = (*here, "x-mcp-header")
            yield _at("header_parameter", "severe" if secret else "note", where, str(item["x-mcp-header"]))


def _at(rule: str, severity: Severity, place: tuple[str | int, ...], excerpt: str) -> Finding:
    return Finding(rule=rule, severity=severity, path=Text(place, "").path, excerpt=excerpt_of(excerpt))


def _growth(old: JsonObject, new: JsonObject) -> Iterator[Finding]:
    before, after = len(canonical(old)), len(canonical(new))
    if after - before > GROWTH_BYTES and after > before * GROWTH_FACTOR:
        yield Finding(rule="grown", severity="warning", path="$", excerpt=f"{before} bytes before, {after} now")
