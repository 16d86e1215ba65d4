"""Settings of one OpenAPI document (`[openapi.NAME]` in omni.toml): where it is, whom it calls, what becomes tools."""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import unquote

from pydantic import AfterValidator, Field, model_validator

from omni_mcp.contracts.hosts import NO_HOST, host_of_url
from omni_mcp.contracts.manifest import Closed, Labels, SideEffects, ToolName

LONGEST_TIMEOUT_S = 590.0  # a cell gets a little more, and may have ten minutes
_TRANSPORT_HEADERS = frozenset(
    {
        "host", "connection", "content-length", "content-type", "transfer-encoding", "te", "trailer", "upgrade",
        "expect", "keep-alive",
    }
)  # fmt: skip


def check_base_url(url: str) -> str:
    """Return *url*, an origin with an optional path prefix, in its one spelling: no `/` at the end.

    Raises:
        ValueError: it is no such URL, or its path could be read in two ways.
    """
    if host_of_url(url) == NO_HOST or "?" in url or "#" in url:
        raise ValueError("must be an http or https URL in ASCII such as https://api.example.org/v1, without a query")
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    path = path.rstrip("/")
    parts = path.split("/") if path else []
    if any(unquote(part) in ("", ".", "..") or re.search(r"[/\\]", unquote(part)) for part in parts):
        raise ValueError("its path must hold no empty segment, no . or .. and no %2F")
    return f"{scheme.lower()}://{authority.lower()}{slash if path else ''}{path}"


def _header_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}", value) or value.lower() in _TRANSPORT_HEADERS:
        raise ValueError("must be the name of a header that carries a credential, such as Authorization")
    return value


class OpenApiCredential(Closed):
    """A header that the gateway adds to each call of the document's operations; no cell sees its value."""

    header: Annotated[str, AfterValidator(_header_name)] = "Authorization"
    secret: str = Field(description="A name of `[secrets]`.")
    prefix: Annotated[str, Field(pattern=r"^[ -~]{0,64}$")] = ""


class OperationSettings(Closed):
    """The operator's word on one operation; what is unset follows from its method."""

    name: ToolName | None = None
    read_only: bool | None = None
    destructive: bool | None = None
    reads_private: bool | None = None
    reads_untrusted: bool | None = None
    side_effects: SideEffects | None = None
    timeout_s: float | None = Field(None, gt=0, le=LONGEST_TIMEOUT_S)

    @model_validator(mode="after")
    def _say_no_opposites(self) -> OperationSettings:
        if self.read_only and (self.destructive or self.side_effects == "non_idempotent"):
            raise ValueError("read_only cannot go with destructive or side_effects non_idempotent")
        return self

    def labels_for(self, method: str) -> Labels:
        """Return the labels of an operation with this *method*."""
        harmless = not self.destructive and self.side_effects != "non_idempotent"
        reads = self.read_only if self.read_only is not None else method in ("get", "head") and harmless
        return Labels(
            read_only=reads,
            destructive=self.destructive if self.destructive is not None else not reads,
            egress=True,
            reads_private=self.reads_private is not False,
            reads_untrusted=self.reads_untrusted is not False,
        )

    def side_effects_for(self, method: str) -> SideEffects:
        """Return what a repeated call does (RFC 9110, 9.2.2)."""
        if self.side_effects is not None:
            return self.side_effects
        if self.labels_for(method).read_only:
            return "none"
        return "idempotent" if method in ("put", "delete", "options") else "non_idempotent"


class OpenApiSettings(Closed):
    """One document, whose operations become the tools of server NAME."""

    document: str = Field(min_length=1, description="Path of the file, YAML or JSON; relative to omni.toml.")
    base_url: Annotated[str, AfterValidator(check_base_url)] | None = Field(
        None, description="Origin and path prefix of every call; unset: the document's only server."
    )
    include: tuple[str, ...] = Field(
        (), description="Patterns such as `GET /pets/*` or `listPets`: only these become tools. Unset: all."
    )
    exclude: tuple[str, ...] = Field((), description="Patterns of operations that do not become tools.")
    credentials: tuple[OpenApiCredential, ...] = Field((), max_length=8)
    operations: dict[str, OperationSettings] = Field(
        {}, description="By operationId, or by method and path such as `GET /pets/{petId}`."
    )
    timeout_s: float = Field(30.0, gt=0, le=LONGEST_TIMEOUT_S, description="From the request to the end of its answer.")
    result: Literal["exchange", "body"] = Field(
        "exchange", description="`exchange`: status, headers and body; `body`: the JSON object of the answer alone."
    )
    check_answers: bool = Field(True, description="Whether an answer must fit the schema that the document gives it.")

    @model_validator(mode="after")
    def _credentials_know_their_origin(self) -> OpenApiSettings:
        if self.credentials and self.base_url is None:
            raise ValueError("with credentials base_url must be set: a document does not say where a secret goes")
        headers = [one.header.lower().replace("_", "-") for one in self.credentials]
        if len(set(headers)) != len(headers):
            raise ValueError("two credentials for one header")
        return self
