"""A tool from an operation: its entry in the catalog, and the plan by which the cell writes its request."""

from __future__ import annotations

import re
from dataclasses import dataclass

from omni_mcp.contracts.hosts import host_of_url
from omni_mcp.contracts.json import JsonObject, canonical, digest_bytes
from omni_mcp.contracts.manifest import BindingSpec, Limits, ToolManifest
from omni_mcp.contracts.openapi import OpenApiSettings
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.openapi.bodies import read_answer, read_body
from omni_mcp.engines.openapi.document import Document, Fault, Operation
from omni_mcp.engines.openapi.naming import word_on
from omni_mcp.engines.openapi.parameters import BODY_ARGUMENT, read_parameters
from omni_mcp.engines.openapi.schemas import SchemaBook
from omni_mcp.engines.openapi.texts import find_hidden, plain_text

ENTRY_POINT = "openapi_call:openapi_call"
MARGIN_S = 5.0  # for the cell itself, beside the time of the exchange
OUTPUT_LIMIT_BYTES = 2 * 1024 * 1024
DESCRIPTION_CHARACTERS = 1_500


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolMaker:
    """Makes the tools of one document. `code` is the text of the module that runs in the cell."""

    server: str
    settings: OpenApiSettings
    document: Document
    book: SchemaBook
    base_url: str
    code: bytes

    def make(self, operation: Operation, name: str) -> tuple[Entry, JsonObject]:
        """Return the entry of *operation* and its plan. The entry's digest covers the plan.

        Raises:
            Fault: the operation cannot become a tool.
        """
        self.document.check_servers(operation, self.base_url)
        plan, input_schema = self._request(operation)
        answer, plan["accept"] = read_answer(self.document, operation, self.book)
        checked = answer if self.settings.check_answers else None
        word = word_on(operation, self.settings)
        timeout_s = word.timeout_s or self.settings.timeout_s
        plan |= {"timeout_s": timeout_s, "result": self.settings.result}
        manifest = ToolManifest(
            id=name, version=self._version(), title=_title(operation, name),
            description=self._description(operation, timeout_s), input_schema=input_schema,
            output_schema=self._output_schema(checked),
            deprecated="the interface's own document says so" if operation.value.get("deprecated") is True else None,
            binding=BindingSpec(kind="openapi_proxy", entry_point=ENTRY_POINT, profile="http", workspace="fresh"),
            hosts=(host_of_url(self.base_url),), side_effects=word.side_effects_for(operation.method),
            labels=word.labels_for(operation.method),
            limits=Limits(
                timeout_s=timeout_s + MARGIN_S, cpu_s=10, memory_mib=128, disk_mib=32,
                output_limit_bytes=OUTPUT_LIMIT_BYTES,
            ),
        )  # fmt: skip
        definition = _definition(manifest)
        if (hidden := find_hidden(definition)) is not None:
            raise Fault(operation.place, f"holds the invisible character {hidden}, which a person could not see")
        entry = Entry(
            kind="tool", server=self.server, name=name, definition=definition, version=manifest.version,
            binding="openapi_proxy", labels=manifest.labels, limits=manifest.limits,
            side_effects=manifest.side_effects, posture=manifest.binding.posture, profile=manifest.binding.profile,
            manifest=manifest, code_digest=digest_bytes(self.code + canonical(plan)),
        )  # fmt: skip
        return entry, plan

    def _request(self, operation: Operation) -> tuple[JsonObject, JsonObject]:
        """Return the plan of the request, and the schema of the arguments that it takes."""
        headers = frozenset(one.header.lower().replace("_", "-") for one in self.settings.credentials)
        parameters = read_parameters(self.document, operation, self.book, credential_headers=headers)
        body = read_body(self.document, operation, self.book)
        properties = {one.argument: one.schema for one in parameters}
        required = [one.argument for one in parameters if one.required]
        if body is not None:
            properties[BODY_ARGUMENT] = body.schema
            required += [BODY_ARGUMENT] if body.required else []
        schema: JsonObject = {"type": "object", "properties": properties, "additionalProperties": False}
        if required:
            schema["required"] = required
        scheme, _, rest = self.base_url.partition("://")
        authority, slash, prefix = rest.partition("/")
        plan: JsonObject = {
            "method": operation.method.upper(), "origin": f"{scheme}://{authority}", "prefix": slash + prefix,
            "path": operation.path, "parameters": [one.plan() for one in parameters],
            "body": body.plan(BODY_ARGUMENT) if body is not None else None,
        }  # fmt: skip
        return plan, self.book.complete(schema, "request")

    def _output_schema(self, answer: JsonObject | None) -> JsonObject | None:
        if self.settings.result == "body":
            return self.book.complete({"type": "object", "allOf": [answer]}, "response") if answer is not None else None
        properties: JsonObject = {
            "status": {"type": "integer"},
            "headers": {"type": "object", "additionalProperties": {"type": "string"}},
            "size": {"type": "integer", "description": "Bytes of the answer's body as received."},
            "body": answer if answer is not None else {},
            "text": {"type": "string", "description": "A body that is no JSON."},
            "saved": {"type": "string", "description": "Name of the artifact that holds the body."},
            "truncated": {"type": "boolean", "description": "The body goes on."},
        }
        whole: JsonObject = {
            "type": "object", "properties": properties, "required": ["status", "headers", "size"],
            "additionalProperties": False,
        }  # fmt: skip
        return self.book.complete(whole, "response")

    def _description(self, operation: Operation, timeout_s: float) -> str:
        own = operation.value.get("x-omni-description")
        said = [own] if isinstance(own, str) else [operation.value.get("summary"), operation.value.get("description")]
        texts = [plain_text(text, DESCRIPTION_CHARACTERS) for text in said if isinstance(text, str)]
        what = f"{operation.method.upper()} {self.base_url}{operation.path}; answers within {timeout_s:g} s."
        return "\n\n".join([*dict.fromkeys(text for text in texts if text), plain_text(what, 500)])

    def _version(self) -> str:
        return found if re.fullmatch(r"\d+\.\d+\.\d+", found := self.document.version_said) else "0.0.0"


def _title(operation: Operation, name: str) -> str:
    summary = operation.value.get("summary")
    title = plain_text(summary, 120).replace("\n", " ") if isinstance(summary, str) else ""
    return title or name


def _definition(manifest: ToolManifest) -> JsonObject:
    """Return the tool as MCP lists it (2025-11-25 and 2026-07-28, server/tools)."""
    deprecated = f"\n\nDeprecated: {manifest.deprecated}" if manifest.deprecated else ""
    definition: JsonObject = {
        "name": manifest.id,
        "title": manifest.title,
        "description": manifest.description + deprecated,
        "inputSchema": manifest.input_schema,
        "annotations": {
            "title": manifest.title,
            "readOnlyHint": manifest.labels.read_only,
            "destructiveHint": manifest.labels.destructive,
            "idempotentHint": manifest.side_effects != "non_idempotent",
            "openWorldHint": manifest.labels.egress,
        },
    }
    if manifest.output_schema is not None:
        definition["outputSchema"] = manifest.output_schema
    return definition
