"""The one function through which everything passes before it is recorded: secrets go in, marks come out.

Two rules so far: registered values in their common encodings, and values under secret-like names. Both are first
looked for without building anything, because nearly every payload is clean; only a hit costs a rewrite.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import orjson

from omni_mcp.contracts.json import JsonValue
from omni_mcp.engines.secrets.encodings import forms_of, json_escaped
from omni_mcp.engines.secrets.finder import Finder
from omni_mcp.engines.secrets.key_names import is_secret_name

MARK = "[masked]"
UNCHECKED = "[masked: could not be checked]"
_SCALARS = frozenset({str, int, float, bool, type(None)})  # what holds nothing
KNOWN_NAMES_LIMIT = 4096  # names that clients choose are remembered up to this many
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class SecretMasker:
    """Masks registered secrets and values under secret-like names.

    Args:
        secrets: name to value. The name goes into the mark, the value goes nowhere but to `marks`.

    Raises:
        ValueError: a value is too short to be looked for; names it without showing it.
    """

    def __init__(self, secrets: Mapping[str, str]) -> None:
        self._mark_of: dict[str, str] = {}
        self._in_text: Finder | None = None
        self._in_json: Finder | None = None
        self._is_secret: dict[str, bool] = {}
        self._harmless: set[str] = set()  # those of them that are not: a whole object is compared at once
        self.add(secrets)

    @classmethod
    def of_marks(cls, marks: Mapping[str, str]) -> SecretMasker:
        """Return a masker of what another one masks."""
        made = cls({})
        made._use(dict(marks))
        return made

    @property
    def marks(self) -> Mapping[str, str]:
        """Every form that is looked for and what stands in its place: for a process of ours, and nobody else."""
        return self._mark_of

    def add(self, secrets: Mapping[str, str]) -> None:
        """Mask these too from now on; what was registered before stays masked.

        Raises:
            ValueError: a value is too short to be looked for; nothing was added.
        """
        marks: dict[str, str] = {}
        for name, value in secrets.items():
            try:
                forms = forms_of(value)
            except ValueError as error:
                raise ValueError(f"secret {name!r} cannot be masked: {error}") from None
            for form in forms:
                marks.setdefault(form, f"[masked:{name}]")
        if not marks.keys() <= self._mark_of.keys():
            self._use({**marks, **self._mark_of})

    def _use(self, mark_of: dict[str, str]) -> None:
        self._mark_of = mark_of
        if mark_of:
            self._in_text = Finder(mark_of)
            self._in_json = Finder(map(json_escaped, mark_of))

    def mask(self, value: JsonValue) -> tuple[JsonValue, tuple[str, ...]]:
        """Return *value* with secrets replaced, and the JSON paths that were touched. The input is not changed.

        What cannot be checked (cyclic, far too deep, not JSON) is replaced whole, field by field at the top.
        """
        try:
            if not self._has_secret_name(value) and not self._has_known(value):
                return value, ()
        except Exception:
            return self._mask_by_field(value)
        return self._mask_by_field(value)

    def mask_known(self, value: JsonValue) -> JsonValue:
        """Return *value* with registered secrets replaced only: what a client gets."""
        try:
            if not self._has_known(value):
                return value
            return self._rewrite(value, "$", [], names=False)
        except Exception:
            return UNCHECKED

    def mask_text(self, text: str) -> str:
        """Return *text* with registered secrets replaced: for log lines and messages."""
        if self._in_text is None:
            return text
        found = self._in_text.find(text.encode("utf-8", "surrogatepass"))
        if not found:
            return text
        return re.sub("|".join(map(re.escape, found)), lambda match: self._mark_of[match.group()], text)

    def mask_bytes(self, data: bytes) -> bytes:
        """Return *data* with registered secrets replaced: for files and blobs, text or not."""
        if self._in_text is None:
            return data
        found = self._in_text.find(data)
        for form in found:  # longest first, so a form inside another one does not cut it in two
            data = data.replace(form.encode("utf-8", "surrogatepass"), self._mark_of[form].encode())
        return data

    def _has_known(self, value: JsonValue) -> bool:
        """Say whether a registered secret may be in *value*; raises what orjson raises on things that are not JSON."""
        if self._in_json is None:
            return False
        try:
            text = orjson.dumps(value)
        except TypeError:
            return True  # a lone surrogate or a huge integer: the rewrite looks at each string by itself
        return self._in_json.is_any_in(text)

    def _has_secret_name(self, value: JsonValue) -> bool:
        harmless = self._harmless
        stack = [value]
        visited = 0
        while stack:
            item = stack.pop()
            inner: Iterable[JsonValue] = ()
            if isinstance(item, dict):
                if not harmless.issuperset(item) and any(self._learn(name) for name in item):
                    return True
                if "value" in item and _names_a_secret(item, self._learn):
                    return True
                inner = item.values()
            elif isinstance(item, list | tuple):
                inner = item
            if not _SCALARS.issuperset(map(type, inner)):
                visited += 1
                if visited > 10_000_000:
                    raise ValueError("too many nodes, or a cycle")
                stack += [one for one in inner if type(one) not in _SCALARS]
        return False

    def _learn(self, name: object) -> bool:
        if not isinstance(name, str):
            raise TypeError("a name that is not text")
        found = self._is_secret.get(name)
        if found is None:
            found = is_secret_name(name)
            if len(self._is_secret) < KNOWN_NAMES_LIMIT:
                self._is_secret[name] = found
                if not found:
                    self._harmless.add(name)
        return found

    def _mask_by_field(self, value: JsonValue) -> tuple[JsonValue, tuple[str, ...]]:
        if not isinstance(value, dict):
            return self._mask_field(value, "$", "")
        masked, paths = {}, []
        for name, inner in value.items():
            if not isinstance(name, str):
                return UNCHECKED, ("$",)
            key = self.mask_text(name)
            place = f"$.{_part(key)}"
            masked[key], touched = self._mask_field(inner, place, name)
            paths.extend([place] if key != name and place not in touched else [])
            paths.extend(touched)
        if isinstance(masked.get("value"), str) and _names_a_secret(value, self._learn):
            masked["value"], paths = MARK, [*paths, "$.value"]
        return masked, tuple(dict.fromkeys(paths))

    def _mask_field(self, value: JsonValue, place: str, name: str) -> tuple[JsonValue, tuple[str, ...]]:
        paths: list[str] = []
        try:
            if name and self._learn(name) and _has_content(value):
                return MARK, (place,)
            return self._rewrite(value, place, paths, names=True), tuple(paths)
        except Exception:
            return UNCHECKED, (place,)

    def _rewrite(self, value: JsonValue, place: str, paths: list[str], *, names: bool) -> JsonValue:
        if isinstance(value, str):
            masked = self.mask_text(value)
            if masked is not value and masked != value:
                paths.append(place)
            return masked
        if isinstance(value, list | tuple):
            return [self._rewrite(item, f"{place}[{at}]", paths, names=names) for at, item in enumerate(value)]
        if isinstance(value, dict):
            return self._rewrite_object(value, place, paths, names=names)
        return value

    def _rewrite_object(
        self, value: dict[str, JsonValue], place: str, paths: list[str], *, names: bool
    ) -> dict[str, JsonValue]:
        masked: dict[str, JsonValue] = {}
        pair = names and "value" in value and _names_a_secret(value, self._learn)
        for name, inner in value.items():
            key = self.mask_text(name)
            here = f"{place}.{_part(key)}"
            secret = names and (self._learn(name) or (pair and name == "value"))
            if secret and _has_content(inner):
                masked[key] = MARK
                paths.append(here)
                continue
            if key != name:
                paths.append(here)
            masked[key] = self._rewrite(inner, here, paths, names=names)
        return masked


def _names_a_secret(item: dict[str, JsonValue], is_secret: Callable[[object], bool]) -> bool:
    """Say whether `{"name": ..., "value": ...}` pairs a secret-like name with its value, as lists of headers do."""
    name = item.get("name") or item.get("key") or item.get("header")
    return isinstance(name, str) and is_secret(name)


def _has_content(value: JsonValue) -> bool:
    """Nothing is hidden by masking null, true, false or something empty; and it would hide that it was empty."""
    return value is not None and not isinstance(value, bool) and value not in ("", [], {}, ())


def _part(name: str) -> str:
    """A name in a path; paths outlive an erasure, so a name that may be somebody's text is not spelt out."""
    return name if _PLAIN_NAME.fullmatch(name) else "*"
