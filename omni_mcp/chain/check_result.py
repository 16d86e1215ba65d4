"""On the way back: registered secrets are masked, the result fits its schema, and a large one becomes a reference."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from omni_mcp.chain.masked_link import MaskedLink
from omni_mcp.contracts.artifact import ArtifactRef
from omni_mcp.contracts.call import Answer, Call, Handler, InputRequired, Result
from omni_mcp.contracts.errors import InvalidResult, OmniError, QuotaExceeded
from omni_mcp.contracts.json import JsonObject, canonical
from omni_mcp.contracts.large import LargeBody, kept_form, preview_of
from omni_mcp.contracts.ports import LargeArtifacts, Masker, Schemas
from omni_mcp.contracts.tool import Entry

OFF_LOOP_BYTES = 256 * 1024  # masking and encoding more than this would hold up other callers


class CheckResult:
    """Lets through what the tool promised; the full text of a large result stays within the owner's reach."""

    def __init__(self, schemas: Schemas, artifacts: LargeArtifacts, masker: Masker) -> None:
        self._schemas = schemas
        self._artifacts = artifacts
        self._masker = masker

    async def __call__(self, call: Call, proceed: Handler) -> Result:
        try:
            result = await proceed(call.but(link=MaskedLink(call.link, self._masker)))
        except OmniError as error:
            self._mask_error(error)
            raise
        if isinstance(result, InputRequired):
            return replace(result, requests=self._masker.mask_known(result.requests))
        if call.tool is None:
            return result
        if result.given:
            return replace(result, body=self._masker.mask_known(result.body))
        if result.large is not None:
            return await self._checked_elsewhere(call, call.tool, replace(result, large=None), result.large)
        self._check_schema(call.tool, result)
        size = await asyncio.to_thread(_size, result.body) if _looks_large(result) else _size(result.body)
        if size > OFF_LOOP_BYTES:
            body = await asyncio.to_thread(self._masker.mask_known, result.body)
        else:
            body = self._masker.mask_known(result.body)
        masked = result if body is result.body else replace(result, body=body)
        if size > call.tool.limits.output_limit_bytes:
            if call.kind == "prompt":
                raise _no_prompt(call, size)
            return await self._as_reference(call, masked, size)
        return masked

    async def _checked_elsewhere(self, call: Call, tool: Entry, answer: Answer, large: LargeBody) -> Answer:
        """The same for a result that the gateway does not hold."""
        schema, limit_bytes = _schema_of(tool, answer), tool.limits.output_limit_bytes
        keep = call.kind != "prompt"
        async with large.looked_at(schema=schema, limit_bytes=limit_bytes, keep=keep) as found:
            if schema is not None:
                _check(tool, is_structured=found.is_structured, problems=found.problems)
            if found.body is not None:
                return replace(answer, body=found.body)
            if found.kept is None:
                raise _no_prompt(call, found.size_bytes)
            with _room_for_it():
                ref = await self._artifacts.put_file(
                    found.kept, owner=call.principal.key, run=call.run, name=f"result of {call.name}"
                )
            return _referring(call, answer, ref, found.kept.preview, found.size_bytes)

    def _mask_error(self, error: OmniError) -> None:
        """What an engine says of a failure may quote the tool: the client gets it without secrets."""
        error.message = self._masker.mask_text(error.message)
        error.args = (error.message,)
        error.data = self._masker.mask_known(error.data)

    def _check_schema(self, tool: Entry, answer: Answer) -> None:
        """MCP 2026-07-28, server/tools, "output schema": structured results must conform; errors need not."""
        schema = _schema_of(tool, answer)
        if schema is None:
            return
        is_structured = "structuredContent" in answer.body
        problems = self._schemas.problems(schema, answer.body["structuredContent"]) if is_structured else ()
        _check(tool, is_structured=is_structured, problems=problems)

    async def _as_reference(self, call: Call, answer: Answer, size: int) -> Answer:
        data, media_type = kept_form(answer.body)
        with _room_for_it():
            ref = await self._artifacts.put(
                data, media_type=media_type, owner=call.principal.key, run=call.run, name=f"result of {call.name}"
            )
        return _referring(call, answer, ref, preview_of(data), size)


def _schema_of(tool: Entry, answer: Answer) -> JsonObject | None:
    """Return what structured content has to fit; None where nothing was promised."""
    schema: JsonObject | None = tool.definition.get("outputSchema")
    return None if tool.kind != "tool" or answer.is_error else schema


def _check(tool: Entry, *, is_structured: bool, problems: Sequence[str]) -> None:
    if not is_structured:
        raise InvalidResult(f"{tool.name!r} promises structured content and returned none")
    if problems:
        raise InvalidResult(f"the result of {tool.name!r} does not fit its schema", detail="; ".join(problems))


@contextmanager
def _room_for_it() -> Iterator[None]:
    try:
        yield
    except QuotaExceeded as full:
        raise InvalidResult(f"the result is too large to return and could not be kept: {full.message}") from full


def _no_prompt(call: Call, size: int) -> InvalidResult:
    return InvalidResult(f"{call.name!r} is larger than a prompt may be", detail=f"{size} bytes")


def _referring(call: Call, answer: Answer, ref: ArtifactRef, preview: str, size: int) -> Answer:
    """Return *answer* with a reference in the place of its body."""
    body = _reference_body(ref, preview, size, is_error=answer.is_error)
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


def _reference_body(ref: ArtifactRef, preview: str, size: int, *, is_error: bool) -> JsonObject:
    note = (
        f"The result has {size} bytes, more than a result may have. It is kept as {ref.uri} ({ref.media_type}, "
        f"{ref.size} bytes). Read a slice with artifact_read, search it with artifact_search, query it as JSON with "
        f'artifact_query; each takes {{"artifact": "{ref.sha256}"}}. It begins:\n\n{preview}'
    )
    link = {"type": "resource_link", "uri": ref.uri, "name": ref.name, "mimeType": ref.media_type, "size": ref.size}
    return {
        "content": [{"type": "text", "text": note}, link],
        "isError": is_error,
        "_meta": {"io.omni-mcp/artifact": ref.model_dump()},
    }
