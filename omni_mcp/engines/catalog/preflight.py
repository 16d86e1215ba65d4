"""What a schema may cost at most, decided before any validator sees it.

A validator walks the instance and applies, at each place of it, every subschema that reaches that place. The number of
subschemas that can meet at one place is what an attacker inflates (`anyOf` over `anyOf`, recursion with several
branches), so that number is bounded here, level by level.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote

from omni_mcp.contracts.json import JsonValue, json_path

DEPTH_LIMIT = 32
SUBSCHEMA_LIMIT = 2_000
COST_LIMIT = 100_000
CLOSURE_LIMIT = 50_000  # keeps the preflight itself under half a second, whatever the schema
INSTANCE_DEPTH_LIMIT = 64  # what the protocol edge lets in
USABLE_DEPTH = 4  # a recursive schema that is too dear for instances of this depth is refused outright

DIALECT = "https://json-schema.org/draft/2020-12/schema"
DIALECTS = frozenset(
    {DIALECT, "https://json-schema.org/draft/2019-09/schema"}
    | {f"http://json-schema.org/draft-0{n}/schema" for n in (4, 6, 7)}
)

_HERE_ONE = ("not", "if", "then", "else")
_HERE_LIST = ("allOf", "anyOf", "oneOf")
_HERE_MAP = ("dependentSchemas", "dependencies")
_ANY_PROPERTY = ("additionalProperties", "unevaluatedProperties", "propertyNames")
_ANY_ITEM = ("items", "contains", "unevaluatedItems", "additionalItems")
_ASIDE = ("$defs", "definitions")
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")

Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Preflight:
    """The answer. `cost[d]` bounds how many subschemas meet at one place *d* levels deep; the last one holds below."""

    problems: tuple[tuple[Place, str], ...]
    cost: tuple[int, ...] = (1,)

    def cost_at(self, depth: int) -> int:
        """Return the bound for instances of *depth* levels."""
        return max(self.cost[: depth + 1])

    def messages(self) -> list[str]:
        """Return the problems as `$.path: message`."""
        return [f"{json_path(place)}: {message}" for place, message in self.problems]


@dataclass
class _Node:
    """One subschema and where its parts apply: here, at a named property, at any property, at an item."""

    place: Place
    here: list[int] = field(default_factory=list)
    property: list[tuple[str, int]] = field(default_factory=list)
    any_property: list[int] = field(default_factory=list)
    item: list[tuple[str, int]] = field(default_factory=list)
    any_item: list[int] = field(default_factory=list)
    references: list[tuple[Place, str]] = field(default_factory=list)


def preflight(schema: JsonValue, *, dialects: frozenset[str] = DIALECTS) -> Preflight:
    """Bound *schema*: dialect, local references only, depth, number of subschemas, expanded cost. Never raises."""
    if not isinstance(schema, Mapping):
        return Preflight(problems=(((), "a schema must be an object"),))
    walk = _Walk(schema, dialects)
    walk.run()
    if walk.problems:
        return Preflight(problems=tuple(walk.problems))
    order, loop = _order(walk.nodes)
    if loop is not None:
        return Preflight(problems=((walk.nodes[loop].place, "refers to itself without going deeper"),))
    closures = _closures(walk.nodes, order)
    if closures is None:
        return Preflight(problems=(((), "has too many references between its subschemas"),))
    cost, endless = _cost_by_level(walk.nodes, closures)
    too_dear = next((level for level, amount in enumerate(cost) if amount > COST_LIMIT), None)
    if too_dear is not None and (not endless or too_dear <= USABLE_DEPTH):
        return Preflight(problems=(((), f"expands to more than {COST_LIMIT} subschemas at one place"),))
    return Preflight(problems=(), cost=tuple(cost))


class _Walk:
    """Turns the tree into numbered nodes and resolves references between them."""

    def __init__(self, schema: Mapping[str, JsonValue], dialects: frozenset[str]) -> None:
        self.nodes: list[_Node] = []
        self.problems: list[tuple[Place, str]] = []
        self._root = schema
        self._dialects = dialects
        self._numbers: dict[Place, int] = {}
        self._anchors: dict[str, int] = {}
        self._todo: list[tuple[Mapping[str, JsonValue], int, int]] = []  # subschema, its number, its depth

    def run(self) -> None:
        self._enter(self._root, (), 1)
        while True:
            while self._todo and len(self.problems) < 20:
                schema, number, depth = self._todo.pop()
                self._visit(schema, self.nodes[number], depth)
            if not self._resolve() or self.problems:
                return

    def _enter(self, schema: JsonValue, place: Place, depth: int) -> int | None:
        """Give a subschema its number and queue it; booleans cost nothing and have none."""
        if isinstance(schema, bool):
            return None
        if not isinstance(schema, Mapping):
            self.problems.append((place, "a schema must be an object or a boolean"))
            return None
        if depth > DEPTH_LIMIT:
            self.problems.append((place, f"is nested deeper than {DEPTH_LIMIT} subschemas"))
            return None
        if len(self.nodes) >= SUBSCHEMA_LIMIT:
            if len(self.nodes) == SUBSCHEMA_LIMIT and not self.problems:
                self.problems.append((place, f"has more than {SUBSCHEMA_LIMIT} subschemas"))
            return None
        number = self._numbers.get(place)
        if number is None:
            number = self._numbers[place] = len(self.nodes)
            self.nodes.append(_Node(place))
            self._todo.append((schema, number, depth))
        return number

    def _visit(self, schema: Mapping[str, JsonValue], node: _Node, depth: int) -> None:
        self._identify(schema, node)
        for keyword, place, part in _parts(schema):
            number = self._enter(part, node.place + place, depth + 1)
            if number is None or keyword in _ASIDE:
                continue
            if keyword in _HERE_ONE or keyword in _HERE_LIST or keyword in _HERE_MAP:
                node.here.append(number)
            elif keyword == "properties":
                node.property.append((str(place[-1]), number))
            elif keyword in _ANY_PROPERTY or keyword == "patternProperties":
                node.any_property.append(number)
            elif len(place) == 2:  # prefixItems, or the older list form of items
                node.item.append((str(place[-1]), number))
            else:
                node.any_item.append(number)

    def _identify(self, schema: Mapping[str, JsonValue], node: _Node) -> None:
        """Dialect, anchors and references of one subschema."""
        dialect = schema.get("$schema")
        if dialect is not None and (not isinstance(dialect, str) or dialect.rstrip("#") not in self._dialects):
            self.problems.append(((*node.place, "$schema"), "is not a dialect that is supported here"))
        if node.place and isinstance(schema.get("$id"), str):
            self.problems.append(((*node.place, "$id"), "only the root of a schema may have an $id"))
        for keyword in ("$anchor", "$dynamicAnchor"):
            if isinstance(schema.get(keyword), str):
                self._anchors[schema[keyword]] = self._numbers[node.place]
        for keyword in _REFERENCES:
            target = schema.get(keyword)
            if isinstance(target, str):
                node.references.append(((*node.place, keyword), target))

    def _resolve(self) -> bool:
        """Tie references to nodes; True if that found subschemas in places that the walk had not seen."""
        before = len(self.nodes)
        for node in list(self.nodes):
            for place, target in node.references:
                number = self._target(place, target)
                if number is not None:
                    node.here.append(number)
            node.references = []
        return len(self.nodes) > before

    def _target(self, place: Place, target: str) -> int | None:
        if not target.startswith("#"):
            self.problems.append((place, "refers to another document; only references that begin with # are followed"))
            return None
        pointer = unquote(target[1:])
        if pointer and not pointer.startswith("/"):
            if pointer not in self._anchors:
                self.problems.append((place, f"refers to {target[:100]!r}, which is not there"))
            return self._anchors.get(pointer)
        found = _follow(self._root, pointer)
        if found is None:
            self.problems.append((place, f"refers to {target[:100]!r}, which is not there"))
            return None
        goal, value = found
        return self._enter(value, goal, len(goal) // 2 + 1 if goal not in self._numbers else 1)


def _parts(schema: Mapping[str, JsonValue]) -> Iterator[tuple[str, Place, JsonValue]]:
    """Yield (keyword, place below the schema, part) for every subschema directly inside *schema*."""
    for keyword in (*_HERE_ONE, *_ANY_PROPERTY, *_ANY_ITEM):
        if keyword in schema and not isinstance(schema[keyword], list):
            yield keyword, (keyword,), schema[keyword]
    for keyword in (*_HERE_LIST, "prefixItems", "items"):
        parts = schema.get(keyword)
        if isinstance(parts, list):
            yield from ((keyword, (keyword, index), part) for index, part in enumerate(parts))
    for keyword in (*_HERE_MAP, "properties", "patternProperties", *_ASIDE):
        named = schema.get(keyword)
        if isinstance(named, Mapping):
            for name, part in named.items():
                if keyword != "dependencies" or not isinstance(part, list):
                    yield keyword, (keyword, name), part


def _follow(root: JsonValue, pointer: str) -> tuple[Place, JsonValue] | None:
    """Follow a JSON pointer (RFC 6901)."""
    place: list[str | int] = []
    value = root
    for raw in pointer.split("/")[1:]:
        step = raw.replace("~1", "/").replace("~0", "~")
        if isinstance(value, Mapping) and step in value:
            place.append(step)
            value = value[step]
        elif isinstance(value, list) and step.isascii() and step.isdigit() and int(step[:9]) < len(value):
            place.append(int(step))
            value = value[int(step)]
        else:
            return None
    return tuple(place), value


def _order(nodes: Sequence[_Node]) -> tuple[list[int], int | None]:
    """Return the nodes so that each stands before those it applies at the same place, or a node that is in a loop."""
    waiting = [0] * len(nodes)
    for node in nodes:
        for number in node.here:
            waiting[number] += 1
    order = [number for number, count in enumerate(waiting) if count == 0]
    for number in order:  # grows while it is walked
        for after in nodes[number].here:
            waiting[after] -= 1
            if waiting[after] == 0:
                order.append(after)
    loop = next((number for number, count in enumerate(waiting) if count > 0), None)
    return order, loop


_Counts = dict[int, int]  # how often each subschema applies at one place


def _closures(nodes: Sequence[_Node], order: Sequence[int]) -> list[_Counts] | None:
    """Return for each subschema all that apply at the same place with it; None if that is more than can be held."""
    closures: list[_Counts] = [{} for _ in nodes]
    total = 0
    for number in reversed(order):
        closure = closures[number]
        closure[number] = 1
        for after in nodes[number].here:
            _add(closure, closures[after], 1)
        total += len(closure)
        if total > CLOSURE_LIMIT:
            return None
    return closures


def _add(counts: _Counts, more: Mapping[int, int], times: int) -> None:
    for number, count in more.items():
        counts[number] = counts.get(number, 0) + count * times


def _cost_by_level(nodes: Sequence[_Node], closures: Sequence[_Counts]) -> tuple[list[int], bool]:
    """Return the bound per level, and whether it goes on for ever (a recursive schema)."""
    costs: list[int] = []
    level = closures[0]
    for _ in range(INSTANCE_DEPTH_LIMIT + 1):
        costs.append(max(1, sum(level.values())))
        if costs[-1] > COST_LIMIT:
            return costs, _is_recursive(nodes)
        following = _one_deeper(nodes, closures, level)
        if following == level or not following:
            return costs, bool(following)
        level = following
    return costs, True


def _is_recursive(nodes: Sequence[_Node]) -> bool:
    """Whether some subschema can be reached from itself, on whatever way."""
    after = [
        {*node.here, *node.any_property, *node.any_item, *(n for _, n in node.property), *(n for _, n in node.item)}
        for node in nodes
    ]
    waiting = [0] * len(nodes)
    for targets in after:
        for number in targets:
            waiting[number] += 1
    order = [number for number, count in enumerate(waiting) if count == 0]
    for number in order:  # grows while it is walked
        for target in after[number]:
            waiting[target] -= 1
            if waiting[target] == 0:
                order.append(target)
    return len(order) < len(nodes)


def _one_deeper(nodes: Sequence[_Node], closures: Sequence[_Counts], level: Mapping[int, int]) -> _Counts:
    """Return an upper bound of what meets at any one place a level deeper: for each subschema, its dearest place."""
    worst: _Counts = {}
    for named_of, any_of in (("property", "any_property"), ("item", "any_item")):
        named: dict[str, _Counts] = {}
        anywhere: _Counts = {}
        for number, count in level.items():
            for name, part in getattr(nodes[number], named_of):
                _add(named.setdefault(name, {}), closures[part], count)
            for part in getattr(nodes[number], any_of):
                _add(anywhere, closures[part], count)
        dearest: _Counts = {}
        for counts in named.values():
            for part, count in counts.items():
                dearest[part] = max(dearest.get(part, 0), count)
        _add(dearest, anywhere, 1)
        for part, count in dearest.items():
            worst[part] = max(worst.get(part, 0), count)
    return worst
