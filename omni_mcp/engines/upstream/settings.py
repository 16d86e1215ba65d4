"""`[servers.NAME]` of omni.toml: where an MCP server is, and what it may have. Values, never secrets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from omni_mcp.contracts.json import digest
from omni_mcp.contracts.manifest import Closed
from omni_mcp.engines.upstream.wire.web import place_of

_REFERENCE = re.compile(r"\$\{secret:([A-Za-z0-9_.-]{1,64})\}")
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,128}")
_OURS = frozenset(
    ("host", "content-length", "content-type", "accept", "transfer-encoding", "connection", "upgrade", "te", "trailer",
     "expect", "mcp-session-id", "mcp-protocol-version", "mcp-method", "mcp-name", "last-event-id")
)  # fmt: skip


def _url(value: str) -> str:
    place_of(value)
    return value


def _header_value(value: str) -> str:
    if not re.fullmatch(r"[\t\x20-\x7e\x80-\xff]*", value):
        raise ValueError("holds a character that a header cannot hold")
    return value


def _header_name(value: str) -> str:
    if not _HEADER_NAME.fullmatch(value) or value.lower() in _OURS or value.lower().startswith("mcp-param-"):
        raise ValueError("cannot be set: no header name, or one that the protocol sets")
    return value


Url = Annotated[str, AfterValidator(_url)]
HeaderName = Annotated[str, AfterValidator(_header_name)]
HeaderValue = Annotated[str, AfterValidator(_header_value)]


class MountSettings(Closed):
    """One directory or file of this machine that a server's process may see, at the same path."""

    path: str = Field(min_length=1, description="Absolute path, or one that begins with `~/`.")
    writable: bool = Field(False, description="Whether the server may change it.")

    @model_validator(mode="after")
    def _absolute(self) -> MountSettings:
        if not self.path.startswith(("/", "~/")) or "\0" in self.path:
            raise ValueError("path must be absolute or begin with ~/")
        return self


class UpstreamSettings(Closed):
    """One MCP server behind the gateway: a command that is started in the sandbox, or a URL."""

    command: str | None = Field(None, min_length=1, description="Program that speaks MCP over its standard streams.")
    args: tuple[str, ...] = Field((), description="Its arguments.")
    env: dict[str, str] = Field({}, description="Its environment; `${secret:NAME}` stands for a secret.")
    profile: str = Field("server", min_length=1, description="Sandbox profile that it runs in.")
    mounts: tuple[MountSettings, ...] = Field((), description="What it may see of this machine.")
    hosts: tuple[str, ...] = Field((), description="`host:port` that it may reach.")
    url: Url | None = Field(None, description="Where a server that runs already is reached.")
    headers: dict[HeaderName, HeaderValue] = Field(
        {}, description="Sent with every request; `${secret:NAME}` stands for a secret."
    )
    transport: Literal["auto", "streamable", "sse"] = Field(
        "auto", description="`auto` takes Streamable HTTP, and HTTP+SSE where the server has nothing newer."
    )
    stateful: bool = Field(False, description="It keeps state between calls: each principal gets a connection.")
    enabled: bool = Field(True, description="Whether it is used.")
    timeout_s: float = Field(60.0, gt=0, le=600, description="Deadline of one call.")

    @model_validator(mode="after")
    def _one_kind(self) -> UpstreamSettings:
        if (self.command is None) == (self.url is None):
            raise ValueError("give either command or url")
        given = self.model_fields_set
        other = {"args", "env", "profile", "mounts", "hosts"} if self.url is not None else {"headers", "transport"}
        if wrong := sorted(given & other):
            raise ValueError(f"{', '.join(wrong)} cannot go with {'url' if self.url is not None else 'command'}")
        return self

    @property
    def definition(self) -> str:
        """Digest of everything that decides what is reached and how."""
        return digest(self.model_dump(mode="json", exclude={"enabled", "timeout_s"}))

    @property
    def secrets(self) -> tuple[str, ...]:
        """Names of the secrets that it refers to."""
        texts = [*self.env.values(), *self.headers.values()]
        return tuple(sorted({name for text in texts for name in _REFERENCE.findall(text)}))


def filled(text: str, secrets: Mapping[str, str]) -> str:
    """Return *text* with its references replaced.

    Raises:
        KeyError: there is no such secret.
    """
    return _REFERENCE.sub(lambda found: secrets[found[1]], text)
