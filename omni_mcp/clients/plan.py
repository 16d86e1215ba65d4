"""What an import would add: one definition for each different server, its secrets named, everything else reported."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from omni_mcp.clients.candidate import Candidate, SecretSource, Translator, definition_fields
from omni_mcp.clients.found import FoundServer, Input, NotTaken, Reading
from omni_mcp.clients.package_sources import is_source_variable
from omni_mcp.clients.programs import with_program
from omni_mcp.clients.template import Unclear
from omni_mcp.contracts.errors import BadRequest, Conflict, Problem
from omni_mcp.paths import make_private_dir, write_private
from omni_mcp.server_definition import RESERVED_NAMES, ServerDefinition, Servers, secret_of_header
from omni_mcp.servers_file import edit_servers, read_reference

LONGEST_NAME = 24
LONGEST_SECRET_NAME = 58  # a number may follow
Value = tuple[str, str]  # a plain text, a secret's value, a variable that is not set, or a secret that is not known


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedSecret:
    """A secret of a planned server: its name, where the gateway will find it, and the value to be written there."""

    name: str
    used_for: str
    reference: str
    value: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedServer:
    """One definition, and every entry of a client that it stands for. `state` `same`: it is there already."""

    name: str
    definition: ServerDefinition = field(repr=False)
    state: Literal["new", "same"]
    found: tuple[FoundServer, ...]
    secrets: tuple[PlannedSecret, ...] = ()
    asks: tuple[Input, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportPlan:
    """All of it. `before` is what servers.toml said when the plan was made."""

    before: Servers = field(repr=False)
    servers: tuple[PlannedServer, ...] = ()
    not_taken: tuple[NotTaken, ...] = ()
    problems: tuple[Problem, ...] = ()

    @property
    def new(self) -> tuple[PlannedServer, ...]:
        """Those that are not there yet."""
        return tuple(server for server in self.servers if server.state == "new")

    def open_to(self, hosts: Sequence[str]) -> ImportPlan:
        """Return the plan with *hosts* for each new command.

        Raises:
            BadRequest: one of them is no host.
        """
        if not hosts:
            return self
        servers = (
            replace(server, definition=server.definition.changed({"hosts": (*server.definition.hosts, *hosts)}))
            if server.state == "new" and server.definition.command
            else server
            for server in self.servers
        )
        return replace(self, servers=tuple(servers))


class Planner:
    """Makes plans.

    Args:
        secrets_dir: where values are to be written, one file each.
        names_taken: servers that are defined elsewhere, so these names are not free.
        secrets_taken: secrets that are defined elsewhere.
        environment: for the secrets of servers that are there already, and for where programs are.
        home: the person's home directory.
    """

    def __init__(
        self, translator: Translator, *, secrets_dir: Path, environment: Mapping[str, str], home: Path,
        names_taken: Collection[str] = (), secrets_taken: Collection[str] = (),
    ) -> None:  # fmt: skip
        self._translator = translator
        self._secrets_dir = secrets_dir
        self._environment = environment
        self._home = home
        self._names_taken = frozenset(names_taken) | RESERVED_NAMES
        self._secrets_taken = frozenset(secrets_taken)

    def plan(self, readings: Iterable[Reading], before: Servers) -> ImportPlan:
        """Return what importing *readings* would do beside *before*; changes nothing."""
        planned: dict[str, PlannedServer] = {}
        not_taken: list[NotTaken] = []
        problems: list[Problem] = []
        now = _Known(before)
        for reading in readings:
            not_taken += reading.not_taken
            problems += reading.problems
            for found in reading.servers:
                try:
                    candidate = self._translator.candidate_of(found)
                except Unclear as error:
                    not_taken.append(NotTaken(name=found.name, place=found.place, reason=str(error)))
                    continue
                name = self._name_of_same(candidate, now, planned)
                if name is None:
                    server = self.named(self._free_name(found.name, now.servers), candidate, now.secrets)
                    now.add(server)
                    planned[server.name] = server
                elif name in planned:
                    planned[name] = replace(planned[name], found=(*planned[name].found, found))
                else:
                    planned[name] = PlannedServer(
                        name=name, definition=now.servers[name], state="same", found=(found,)
                    )  # fmt: skip
        return ImportPlan(
            before=before, servers=tuple(planned.values()), not_taken=tuple(not_taken), problems=tuple(problems)
        )

    def named(self, name: str, candidate: Candidate, known: Mapping[str, str]) -> PlannedServer:
        """Return *candidate* as the server *name*, with names for its secrets that are not among *known*."""
        sources = {
            **candidate.secret_env, **{header: found.source for header, found in candidate.secret_headers.items()}
        }  # fmt: skip
        taken = {**known, **dict.fromkeys(self._secrets_taken, "")}
        secrets: dict[str, PlannedSecret] = {}
        for used_for, source in sources.items():
            secret = self._planned_secret(f"{name}-{used_for}", used_for, source, taken)
            taken[secret.name] = secret.reference
            secrets[used_for] = secret
        notes = list(candidate.notes)
        if name != slug(candidate.found.name):
            own = slug(candidate.found.name) in RESERVED_NAMES
            why = "a server of the gateway itself" if own else "taken by a different server"
            notes.insert(0, f"the name {candidate.found.name!r} is {why}")
        fields = definition_fields(candidate, lambda used_for: secrets[used_for].name)
        missing = [secret for used_for, secret in secrets.items() if sources[used_for].kind == "missing"]
        if missing:
            fields["enabled"] = False
            places = ", ".join(secret.reference.removeprefix("file:") for secret in missing)
            notes.append(f"disabled until its secret is there: write it to {places}, then enable it")
        definition = ServerDefinition.model_validate(fields)
        if read := [mount.source for mount in definition.mounts if not mount.writable]:
            notes.append(f"may read {', '.join(read)}; to let it write: omni-mcp servers set {name} --dir {read[0]}:rw")
        return PlannedServer(
            name=name,
            definition=with_program(definition, self._environment, self._home),
            state="new",
            found=(candidate.found,),
            secrets=tuple(secrets.values()),
            asks=candidate.asks,
            notes=tuple(notes),
        )

    def _planned_secret(
        self, wanted: str, used_for: str, source: SecretSource, taken: Mapping[str, str]
    ) -> PlannedSecret:
        base = re.sub(r"[^a-z0-9._-]+", "-", wanted.lower())[:LONGEST_SECRET_NAME].strip("-._")
        name, number = base, 1
        while name in taken or self._is_other_value(name, source):
            number += 1
            name = f"{base}-{number}"
        if source.kind == "env":
            return PlannedSecret(name=name, used_for=used_for, reference=f"env:{source.variable}")
        value = source.value if source.kind == "value" else None
        return PlannedSecret(
            name=name, used_for=used_for, reference=f"file:{self._secrets_dir / name}", value=value
        )  # fmt: skip

    def _is_other_value(self, name: str, source: SecretSource) -> bool:
        """A file that an earlier import left is used again only for the same value; none is overwritten."""
        file = self._secrets_dir / name
        if source.kind == "env" or not file.exists():
            return False
        try:
            return source.kind == "missing" or read_reference(f"file:{file}", {}) != source.value.strip()
        except ValueError:
            return True

    def _free_name(self, wanted: str, now: Collection[str]) -> str:
        base = slug(wanted)
        name, number = base, 1
        while name in now or name in self._names_taken:
            number += 1
            tail = f"-{number}"
            name = base[: LONGEST_NAME - len(tail)].rstrip("-_") + tail
        return name

    def _name_of_same(self, candidate: Candidate, now: _Known, planned: Mapping[str, PlannedServer]) -> str | None:
        wanted = self._values_of_candidate(candidate)
        for name in now.by_launch.get(_launch_of(candidate), ()):
            written = {secret.name: secret.value for secret in planned[name].secrets} if name in planned else {}
            known = self._values_of(now.servers[name], now.secrets, written)
            if _agree(_as_wanted(known, wanted, candidate.left_out), wanted):
                return name
        return None

    def _values_of_candidate(self, candidate: Candidate) -> dict[str, Value]:
        found = {f"env {name}": ("is", text) for name, text in candidate.fields.get("env", {}).items()}
        found |= {f"header {name.lower()}": ("is", text) for name, text in candidate.fields.get("headers", {}).items()}
        found |= {f"env {name}": self._value_of(source) for name, source in candidate.secret_env.items()}
        for name, header in candidate.secret_headers.items():
            kind, text = self._value_of(header.source)
            found[f"header {name.lower()}"] = (kind, header.scheme + text if kind == "is" else text)
        return found

    def _value_of(self, source: SecretSource) -> Value:
        if source.kind == "env":
            value = self._environment.get(source.variable)
            return ("unset", source.variable) if value is None else ("is", value.strip())
        return ("is", source.value.strip()) if source.kind == "value" else ("unknown", "")

    def _values_of(
        self, definition: ServerDefinition, references: Mapping[str, str], written: Mapping[str, str | None]
    ) -> dict[str, Value]:
        found: dict[str, Value] = {f"env {name}": ("is", text) for name, text in definition.env.items()}
        for variable, secret in definition.secrets.items():
            found[f"env {variable}"] = self._value_of_named(secret, references, written)
        for name, text in definition.headers.items():
            named = secret_of_header(text)
            if named is None:
                found[f"header {name.lower()}"] = ("is", text)
                continue
            kind, value = self._value_of_named(named[1], references, written)
            found[f"header {name.lower()}"] = (kind, named[0] + value if kind == "is" else value)
        return found

    def _value_of_named(self, name: str, references: Mapping[str, str], written: Mapping[str, str | None]) -> Value:
        value = written.get(name)
        if value is not None:
            return "is", value.strip()
        form, _, rest = references.get(name, "").partition(":")
        try:
            return "is", read_reference(f"{form}:{rest}", self._environment).strip()
        except ValueError:
            return ("unset", rest) if form == "env" else ("unknown", "")


class _Known:
    """The servers and secrets that there are while a plan grows."""

    def __init__(self, before: Servers) -> None:
        self.servers = dict(before.servers)
        self.secrets = dict(before.secrets)
        self.by_launch: dict[tuple[object, ...], list[str]] = {}
        for name, definition in self.servers.items():
            self._index(name, definition)

    def add(self, server: PlannedServer) -> None:
        self.servers[server.name] = server.definition
        self.secrets |= {secret.name: secret.reference for secret in server.secrets}
        self._index(server.name, server.definition)

    def _index(self, name: str, definition: ServerDefinition) -> None:
        launch = (definition.command, definition.args, definition.cwd, definition.url)
        self.by_launch.setdefault(launch, []).append(name)


def slug(name: str) -> str:
    """Return *name* as a server can be called here: `My Server!` becomes `my-server`."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode("ascii").lower()
    text = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:LONGEST_NAME].strip("-")
    return text or "server"


