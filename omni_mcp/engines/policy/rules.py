"""A rule is one Cedar statement with a name; here a text is taken apart into rules, and their faults are found."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

from cedarpy import PolicySet as CedarSet
from cedarpy import pst

from omni_mcp.contracts.errors import Problem
from omni_mcp.engines.policy.problems import problem_at

SHIPPED_PREFIX = "guardrail-"  # ids of rules that ship; nobody else may use them
DEFAULT_TTL_S = 900.0
MAX_TTL_S = 7 * 86400.0  # a question older than a week is about a world that has moved on
# Cedar's parser recurses without a limit and takes the process with it when the stack ends. Measured on an 8 MiB stack:
# 300 brackets or 1,000 links of a chain are survived, 1,000 and 1,500 are not; what it can hand out ends at 100 levels.
MAX_NESTING = 100
MAX_LINKS = 600  # operators and attribute steps of one rule
_TTL = re.compile(r"(\d{1,6})(s|m|h|d)")
_NOT_CODE = re.compile(r'"(?:[^"\\]|\\.)*"|//[^\n]*', re.DOTALL)
_LINK = re.compile(r"[.\[+*!-]|&&|\|\||\b(?:if|in|is|has|like)\b|[<>=]=?")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.*#-]{0,127}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One permit or forbid. `file` and `line` say where it stands; `text` is what its author wrote."""

    id: str
    effect: Literal["permit", "forbid"]
    file: str
    line: int
    text: str
    annotations: Mapping[str, str]
    shipped: bool
    node: pst.Template = field(repr=False, compare=False)

    @property
    def asks(self) -> bool:
        """Whether it is an approval rule: a forbid that a person can lift."""
        return self.effect == "forbid" and "approval" in self.annotations

    @property
    def ttl_s(self) -> float:
        """Seconds for which a question of this rule stays open."""
        return parse_ttl(self.annotations["ttl"]) if "ttl" in self.annotations else DEFAULT_TTL_S

    @property
    def approvers(self) -> tuple[str, ...]:
        """Roles or users that the rule names for people to see; its `unless` is what decides."""
        parts = (part.strip() for part in self.annotations.get("approvers", "").split(","))
        return tuple(part for part in parts if part)


def parse_ttl(text: str) -> float:
    """Return seconds for a span such as `30s`, `15m`, `2h` or `1d`.

    Raises:
        ValueError: it is no such span, is zero, or is longer than seven days.
    """
    found = _TTL.fullmatch(text)
    seconds = float(int(found[1]) * _UNIT_S[found[2]]) if found else 0.0
    if not 0 < seconds <= MAX_TTL_S:
        raise ValueError(f"{text!r} is no span of time up to 7d; write it like 30s, 15m, 2h or 1d")
    return seconds


def parse_rules(file: str, text: str, *, shipped: bool) -> tuple[list[Rule], list[Problem]]:
    """Take one file apart. A rule that does not parse becomes a problem with the line on which it begins."""
    rules: list[Rule] = []
    problems: list[Problem] = []
    for number, (line, statement, complete) in enumerate(statements(text), start=1):
        if not complete:
            problems.append(problem_at(file, line, "", "the rule has no end; is the file cut off, or a `;` missing?"))
            continue
        try:
            _check_size(statement)
            node = _parse_one(statement)
        except ValueError as error:
            problems.append(problem_at(file, line, "", f"no Cedar rule: {error}"))
            continue
        rule = Rule(
            id=node.annotations.get("id") or f"{file}#{number}",
            effect=node.effect,
            file=file,
            line=line,
            text=statement,
            annotations=dict(node.annotations),
            shipped=shipped,
            node=node,
        )
        rules.append(rule)
        problems.extend(lint(rule))
    return rules, problems


def _parse_one(statement: str) -> pst.Template:
    parsed = CedarSet.from_str(statement).to_pst()
    if parsed.templates:
        raise ValueError("slots such as ?principal are not supported here; name the entity")
    if len(parsed.static_policies) != 1:
        raise ValueError("expected exactly one permit or forbid")
    return next(iter(parsed.static_policies.values()))


