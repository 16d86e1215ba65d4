"""Turns a server of a client's file into a definition of ours, with its secrets set apart."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from omni_mcp.clients.found import FoundServer, Input
from omni_mcp.clients.jsonc import writable
from omni_mcp.clients.mounts import propose_mounts, starts_in_project
from omni_mcp.clients.secret_values import LEAST_CHARS, NameTest, is_secret, is_secret_header, shown_text, shown_words
from omni_mcp.clients.template import Reference, Template, Unclear, only_text
from omni_mcp.contracts.json import JsonObject
from omni_mcp.server_definition import ServerDefinition

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9-]{0,31}) (\S.*)", re.DOTALL)
LONGEST_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretSource:
    """Where a secret comes from: a value to be written to a file of its own, a variable, or a person who was not asked
    yet."""

    kind: Literal["value", "env", "missing"]
    value: str = field(default="", repr=False)
    variable: str = ""
    asks: tuple[Input, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderSecret:
    """A secret in a header, and the word before it (`Bearer `) if there is one."""

    scheme: str
    source: SecretSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A definition without a name: `fields` are those of `ServerDefinition` that hold no secret. `left_out` are
    variables that the client passes on if they are set, and that are not set here."""

    found: FoundServer
    fields: JsonObject = field(repr=False)
    secret_env: Mapping[str, SecretSource] = field(default_factory=dict)
    secret_headers: Mapping[str, HeaderSecret] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def asks(self) -> tuple[Input, ...]:
        """Inputs whose values are needed and not known."""
        sources = [*self.secret_env.values(), *(header.source for header in self.secret_headers.values())]
        return tuple({ask.id: ask for source in sources for ask in source.asks}.values())


