"""A server behind the gateway as an operator defines it: a command for the sandbox, or a URL; secrets by name only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath, PurePosixPath
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from omni_mcp.contracts.errors import BadRequest, NotFound
from omni_mcp.contracts.json import JsonObject, digest
from omni_mcp.contracts.manifest import Closed, ServerName

RESERVED_NAMES = frozenset({"tools", "runs", "memory", "messages", "catalog"})  # servers of the gateway itself
SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "cookie"})
# The protocol and HTTP set these; a definition that did would break the connection.
_OWN_HEADERS = frozenset(
    {"host", "content-length", "content-type", "accept", "transfer-encoding", "connection", "upgrade", "te", "trailer"}
    | {"expect", "mcp-session-id", "mcp-protocol-version", "mcp-method", "mcp-name", "last-event-id"}
)
_NOT_WHAT_IS_REACHED = frozenset({"description", "enabled", "timeout_s"})
_PRESETS = frozenset({"npx", "uvx"})
_SECRET_HEADER_VALUE = re.compile(r"(?:(?P<scheme>[A-Za-z][A-Za-z0-9-]{0,31}) )?secret:(?P<name>\S+)")
_SECRET_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


def _text(value: str) -> str:
    if "\x00" in value or not _is_utf8(value):
        raise ValueError("holds a character that no command line or variable can hold")
    return value


def _is_utf8(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _absolute(value: str) -> str:
    path = PurePosixPath(_text(value))
    if not path.is_absolute() or ".." in path.parts:
        raise ValueError("must be an absolute path without ..")
    if str(path) == "/":
        raise ValueError("must not be the whole file system")
    return str(path)


def _host_and_port(value: str) -> str:
    found = re.fullmatch(r"(?:\*\.)?(?:[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*|\[[0-9A-Fa-f:.]+\]):(\d{1,5})", value)
    if not found or not 0 < int(found[1]) < 65536:
        raise ValueError("must be HOST:PORT or *.SUFFIX:PORT, such as api.example.org:443")
    return value


def _reference(value: str) -> str:
    form, _, rest = value.partition(":")
    if (
        form not in ("env", "file")
        or not rest
        or "\x00" in rest
        or (form == "file" and not rest.startswith(("/", "~")))
    ):
        raise ValueError("must be env:VARIABLE or file:/path; values do not belong here")
    return value


def _url(value: str) -> str:
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        raise ValueError("is no URL") from None  # the cause may quote a password
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or not value.isprintable():
        raise ValueError("must be an http or https URL with a host")
    if not value.isascii():
        raise ValueError("must be ASCII; write other characters percent-encoded, and names of hosts as xn--…")
    if " " in value or parts.fragment:
        raise ValueError("must hold neither a space nor a fragment (#…)")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not hold a user or password; send them as a header that names a secret")
    return value


def _without_reference(value: str) -> str:
    if "${secret:" in value:
        raise ValueError("must not hold ${secret:…}; name the secret under `secrets`, or as secret:NAME in a header")
    return _text(value)


Text = Annotated[str, AfterValidator(_text)]
Variable = Annotated[str, Field(pattern=r"^[^=\x00]{1,256}$")]
PlainValue = Annotated[str, AfterValidator(_without_reference)]
AbsolutePath = Annotated[str, AfterValidator(_absolute)]
Host = Annotated[str, AfterValidator(_host_and_port)]
SecretName = Annotated[str, Field(pattern=_SECRET_NAME)]
Url = Annotated[str, AfterValidator(_url)]


class MountDefinition(Closed):
    """A directory or file of the host that the server sees at the same place."""

    source: AbsolutePath
    writable: bool = False


class ServerDefinition(Closed):
    """One server: a command that runs in the sandbox, or a URL."""

    description: Text = Field("", max_length=1024)
    command: Text = Field("", description="Looked up on the PATH of the sandbox.")
    args: tuple[Text, ...] = Field((), max_length=256)
    env: dict[Variable, PlainValue] = Field({}, description="Variables of the command; secrets belong into `secrets`.")
    cwd: AbsolutePath | None = None
    profile: str = Field(
        "server",
        pattern=r"^[a-z0-9]+([_-][a-z0-9]+)*$",
        description="Sandbox profile; a command `npx` or `uvx` has the profile of its name unless another is named.",
    )
    mounts: tuple[MountDefinition, ...] = Field((), max_length=64)
    hosts: tuple[Host, ...] = Field((), max_length=64, description="HOST:PORT that the command may reach.")
    secrets: dict[Variable, SecretName] = Field({}, description="Variable = name of a secret.")
    url: Url | None = None
    headers: dict[str, PlainValue] = Field(
        {}, description="`secret:NAME` or `Bearer secret:NAME` for secret values; anything else is sent as it is."
    )
    transport: Literal["auto", "http", "sse"] = "auto"
    stateful: bool = Field(False, description="Each principal gets a connection of its own.")
    enabled: bool = True
    timeout_s: float = Field(60.0, gt=0, le=600)

    @model_validator(mode="before")
    @classmethod
    def _profile_of_the_command(cls, value: Any) -> Any:
        if isinstance(value, dict) and "profile" not in value and isinstance(value.get("command"), str):
            return {**value, "profile": preset_of(value["command"])}
        return value

    @field_validator("headers")
    @classmethod
    def _headers_can_be_sent(cls, headers: dict[str, str]) -> dict[str, str]:
        for name, value in headers.items():
            if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}", name):
                raise ValueError(f"{name!r} is no name of a header")
            if name.lower() in _OWN_HEADERS or name.lower().startswith("mcp-param-"):
                raise ValueError(f"{name} is set by the protocol")
            if not re.fullmatch(r"[\t\x20-\x7e\x80-\xff]*", value):
                raise ValueError(f"the value of {name} holds a character that a header cannot hold")
            secret = secret_of_header(value)
            if secret is not None and not re.fullmatch(_SECRET_NAME, secret[1]):
                raise ValueError(f"the value of {name} names no secret; write secret:NAME")
            if secret is None and name.lower() in SECRET_HEADERS:
                raise ValueError(f"the value of {name} is a secret; write secret:NAME or Bearer secret:NAME")
        return headers

    @model_validator(mode="after")
    def _one_way_to_reach_it(self) -> ServerDefinition:
        if bool(self.command) == (self.url is not None):
            raise ValueError("needs either a command or a url")
        for_command = {"args", "env", "cwd", "mounts", "hosts", "secrets"}
        for_url = {"headers", "transport"}
        wrong = sorted((for_url if self.command else for_command) & self.model_fields_set)
        wrong = [name for name in wrong if getattr(self, name) != type(self).model_fields[name].default]
        if wrong:
            raise ValueError(f"{', '.join(wrong)} cannot go with a {'command' if self.command else 'url'}")
        both = sorted(self.env.keys() & self.secrets.keys())
        if both:
            raise ValueError(f"{', '.join(both)} stands in env and in secrets")
        return self

    @property
    def definition(self) -> str:
        """Digest of everything that decides what is reached and how."""
        return digest({name: value for name, value in self.as_json().items() if name not in _NOT_WHAT_IS_REACHED})

    @property
    def secret_names(self) -> frozenset[str]:
        """Names of all secrets that the definition needs."""
        in_headers = (secret_of_header(value) for value in self.headers.values())
        return frozenset(self.secrets.values()) | {found[1] for found in in_headers if found}

    def environment(self, values: Mapping[str, str]) -> dict[str, str]:
        """Return the variables of the command with their secrets filled in.

        Raises:
            KeyError: *values* lacks a secret.
        """
        return {**self.env, **{variable: values[name] for variable, name in self.secrets.items()}}

    def header_values(self, values: Mapping[str, str]) -> dict[str, str]:
        """Return the headers with their secrets filled in.

        Raises:
            KeyError: *values* lacks a secret.
        """
        found: dict[str, str] = {}
        for name, value in self.headers.items():
            secret = secret_of_header(value)
            found[name] = secret[0] + values[secret[1]] if secret else value
        return found

    def changed(self, fields: Mapping[str, object]) -> ServerDefinition:
        """Return a copy that says *fields* instead.

        Raises:
            BadRequest: with them it is no definition.
        """
        try:
            return ServerDefinition.model_validate({**self.as_json(), **fields})
        except ValidationError as error:
            fault = error.errors()[0]
            path = ".".join(str(part) for part in fault["loc"])
            reason = fault["msg"].removeprefix("Value error, ")
            raise BadRequest(f"that is no server: {f'{path}: ' if path else ''}{reason}") from error

    def as_json(self) -> JsonObject:
        """Return what was said, without defaults."""
        fields = self.model_dump(mode="json", exclude_defaults=True)
        if self.profile == preset_of(self.command):
            fields.pop("profile", None)
        elif self.command:
            fields["profile"] = self.profile
        return fields


class Servers(Closed):
    """All of servers.toml: definitions by name, and the references of the secrets that they name."""

    servers: dict[ServerName, ServerDefinition] = {}
    secrets: dict[SecretName, Annotated[str, AfterValidator(_reference)]] = {}

    @model_validator(mode="after")
    def _names_are_free(self) -> Servers:
        own = sorted(RESERVED_NAMES & self.servers.keys())
        if own:
            raise ValueError(f"{', '.join(own)} is a server of the gateway itself; choose another name")
        return self

    def with_servers(self, added: Mapping[str, ServerDefinition], references: Mapping[str, str]) -> Servers:
        """Return a copy with *added* by name; *references* are added to the secrets.

        Raises:
            BadRequest: no server can be called that.
        """
        try:
            return Servers(servers={**self.servers, **added}, secrets={**self.secrets, **references})
        except ValidationError as error:
            reason = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
            raise BadRequest(f"{', '.join(map(repr, added))}: {reason}") from error

    def without_server(self, name: str) -> Servers:
        """Return a copy without *name*, and without the secrets that only it named.

        Raises:
            NotFound: there is no such server.
        """
        if name not in self.servers:
            raise NotFound(f"there is no server {name!r} in servers.toml; see: omni-mcp servers list")
        rest = {key: value for key, value in self.servers.items() if key != name}
        needed = {secret for definition in rest.values() for secret in definition.secret_names}
        gone = self.servers[name].secret_names - needed
        return Servers(servers=rest, secrets={key: value for key, value in self.secrets.items() if key not in gone})


def preset_of(command: str) -> str:
    """Return the sandbox profile that suits *command*."""
    name = PurePath(command.replace("\\", "/")).name.lower()
    stem = re.sub(r"\.(cmd|exe|bat|ps1)$", "", name)
    return stem if stem in _PRESETS else "server"


def secret_of_header(value: str) -> tuple[str, str] | None:
    """Return what stands before the secret (`"Bearer "` or nothing) and its name; None if *value* names none."""
    found = _SECRET_HEADER_VALUE.fullmatch(value)
    return (f"{found['scheme']} " if found["scheme"] else "", found["name"]) if found else None
