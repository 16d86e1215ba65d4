"""JSONPath (RFC 9535) without function extensions: names, indexes, slices, wildcards, descendants, unions, filters."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from failure import ToolFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

QUERY_LIMIT = 1024
NESTING_LIMIT = 16
VISIT_LIMIT = 1_000_000

Location = tuple["str | int", ...]
_NOTHING = object()  # what a query selects where there is nothing; it equals only itself
_NAME = re.compile(r"[A-Za-z_\u0080-\U0010FFFF][A-Za-z0-9_\u0080-\U0010FFFF]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)")
_COMPARISON = re.compile(r"==|!=|<=|>=|<|>")
_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "/": "/", "\\": "\\", "'": "'", '"': '"'}


class Name:
    def __init__(self, name: str) -> None:
        self.name = name


class Index:
    def __init__(self, index: int) -> None:
        self.index = index


class Slice:
    def __init__(self, start: int | None, end: int | None, step: int) -> None:
        self.start = start
        self.end = end
        self.step = step


class Wildcard:
    pass


class Filter:
    def __init__(self, test: Any) -> None:
        self.test = test


class Segment:
    """One step: its selectors, applied to the children, or with *deep* to all descendants too."""

    def __init__(self, selectors: tuple[Any, ...], deep: bool) -> None:
        self.selectors = selectors
        self.deep = deep


class Query:
    """A path that begins at the root (`$`) or at the value that a filter looks at (`@`)."""

    def __init__(self, rooted: bool, segments: tuple[Segment, ...]) -> None:
        self.rooted = rooted
        self.segments = segments

    @property
    def singular(self) -> bool:
        """Whether it selects at most one value: only such a query may be compared."""
        return all(
            not one.deep and len(one.selectors) == 1 and isinstance(one.selectors[0], Name | Index)
            for one in self.segments
        )


class Literal:
    def __init__(self, value: Any) -> None:
        self.value = value


class Compare:
    def __init__(self, left: Any, operator: str, right: Any) -> None:
        self.left = left
        self.operator = operator
        self.right = right


class Logic:
    """`or`, `and` or `not` over tests."""

    def __init__(self, operator: str, parts: tuple[Any, ...]) -> None:
        self.operator = operator
        self.parts = parts


def select(document: Any, query: str, *, limit: int) -> tuple[list[tuple[str, Any]], bool]:
    """Return (normalized path, value) of what *query* selects, at most *limit*, and whether there is more.

    Raises:
        ToolFailure: the query is not understood, with its column; or it visits too many values.
    """
    if len(query) > QUERY_LIMIT:
        raise ToolFailure(f"a query has at most {QUERY_LIMIT} characters")
    parsed = _Parser(query).whole()
    found: list[tuple[str, Any]] = []
    for location, value in _Search(document).run(parsed, document):
        if len(found) == limit:
            return found, True
        found.append((_normalized(location), value))
    return found, False


def _normalized(location: Location) -> str:
    """Write a location as RFC 9535 section 2.7 does: `$['a'][0]`."""
    text = "$"
    for step in location:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            inner = json.dumps(step, ensure_ascii=False)[1:-1].replace('\\"', '"').replace("'", "\\'")
            text += f"['{inner}']"
    return text


class _Parser:
    """Recursive descent over one query; every error names its column."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._nesting = 0

    def whole(self) -> Query:
        if not self._text.startswith("$"):
            raise self._error("a query begins with $")
        query = self._query()
        if self._at < len(self._text):
            raise self._error("unexpected text")
        return query

    def _error(self, message: str) -> ToolFailure:
        return ToolFailure(f"query, column {self._at + 1}: {message}")

    def _spaces(self) -> None:
        while self._text[self._at : self._at + 1] in (" ", "\t", "\n", "\r"):
            self._at += 1

    def _eat(self, token: str) -> bool:
        if self._text.startswith(token, self._at):
            self._at += len(token)
            return True
        return False

    def _need(self, token: str) -> None:
        self._spaces()
        if not self._eat(token):
            raise self._error(f"expected {token!r}")

    def _query(self) -> Query:
        rooted = self._text[self._at] == "$"
        self._at += 1
        segments: list[Segment] = []
        while True:
            before = self._at
            self._spaces()
            if self._eat(".."):
                segments.append(Segment(self._after_dots(), deep=True))
            elif self._eat("."):
                segments.append(Segment((self._dotted(),), deep=False))
            elif self._eat("["):
                segments.append(Segment(self._bracketed(), deep=False))
            else:
                self._at = before
                return Query(rooted, tuple(segments))

    def _after_dots(self) -> tuple[Any, ...]:
        return self._bracketed() if self._eat("[") else (self._dotted(),)

    def _dotted(self) -> Any:
        if self._eat("*"):
            return Wildcard()
        found = _NAME.match(self._text, self._at)
        if found is None:
            raise self._error("expected a name or *")
        self._at = found.end()
        if self._text.startswith("(", self._at):
            raise self._error("functions are not supported")
        return Name(found[0])

    def _bracketed(self) -> tuple[Any, ...]:
        self._nesting += 1
        if self._nesting > NESTING_LIMIT:
            raise self._error(f"is nested deeper than {NESTING_LIMIT} levels")
        selectors = [self._selector()]
        self._spaces()
        while self._eat(","):
            selectors.append(self._selector())
            self._spaces()
        self._need("]")
        self._nesting -= 1
        return tuple(selectors)

    def _selector(self) -> Any:
        self._spaces()
        if self._eat("*"):
            return Wildcard()
        if self._eat("?"):
            return Filter(self._either())
        if self._text[self._at : self._at + 1] in ("'", '"'):
            return Name(self._string())
        start = self._integer()
        self._spaces()
        if not self._eat(":"):
            if start is None:
                raise self._error("expected a quoted name, an index, a slice, * or ?")
            return Index(start)
        self._spaces()
        end = self._integer()
        self._spaces()
        step = None
        if self._eat(":"):
            self._spaces()
            step = self._integer()
        return Slice(start, end, 1 if step is None else step)

    def _integer(self) -> int | None:
        found = _INTEGER.match(self._text, self._at)
        if found is None:
            return None
        if found[0] == "-0" or len(found[0]) > 16:
            raise self._error("not an index")
        self._at = found.end()
        return int(found[0])

    def _string(self) -> str:
        quote = self._text[self._at]
        self._at += 1
        parts: list[str] = []
        while True:
            char = self._text[self._at : self._at + 1]
            if not char or char < " ":
                raise self._error("a quoted text is not closed")
            self._at += 1
            if char == quote:
                return "".join(parts)
            parts.append(self._escape(quote) if char == "\\" else char)

    def _escape(self, quote: str) -> str:
        char = self._text[self._at : self._at + 1]
        self._at += 1
        if char in _ESCAPES and (char not in "'\"" or char == quote):
            return _ESCAPES[char]
        found = re.compile(r"[0-9A-Fa-f]{4}(?:\\u[Dd][C-Fc-f][0-9A-Fa-f]{2})?").match(self._text, self._at)
        if char != "u" or found is None:
            raise self._error("not an escape")
        digits = found[0] if 0xD800 <= int(found[0][:4], 16) < 0xDC00 else found[0][:4]
        self._at += len(digits)
        text: str = json.loads(f'"\\u{digits}"')
        return text

    # Filters: `or` binds least, then `and`, then `not`.

    def _either(self) -> Any:
        parts = [self._both()]
        while self._after_spaces("||"):
            parts.append(self._both())
        return parts[0] if len(parts) == 1 else Logic("or", tuple(parts))

    def _both(self) -> Any:
        parts = [self._basic()]
        while self._after_spaces("&&"):
            parts.append(self._basic())
        return parts[0] if len(parts) == 1 else Logic("and", tuple(parts))

    def _after_spaces(self, token: str) -> bool:
        before = self._at
        self._spaces()
        if self._eat(token):
            return True
        self._at = before
        return False

    def _basic(self) -> Any:
        self._spaces()
        if self._eat("!"):
            self._spaces()
            return Logic("not", (self._group() if self._eat("(") else self._existence(),))
        if self._eat("("):
            return self._group()
        left = self._operand()
        self._spaces()
        found = _COMPARISON.match(self._text, self._at)
        if found is None:
            if isinstance(left, Query):
                return left
            raise self._error("expected a comparison")
        self._at = found.end()
        self._spaces()
        right = self._operand()
        if any(isinstance(side, Query) and not side.singular for side in (left, right)):
            raise self._error("only a path to one value can be compared")
        return Compare(left, found[0], right)

    def _group(self) -> Any:
        self._nesting += 1
        if self._nesting > NESTING_LIMIT:
            raise self._error(f"is nested deeper than {NESTING_LIMIT} levels")
        test = self._either()
        self._need(")")
        self._nesting -= 1
        return test

    def _existence(self) -> Query:
        operand = self._operand()
        if not isinstance(operand, Query):
            raise self._error("expected a path after !")
        return operand

    def _operand(self) -> Any:
        char = self._text[self._at : self._at + 1]
        if char in ("@", "$"):
            return self._query()
        if char in ("'", '"'):
            return Literal(self._string())
        for word, value in (("true", True), ("false", False), ("null", None)):
            if self._eat(word):
                return Literal(value)
        found = _NUMBER.match(self._text, self._at)
        if found is None:
            raise self._error("expected a path, a text, a number, true, false or null")
        self._at = found.end()
        return Literal(json.loads(found[0]))