class Translator:
    """Turns found servers into candidates.

    Args:
        environment: variables that references may name.
        home: the person's home directory.
        is_secret_name: whether a variable or header of this name holds a secret.
        answers: what a person answered, by the key of the input.
    """

    def __init__(
        self, *, environment: Mapping[str, str], home: Path, is_secret_name: NameTest,
        answers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self._environment = environment
        self._home = home
        self._is_secret_name = is_secret_name
        self._answers = answers or {}

    def candidate_of(self, found: FoundServer) -> Candidate:
        """Return *found* as a candidate.

        Raises:
            Unclear: it cannot be a definition of ours; the message holds no value.
        """
        notes = list(found.notes)
        fields = self._remote_fields(found, notes) if found.command is None else self._command_fields(found, notes)
        if found.timeout_s is not None:
            fields["timeout_s"] = min(found.timeout_s, LONGEST_TIMEOUT_S)
        if not found.enabled:
            fields["enabled"] = False
        plain_env, secret_env = self._env(found, notes)
        plain_headers, secret_headers = self._headers(found)
        fields |= {"env": plain_env} if plain_env else {}
        fields |= {"headers": plain_headers} if plain_headers else {}
        sources = [*secret_env.values(), *(header.source for header in secret_headers.values())]
        for variable in sorted({source.variable for source in sources if source.kind == "env"}):
            if variable not in self._environment:
                notes.append(f"{variable} is not set here; it must be where the gateway starts")
        candidate = Candidate(
            found=found, fields=fields, secret_env=secret_env, secret_headers=secret_headers, notes=tuple(notes),
            left_out=tuple(name for name, template in found.env.items() if self._does_without(template)),
        )  # fmt: skip
        _check(candidate)
        return candidate

    def _command_fields(self, found: FoundServer, notes: list[str]) -> JsonObject:
        assert found.command is not None
        command = self._fixed_text(found.command, found, "command")
        args = [self._fixed_text(arg, found, "args") for arg in found.args]
        cwd = self._fixed_text(found.cwd, found, "cwd") if found.cwd else None
        if shown_words([command, *args], self._is_secret_name) != [command, *args]:
            notes.append("an argument looks like a secret and stays one: better put it into a variable")
        project = found.place.project
        if cwd is None and project is not None and starts_in_project([command, *args], project):
            cwd = str(project)
        mounts, about_mounts = propose_mounts([command, *args, *([cwd] if cwd else [])], self._home)
        notes += about_mounts
        if cwd and not found.cwd:
            if any(Path(mount.source) in (project, *Path(cwd).parents) for mount in mounts):
                notes.append(f"starts in {cwd}, as the client starts it")
            else:
                cwd = None  # it would not start at all in a place that it does not see
        fields: JsonObject = {"command": command}
        fields |= {"args": args} if args else {}
        fields |= {"cwd": cwd} if cwd else {}
        fields |= {"mounts": [mount.model_dump(exclude_defaults=True) for mount in mounts]} if mounts else {}
        return fields

    def _remote_fields(self, found: FoundServer, notes: list[str]) -> JsonObject:
        assert found.url is not None
        if found.env or found.args or found.cwd:
            raise Unclear("has a url and also what only a command can have")
        fields: JsonObject = {"url": self._fixed_text(found.url, found, "url")}
        if shown_text(fields["url"], self._is_secret_name) != fields["url"]:
            notes.append("the URL holds what looks like a secret, and it stays there: better send it as a header")
        return fields | ({"transport": found.transport} if found.transport != "auto" else {})

    def _env(self, found: FoundServer, notes: list[str]) -> tuple[dict[str, str], dict[str, SecretSource]]:
        plain: dict[str, str] = {}
        secret: dict[str, SecretSource] = {}
        for name, template in found.env.items():
            if self._does_without(template):
                notes.append(f"{name} is not set here and is left out, as the client does")
                continue
            source = self._secret(template, found, by_name=self._is_secret_name(name))
            if source is None:
                text = self._fixed_text(template, found, f"env.{name}")
                if is_secret(name, text, self._is_secret_name):
                    source = SecretSource(kind="value", value=text)
                else:
                    plain[name] = text
                    if self._is_secret_name(name) and text:
                        notes.append(f"{name} is too short or too plain a word to be kept as a secret")
            if source is not None:
                secret[name] = source
        return plain, secret

    def _does_without(self, template: Template) -> bool:
        return any(
            isinstance(part, Reference) and part.optional and part.name not in self._environment for part in template
        )

    def _headers(self, found: FoundServer) -> tuple[dict[str, str], dict[str, HeaderSecret]]:
        plain: dict[str, str] = {}
        secret: dict[str, HeaderSecret] = {}
        for name, template in found.headers.items():
            scheme, rest = _scheme_of(template)
            source = self._secret(rest, found, by_name=True)
            if source is None:
                text = self._fixed_text(rest, found, f"headers.{name}")
                if is_secret_header(name, text, self._is_secret_name):
                    source = SecretSource(kind="value", value=text)
                else:
                    plain[name] = scheme + text
            if source is not None:
                secret[name] = HeaderSecret(scheme=scheme, source=source)
        return plain, secret

    def _secret(self, template: Template, found: FoundServer, *, by_name: bool) -> SecretSource | None:
        """Return the source of a value with references that is a secret; None for one that is text."""
        references = [part for part in template if isinstance(part, Reference)]
        if not references:
            return None
        if len(template) == 1 and references[0].kind == "env":
            name = references[0].name
            is_set, has_default = name in self._environment, references[0].default is not None
            waits = not is_set and not has_default  # until it is set where the gateway starts
            if waits or ((by_name or self._is_secret_name(name)) and (is_set or not has_default)):
                return SecretSource(kind="env", variable=name)
        asks = [
            found.inputs.get(part.name, Input(id=part.name))
            for part in references
            if part.kind == "input" and self._input(part.name, found) is None
        ]
        if asks:
            return SecretSource(kind="missing", asks=tuple(asks))
        declared = any(
            part.kind == "input" and found.inputs.get(part.name, Input(id=part.name)).secret for part in references
        )
        secret = any(part.kind == "env" and self._is_secret_name(part.name) for part in references)
        text = self._fixed_text(template, found, "env")
        long_enough = len(text.strip()) >= (1 if declared else LEAST_CHARS)
        return SecretSource(kind="value", value=text) if (declared or secret) and long_enough else None

    def _fixed_text(self, template: Template, found: FoundServer, where: str) -> str:
        text = only_text(template)
        if text is not None:
            return text
        parts: list[str] = []
        for part in template:
            if isinstance(part, str):
                parts.append(part)
            elif part.kind == "env":
                value = self._environment.get(part.name, part.default)
                if value is None:
                    raise Unclear(f"{where} needs the variable {part.name}, which is not set")
                parts.append(value)
            else:
                answer = self._input(part.name, found)
                if answer is None:
                    raise Unclear(f"{where} needs the input {part.name!r}, and only env and headers can wait for one")
                parts.append(answer)
        return "".join(parts)

    def _input(self, name: str, found: FoundServer) -> str | None:
        key = input_key(found, name)
        if key in self._answers:
            return self._answers[key]
        known = found.inputs.get(name)
        return known.default if known and not known.secret else None


def input_key(found: FoundServer, name: str) -> str:
    """Return the key under which an answer to the input *name* of *found* is kept."""
    return f"{found.place.file}#{name}"


def definition_fields(candidate: Candidate, name_of: Callable[[str], str]) -> JsonObject:
    """Return the fields of the definition; `name_of(variable or header)` says what its secret is called."""
    fields = dict(candidate.fields)
    if candidate.secret_env:
        fields["secrets"] = {variable: name_of(variable) for variable in candidate.secret_env}
    if candidate.secret_headers:
        named = {
            header: f"{secret.scheme}secret:{name_of(header)}" for header, secret in candidate.secret_headers.items()
        }
        fields["headers"] = {**fields.get("headers", {}), **named}
    return fields


def _scheme_of(template: Template) -> tuple[str, Template]:
    """Split `Bearer …` off a header's value; a value without a word in front has none."""
    first = template[0]
    if not isinstance(first, str):
        return "", template
    if len(template) > 1:
        word = re.fullmatch(r"([A-Za-z][A-Za-z0-9-]{0,31}) ", first)
        return (first, template[1:]) if word else ("", template)
    split = _SCHEME.fullmatch(first)
    if split is None or " " in split[2] or split[1].lower() not in ("bearer", "basic", "token", "apikey", "key", "bot"):
        return "", template
    return f"{split[1]} ", (split[2],)


def _check(candidate: Candidate) -> None:
    """See whether the definition holds, with some name in place of each secret's, and its secrets can be passed on."""
    sources = {
        **candidate.secret_env,
        **{name: header.source for name, header in candidate.secret_headers.items()},
    }
    for name, source in sources.items():
        if "\x00" in source.value or writable(source.value) != source.value:
            raise Unclear(f"{name} holds a character that no variable or header can hold")
    try:
        ServerDefinition.model_validate(definition_fields(candidate, lambda _: "name"))
    except ValidationError as error:
        fault = error.errors()[0]
        path = ".".join(str(part) for part in fault["loc"])
        message = fault["msg"].removeprefix("Value error, ")
        raise Unclear(f"{path}: {message}" if path else message) from error
