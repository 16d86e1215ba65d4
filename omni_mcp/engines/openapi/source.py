"""OpenApiSource: the operations of one document as entries of the catalog, read again when the file changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from omni_mcp.contracts.errors import ConfigError, Problem
from omni_mcp.contracts.json import JsonObject, digest_bytes
from omni_mcp.contracts.openapi import OpenApiSettings
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.openapi.document import Document, Fault, Operation
from omni_mcp.engines.openapi.naming import chosen, loose_ends, tool_names
from omni_mcp.engines.openapi.reader import parse, read_bytes
from omni_mcp.engines.openapi.schemas import Refusals, SchemaBook
from omni_mcp.engines.openapi.tool import ToolMaker

CELL_MODULES = ("openapi_call.py", "openapi_request.py", "openapi_body.py", "openapi_answer.py")


class OpenApiSource:
    """Port `Source`.

    Args:
        server: the name in `[openapi.NAME]`, under which the tools stand.
        settings: what the operator says of the document.
        file: the document.
        code: the directory of the modules that run in the cell (`sandbox/tools`).
        refusals: why a schema may not be used for checking; nothing if it may.
        left_out: told, after each reading, the operations that could not become tools, with the reason.
    """

    def __init__(
        self, server: str, settings: OpenApiSettings, *, file: Path, code: Path, refusals: Refusals,
        left_out: Callable[[Sequence[Problem]], None] = lambda problems: None,
    ) -> None:  # fmt: skip
        self._server = server
        self._settings = settings
        self._file = file
        self._code = b"".join((code / name).read_bytes() for name in CELL_MODULES)
        self._refusals = refusals
        self._left_out = left_out
        self._read_digest = ""
        self._entries: list[Entry] = []
        self._plans: dict[str, JsonObject] = {}

    def load(self) -> Iterable[Entry]:
        """Return an entry for each operation that the settings choose.

        One operation that cannot be used hides no other.

        Raises:
            ConfigError: the file cannot be used, none of its operations can, or the settings name one that it lacks.
        """
        data = read_bytes(self._file)
        if digest_bytes(data) != self._read_digest:
            found = self._build(data)
            # a call that was decided before the change still finds its plan
            self._plans = {entry.digest: self._plans[entry.digest] for entry in self._entries} | {
                entry.digest: plan for entry, plan in found
            }
            self._entries = [entry for entry, _ in found]
            self._read_digest = digest_bytes(data)
        return list(self._entries)

    def plan_of(self, entry: Entry) -> JsonObject | None:
        """Return how the request of *entry* is written; None for a definition that is no more."""
        return self._plans.get(entry.digest)

    def _build(self, data: bytes) -> list[tuple[Entry, JsonObject]]:
        document = Document(parse(data, file=str(self._file)))
        try:
            maker = ToolMaker(
                server=self._server, settings=self._settings, document=document,
                book=SchemaBook(document, self._refusals),
                base_url=self._settings.base_url or document.base_url(), code=self._code,
            )  # fmt: skip
            operations = list(document.operations())
        except Fault as fault:
            raise ConfigError([document.problem(fault)]) from fault
        if problems := [self._loose_end(key, text) for key, text in loose_ends(operations, self._settings)]:
            raise ConfigError(problems)
        found, problems = _made(maker, document, chosen(operations, self._settings), self._settings)
        if problems and not found:
            raise ConfigError(problems)
        self._left_out(problems)
        return found

    def _loose_end(self, key: str, message: str) -> Problem:
        return Problem(file="omni.toml", line=0, path=f"$.openapi.{self._server}.{key}", message=message)


def _made(
    maker: ToolMaker, document: Document, operations: Sequence[Operation], settings: OpenApiSettings
) -> tuple[list[tuple[Entry, JsonObject]], list[Problem]]:
    names = tool_names(operations, settings)
    found: list[tuple[Entry, JsonObject]] = []
    problems: list[Problem] = []
    for operation in operations:
        try:
            found.append(maker.make(operation, names[operation.label]))
        except Fault as fault:
            problems.append(document.problem(Fault(fault.place, f"{operation.label} is left out: {fault.message}")))
    return found, problems
