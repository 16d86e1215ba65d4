"""Risk classes: what a definition can do now that it could not before, as far as it can be told from what it says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.lock import RiskClass
from omni_mcp.contracts.manifest import Labels
from omni_mcp.engines.catalog.difference_finding import Finding, Text

WHY_LIMIT = 16

_INSTRUCTION_RULES = frozenset(
    {"override", "authority_tag", "concealment", "exfiltration", "bypass", "order", "preference", "names_foreign_tool"}
)
_HIDDEN_RULES = frozenset(
    {
        "tag_character", "bidi_character", "variation_selector", "control_character", "invisible_character",
        "unassigned_character", "look_alike_name", "mixed_script_name", "padding", "coded_text", "html_comment",
        "script",
    }
)  # fmt: skip
_PLACES: dict[RiskClass, re.Pattern[str]] = {
    "egress": re.compile(
        r"(?:^|_)(?:url|uri|urls|endpoint|webhook|callback|host|hostname|domain|recipient|email)(?:_|$)"
    ),
    "secret_path": re.compile(
        r"(?:^|_)(?:password|passwd|secret|secrets|token|api_?key|apikey|private_?key|credentials?)(?:_|$)"
    ),
    "nondeterminism": re.compile(r"(?:^|_)(?:seed|temperature|top_p|random|randomi[sz]e|sampling)(?:_|$)"),
}  # fmt: skip
_CHANCE = re.compile(
    r"\b(?:random(?:ly|i[sz]ed)?|non-?determinis\w+|current (?:date|time)|latest|real-?time|up-to-date)\b", re.I
)


def risks_of(
    old: JsonObject | None,
    new: JsonObject,
    *,
    old_labels: Labels | None,
    labels: Labels,
    findings: Iterable[Finding],
    texts: Iterable[Text],
    known: frozenset[tuple[str, str]] = frozenset(),
) -> dict[RiskClass, tuple[str, ...]]:
    """Return why accepting *new* with *labels* in place of *old* is a risk, by class.

    Args:
        old_labels: what the operator vouched for before; None if there was nothing.
        known: (path, text) of every string that the old definition has.
    """
    why: dict[RiskClass, list[str]] = {}

    def add(risk: RiskClass, reason: str) -> None:
        reasons = why.setdefault(risk, [])
        if reason not in reasons and len(reasons) < WHY_LIMIT:
            reasons.append(reason)

    if not labels.read_only and (old_labels is None or old_labels.read_only):
        add("write", "nobody vouches that it only reads")
    if labels.egress and (old_labels is None or not old_labels.egress):
        add("egress", "nobody vouches that it reaches no other machine")
    for name, risk in _hints(old, new):
        add(risk, name)
    for finding in findings:
        if (risk_class := _risk_of(finding)) is not None:
            add(risk_class, f"{finding.rule} at {finding.path}")
    for text in texts:
        if (text.path, text.text) not in known:
            for risk in _in_text(text):
                add(risk, f"{text.text if text.is_name else 'wording'} at {text.path}")
    return {risk: tuple(reasons) for risk, reasons in sorted(why.items())}


def _hints(old: JsonObject | None, new: JsonObject) -> Iterator[tuple[str, RiskClass]]:
    before, after = _annotations(old or {}), _annotations(new)
    if old is None or before == after:
        return
    if before.get("readOnlyHint") is True and after.get("readOnlyHint") is not True:
        yield "readOnlyHint is gone", "write"
    if before.get("destructiveHint") is False and after.get("destructiveHint") is not False:
        yield "destructiveHint is not false any more", "write"
    if before.get("openWorldHint") is False and after.get("openWorldHint") is not False:
        yield "openWorldHint is not false any more", "egress"
    if before.get("idempotentHint") is True and after.get("idempotentHint") is not True:
        yield "idempotentHint is gone", "nondeterminism"


def _annotations(definition: JsonObject) -> Mapping[str, object]:
    found = definition.get("annotations")
    return found if isinstance(found, dict) else {}


def _risk_of(finding: Finding) -> RiskClass | None:
    if finding.rule == "secret_path":
        return "secret_path"
    if finding.rule == "raw_address":
        return "egress"
    if finding.rule in _HIDDEN_RULES:
        return "hidden_text"
    return "instruction" if finding.rule in _INSTRUCTION_RULES and finding.severity != "note" else None


def _in_text(text: Text) -> Iterator[RiskClass]:
    is_parameter = text.is_name and len(text.place) > 1 and text.place[-2] == "properties"
    if is_parameter and text.place[0] == "inputSchema":
        name = re.sub(r"(?<=[a-z])(?=[A-Z])|-", "_", text.text).lower()
        for risk, pattern in _PLACES.items():
            if pattern.search(name):
                yield risk
    elif text.place == ("description",) and _CHANCE.search(text.text):
        yield "nondeterminism"