def carry_out(plan: ImportPlan, *, file: Path, secrets_dir: Path) -> Servers:
    """Write the secrets of *plan*, then its definitions; returns all of servers.toml.

    Raises:
        Conflict: servers.toml changed since the plan was made.
        ConfigError: servers.toml cannot be read or written.
        BadRequest: a secret cannot be written.
    """
    if not plan.new:
        return plan.before

    def change(now: Servers) -> Servers:
        if now != plan.before:
            raise Conflict(f"{file} changed meanwhile; run the command again")
        for server in plan.new:
            write_secrets(server.secrets, secrets_dir)
        return now.with_servers(
            {server.name: server.definition for server in plan.new},
            {secret.name: secret.reference for server in plan.new for secret in server.secrets},
        )

    return edit_servers(file, change)


def write_secrets(secrets: Iterable[PlannedSecret], directory: Path) -> None:
    """Write each value to a file of its own, mode 0600.

    Raises:
        BadRequest: the directory is not private, or a file cannot be written.
    """
    try:
        for secret in secrets:
            if secret.value is not None:
                make_private_dir(directory.parent)
                write_private(make_private_dir(directory) / secret.name, secret.value.encode("utf-8"))
    except (OSError, UnicodeEncodeError) as error:
        raise BadRequest(f"a secret cannot be written: {error}") from error


