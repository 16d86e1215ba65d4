"""On the way back: registered secrets are masked, the result fits its schema, and a large one becomes a reference."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from omni_mcp.chain.masked_link import MaskedLink
from omni_mcp.contracts.artifact import ArtifactRef
from omni_mcp.contracts.call import Answer, Call, Handler, InputRequired, Result
from omni_mcp.contracts.errors import InvalidResult, OmniError, QuotaExceeded
from omni_mcp.contracts.json import JsonObject, canonical
from omni_mcp.contracts.ports import Artifacts, Masker, Schemas
from omni_mcp.contracts.tool import Entry

PREVIEW_CHARACTERS = 2000
OFF_LOOP_BYTES = 256 * 1024  # masking and encoding more than this would hold up other callers


class CheckResult:
    """Lets through what the tool promised; the full text of a large result stays within the owner's reach."""

    def __init__(self, schemas: Schemas, artifacts: Artifacts, masker: Masker) -> None:
        self._schemas = schemas
        self._artifacts = artifacts
        self._masker = masker

    async def __call__(self, call: Call, proceed: Handler) -> Result:
        try:
            result = await proceed(replace(call, link=MaskedLink(call.link, self._masker)))
        except OmniError as error:
            self._mask_error(error)
            raise
        if isinstance(result, InputRequired):
            return replace(result, requests=self._masker.mask_known(result.requests))
        if call.tool is None:
            return result
        if result.given:
            return replace(result, body=self._masker.mask_known(result.body))
        self._check_schema(call.tool, result)
        size = await asyncio.to_thread(_size, result.body) if _looks_large(result) else _size(result.body)
        if size > OFF_LOOP_BYTES:
            body = await asyncio.to_thread(self._masker.mask_known, result.body)
        else:
            body = self._masker.mask_known(result.body)
        masked = replace(result, body=body)
        if size > call.tool.limits.output_limit_bytes:
            if call.kind == "prompt":
                raise InvalidResult(f"{call.name!r} is larger than a prompt may be", detail=f"{size} bytes")
            return await self._as_reference(call, masked, size)
        return masked

    def _mask_error(self, error: OmniError) -> None:
        """What an engine says of a failure may quote the tool: the client gets it without secrets."""
        error.message = self._masker.mask_text(error.message)
        error.args = (error.message,)
        error.data = self._masker.mask_known(error.data)

    def _check_schema(self, tool: Entry, answer: Answer) -> None:
        """MCP 2026-07-28, server/tools, "output schema": structured results must conform; errors need not."""
        schema = tool.definition.get("outputSchema")
        if tool.kind != "tool" or schema is None or answer.is_error:
            return
        if "structuredContent" not in answer.body:
            raise InvalidResult(f"{tool.name!r} promises structured content and returned none")
        if problems := self._schemas.problems(schema, answer.body["structuredContent"]):
            raise InvalidResult(f"the result of {tool.name!r} does not fit its schema", detail="; ".join(problems))

    async def _as_reference(self, call: Call, answer: Answer, size: int) -> Answer:
        data, media_type = _kept_form(answer.body)
        try:
            ref = await self._artifacts.put(
                data, media_type=media_type, owner=call.principal.key, run=call.run, name=f"result of {call.name}"
            )
        except QuotaExceeded as full:
            raise InvalidResult(f"the result is too large to return and could not be kept: {full.message}") from full
        body = _reference_body(ref, data, size)
        if call.kind == "resource":
            note = {"uri": call.name, "mimeType": "text/plain", "text": body["content"][0]["text"]}
            body = {"contents": [note], "_meta": body["_meta"]}
        return replace(answer, body=body, artifacts=(*answer.artifacts, ref.model_dump()))


def _looks_large(answer: Answer) -> bool:
    """A cheap guess before anything is encoded: one long text is what large results are made of."""
    blocks = answer.body.get("content") or answer.body.get("contents") or []
    return any(len(text) > OFF_LOOP_BYTES for block in blocks if isinstance(text := block.get("text", ""), str))


def _size(body: JsonObject) -> int:
    return len(canonical(body))


def _kept_form(body: JsonObject) -> tuple[bytes, str]:
    """What is stored: the structured content, else a lone text as it is, else the whole result."""
    if "structuredContent" in body:
        return canonical(body["structuredContent"]), "application/json"
    content = body.get("content") or []
    if len(content) == 1 and content[0].get("type") == "text":
        return str(content[0]["text"]).encode("utf-8", "replace"), "text/plain; charset=utf-8"
    return canonical(body), "application/json"


def _reference_body(ref: ArtifactRef, data: bytes, size: int) -> JsonObject:
    preview = data[: PREVIEW_CHARACTERS * 4].decode("utf-8", "replace")[:PREVIEW_CHARACTERS]
    note = (
        f"The result has {size} bytes, more than a result may have. It is kept as {ref.uri} ({ref.media_type}, "
        f"{ref.size} bytes). Read a slice with artifact_read, search it with artifact_search, query it as JSON with "
        f'artifact_query; each takes {{"artifact": "{ref.sha256}"}}. It begins:\n\n{preview}'
    )
    link = {"type": "resource_link", "uri": ref.uri, "name": ref.name, "mimeType": ref.media_type, "size": ref.size}
    return {
        "content": [{"type": "text", "text": note}, link],
        "isError": False,
        "_meta": {"io.omni-mcp/artifact": ref.model_dump()},
    }