def _check_size(statement: str) -> None:
    """Refuse what could exhaust the parser's stack, before the parser sees it.

    Raises:
        ValueError: too deep or too long.
    """
    depth = deepest = 0
    code = _NOT_CODE.sub('""', statement)
    for char in code:
        depth += (char in "([{") - (char in ")]}")
        deepest = max(deepest, depth)
    if deepest > MAX_NESTING:
        raise ValueError(f"brackets are nested {deepest} deep; at most {MAX_NESTING} are supported")
    links = len(_LINK.findall(code))
    if links > MAX_LINKS:
        raise ValueError(f"{links} operators and attribute steps; split it into rules of at most {MAX_LINKS}")


def statements(text: str) -> Iterator[tuple[int, str, bool]]:
    """Yield (line, statement, whether it ends with `;`). Strings and `//` comments are looked at, nothing else is."""
    start: int | None = None
    at, size = 0, len(text)
    while at < size:
        char = text[at]
        if text.startswith("//", at):
            end = text.find("\n", at)
            at = size if end < 0 else end
            continue
        if start is None and not char.isspace():
            start = at
        if char == '"':
            at = _string_end(text, at)
            continue
        if char == ";" and start is not None:
            yield text.count("\n", 0, start) + 1, text[start : at + 1], True
            start = None
        at += 1
    if start is not None:
        yield text.count("\n", 0, start) + 1, text[start:], False


def _string_end(text: str, at: int) -> int:
    """Return the place after the string that begins at *at*, or the end of the text."""
    at += 1
    while at < len(text):
        if text[at] == "\\":
            at += 2
        elif text[at] == '"':
            return at + 1
        else:
            at += 1
    return len(text)


def lint(rule: Rule) -> list[Problem]:
    """Return what Cedar's own checks do not find: rules that would not do what their author meant."""
    found = [*_approval_faults(rule), *_id_faults(rule)]
    return [problem_at(rule.file, rule.line, path, message) for path, message in found]


def _approval_faults(rule: Rule) -> Iterator[tuple[str, str]]:
    marks = rule.annotations
    if "approval" in marks and rule.effect == "permit":
        # A second, broader permit beside it would let the call through without anybody being asked.
        yield (
            "@approval",
            "an approval belongs on `forbid … unless`, never on a permit: another permit would go round it",
        )
    elif "approval" in marks:
        if marks["approval"] != "required":
            yield "@approval", 'the only value is "required"'
        if not _mentions_approval(rule.node):
            yield "@approval", "the rule never looks at context.approval, so no approval could ever lift it"
    elif {"ttl", "approvers"} & marks.keys():
        yield "@ttl" if "ttl" in marks else "@approvers", 'means something only beside @approval("required")'
    if "ttl" in marks:
        try:
            parse_ttl(marks["ttl"])
        except ValueError as error:
            yield "@ttl", str(error)


def _id_faults(rule: Rule) -> Iterator[tuple[str, str]]:
    given = rule.annotations.get("id", "")
    if given and not _ID.fullmatch(given):
        yield "@id", "use up to 128 letters, digits and _ - . * #, beginning with a letter or digit"
    if given.startswith(SHIPPED_PREFIX) and not rule.shipped:
        yield "@id", f"ids that begin with {SHIPPED_PREFIX!r} belong to the rules that ship"


def _mentions_approval(node: object) -> bool:
    return any(
        isinstance(part, pst.HasAttr | pst.GetAttr)
        and part.base == pst.Var("context")
        and "approval" in (part.attrs[:1] if isinstance(part, pst.HasAttr) else (part.attr,))
        for part in _parts(node)
    )


def _parts(node: object) -> Iterator[object]:
    """Yield every node below *node*, without recursion: an expression may be a hundred levels deep."""
    todo: list[Any] = [node]
    while todo:
        part = todo.pop()
        if isinstance(part, Mapping):
            todo.extend(part.values())
        elif isinstance(part, tuple):
            todo.extend(part)
        elif is_dataclass(part) and not isinstance(part, type):
            yield part
            todo.extend(getattr(part, item.name) for item in fields(part))


def duplicates(rules: Iterable[Rule]) -> list[Problem]:
    """Return a problem for each rule whose id another rule has: a decision names rules by id."""
    first: dict[str, Rule] = {}
    problems = []
    for rule in rules:
        other = first.setdefault(rule.id, rule)
        if other is not rule:
            message = f"the id {rule.id!r} is taken by {other.file}:{other.line}"
            problems.append(problem_at(rule.file, rule.line, "@id", message))
    return problems