class _Search:
    """Runs parsed queries over one document and counts what it visits."""

    def __init__(self, document: Any) -> None:
        self._document = document
        self._visits = 0

    def run(self, query: Query, start: Any) -> Iterator[tuple[Location, Any]]:
        found: Iterator[tuple[Location, Any]] = iter([((), self._document if query.rooted else start)])
        for segment in query.segments:
            found = self._step(segment, found)
        return found

    def _step(self, segment: Segment, nodes: Iterator[tuple[Location, Any]]) -> Iterator[tuple[Location, Any]]:
        for location, value in nodes:
            for place, here in self._descend(location, value) if segment.deep else [(location, value)]:
                for selector in segment.selectors:
                    yield from self._select(selector, place, here)

    def _visit(self) -> None:
        self._visits += 1
        if self._visits > VISIT_LIMIT:
            raise ToolFailure(f"the query visits more than {VISIT_LIMIT} values; make it more exact")

    def _descend(self, location: Location, value: Any) -> Iterator[tuple[Location, Any]]:
        todo = [(location, value)]
        while todo:
            place, here = todo.pop()
            self._visit()
            yield place, here
            todo.extend(reversed([((*place, key), child) for key, child in _children(here)]))

    def _select(self, selector: Any, location: Location, value: Any) -> Iterator[tuple[Location, Any]]:
        self._visit()
        if isinstance(selector, Name):
            if isinstance(value, dict) and selector.name in value:
                yield (*location, selector.name), value[selector.name]
        elif isinstance(selector, Index):
            if isinstance(value, list) and -len(value) <= selector.index < len(value):
                yield (*location, selector.index % len(value)), value[selector.index]
        elif isinstance(selector, Slice):
            if isinstance(value, list) and selector.step != 0:
                for index in range(*slice(selector.start, selector.end, selector.step).indices(len(value))):
                    self._visit()
                    yield (*location, index), value[index]
        else:
            for key, child in _children(value):
                self._visit()
                if isinstance(selector, Wildcard) or self._holds(selector.test, child):
                    yield (*location, key), child

    def _holds(self, test: Any, value: Any) -> bool:
        if isinstance(test, Logic):
            if test.operator == "not":
                return not self._holds(test.parts[0], value)
            return (any if test.operator == "or" else all)(self._holds(part, value) for part in test.parts)
        if isinstance(test, Query):
            return next(self.run(test, value), None) is not None
        return _compare(self._value(test.left, value), test.operator, self._value(test.right, value))

    def _value(self, operand: Any, value: Any) -> Any:
        if isinstance(operand, Literal):
            return operand.value
        return next((found for _, found in self.run(operand, value)), _NOTHING)


def _children(value: Any) -> list[tuple[str | int, Any]]:
    if isinstance(value, dict):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list) else []


def _compare(left: Any, operator: str, right: Any) -> bool:
    if operator in ("==", "!="):
        return _equal(left, right) == (operator == "==")
    if operator in ("<=", ">=") and _equal(left, right):
        return True
    if not (_both(left, right, str) or (_is_number(left) and _is_number(right))):
        return False
    return bool(left < right) if operator in ("<", "<=") else bool(left > right)


def _both(left: Any, right: Any, kind: type) -> bool:
    return isinstance(left, kind) and isinstance(right, kind)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _equal(left: Any, right: Any) -> bool:
    """Equality of JSON: Python's own says that true is 1."""
    if left is _NOTHING or right is _NOTHING:
        return left is right
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if _both(left, right, list):
        return len(left) == len(right) and all(_equal(one, two) for one, two in zip(left, right, strict=True))
    if _both(left, right, dict):
        return left.keys() == right.keys() and all(_equal(left[key], right[key]) for key in left)
    return bool(left == right)