def remove_secret_files(before: Servers, after: Servers, directory: Path) -> None:
    """Delete the files of secrets that are in *before* and no longer in *after*; only files that we wrote."""
    for name, reference in before.secrets.items():
        file = Path(reference.removeprefix("file:"))
        if name not in after.secrets and reference.startswith("file:") and file.parent == directory:
            file.unlink(missing_ok=True)


def _launch_of(candidate: Candidate) -> tuple[object, ...]:
    fields = candidate.fields
    return fields.get("command", ""), tuple(fields.get("args", ())), fields.get("cwd"), fields.get("url")


def _as_wanted(values: Mapping[str, Value], wanted: Mapping[str, Value], left_out: Collection[str]) -> dict[str, Value]:
    """Leave out the variables that we added so that the command finds itself and its package, and *left_out*."""
    names = {key.removeprefix("env "): key for key in values if key.startswith("env ")}
    ours = {key for name, key in names.items() if name == "PATH" or is_source_variable(name) or name in left_out}
    return {key: value for key, value in values.items() if key in wanted or key not in ours}


def _agree(one: Mapping[str, Value], other: Mapping[str, Value]) -> bool:
    """Whether two sets of values can be the same: a secret that is not known yet may be any."""
    if one.keys() != other.keys():
        return False
    return all(one[key] == other[key] or "unknown" in (one[key][0], other[key][0]) for key in one)
