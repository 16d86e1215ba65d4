"""The program of the process for large messages, complete: it parses them, and checks, masks and measures results.

    python -m omni_mcp.upstreams.large_program FD

Registered secrets come with the request that needs them, never in arguments or the environment.
"""

from __future__ import annotations

import hashlib
import socket
import sys

import orjson

from omni_mcp.contracts.json import JsonObject, canonical
from omni_mcp.contracts.large import kept_form, preview_of
from omni_mcp.engines.catalog.schemas import JsonSchemas
from omni_mcp.engines.secrets.masking import SecretMasker
from omni_mcp.engines.upstream.own_name import in_its_own_name
from omni_mcp.engines.upstream.wire.large_worker import Answered, answer_parse, serve, taken_apart

PROGRAM = "omni_mcp.upstreams.large_program"


class Looker:
    """Answers the request `look`."""

    def __init__(self) -> None:
        self._schemas = JsonSchemas()
        self._marks: dict[str, str] = {}
        self._masker = SecretMasker({})

    def __call__(self, asked: JsonObject, data: bytes) -> Answered:
        """Look at the result in the message *data*, which was parsed strictly before.

        The head holds `size_bytes`, `is_structured` and `problems`, and then `kept` with the bytes to keep behind the
        head, or the masked body as `taken_apart` writes it, or nothing more where it is too large and not kept.
        """
        body = in_its_own_name(orjson.loads(data)["result"])
        is_structured = "structuredContent" in body
        found: JsonObject = {"is_structured": is_structured, "problems": [], "size_bytes": len(canonical(body))}
        if asked["schema"] is not None and is_structured:
            found["problems"] = self._schemas.problems(asked["schema"], body["structuredContent"])
        is_large = found["size_bytes"] > asked["limit_bytes"]
        if found["problems"] or (is_large and not asked["keep"]):
            return found, []
        masker = self._masker_of(asked["marks"])
        masked = masker.mask_known(body)
        if not isinstance(masked, dict):
            return {"fault": "could not be masked"}, []
        if not is_large:
            head, texts = taken_apart(masked)
            return {**found, **head}, texts
        form, media_type = kept_form(masked)
        form = masker.mask_bytes(form)
        sha256 = hashlib.sha256(form).hexdigest()
        kept = {"size_bytes": len(form), "sha256": sha256, "media_type": media_type, "preview": preview_of(form)}
        return {**found, "kept": kept}, [form]

    def _masker_of(self, marks: dict[str, str]) -> SecretMasker:
        if marks != self._marks:
            self._marks, self._masker = marks, SecretMasker.of_marks(marks)
        return self._masker


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), {"parse": answer_parse, "look": Looker()})
