"""Manifests: YAML files that each define one tool, read into entries of the catalog.

A file that defines what runs is code, so the operator's files must be his own and writable by nobody else. All faults
of all files are reported at once, each with file, line and JSON path; one broken file refuses the load as a whole, and
the catalog keeps what it had.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from omni_mcp.contracts.errors import ConfigError, Problem
from omni_mcp.contracts.json import JsonObject, JsonValue, canonical, digest_bytes
from omni_mcp.contracts.manifest import ToolManifest
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.catalog.documents import Document, Place, read_document
from omni_mcp.engines.catalog.lint import lint_schema
from omni_mcp.engines.catalog.manifest_files import DEFAULT_SERVER, file_fault, manifest_files, read_manifest
from omni_mcp.engines.catalog.names import SEPARATOR, public_name
from omni_mcp.engines.catalog.schemas import JsonSchemas
from omni_mcp.engines.catalog.versions import newest_of, sorted_newest

# Cf and Cc characters hide text from the person who accepts a tool; these few are ordinary in prose.
_ORDINARY = frozenset("\n\t‍")


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestDirectory:
    """One directory of manifests.

    Files directly in it belong to server `tools`, files in a subdirectory to the server of that name. `bundled`
    says that it came with the package: it is as trustworthy as the package's own code, so its owner and mode are not
    looked at, and it must exist.
    """

    path: Path
    bundled: bool = False


class ManifestSource:
    """Port `Source`: the entries of all manifests below some directories.

    A directory may hold several versions of one tool, a file each: the newest that is neither deprecated nor a
    pre-release is in force, the others are `superseded`. The same tool in two directories is refused.

    Args:
        directories: in order.
        code: the directory of the bundled entry points (`sandbox/tools`).
        in_process: the closed list of entry points that may run in the gateway's own process.
    """

    def __init__(
        self, directories: Sequence[ManifestDirectory], *, code: Path, in_process: frozenset[str] = frozenset()
    ) -> None:
        self._directories = tuple(directories)
        self._reader = ManifestReader(code=code, in_process=in_process)

    def load(self) -> Iterable[Entry]:
        """Return the entry of every manifest, in order of server and name.

        Raises:
            ConfigError: with every problem of every file.
        """
        problems: list[Problem] = []
        found: dict[tuple[str, str], list[tuple[Entry, Path, ManifestDirectory]]] = {}
        seen: set[tuple[Path, str]] = set()
        for directory in self._directories:
            for server, file in manifest_files(directory.path, trusted=directory.bundled, problems=problems):
                seen.add((file, server))
                entry = self._reader.read(file, server=server, trusted=directory.bundled, problems=problems)
                if entry is None:
                    continue
                known = found.setdefault((server, entry.name), [])
                if same := [place for one, place, of in known if of is not directory or one.version == entry.version]:
                    text = f"{server}{SEPARATOR}{entry.name} is defined already in {same[0]}"
                    problems.append(file_fault(file, text, path="$.id"))
                else:
                    known.append((entry, file, directory))
        self._reader.forget_all_but(seen)
        if problems:
            raise ConfigError(problems)
        return [entry for key in sorted(found) for entry in _side_by_side([entry for entry, _, _ in found[key]])]


class ManifestReader:
    """Reads and lints manifest files. One that says what it said before, about the same code, brings the same entry and
    is not linted again."""

    def __init__(self, *, code: Path, in_process: frozenset[str] = frozenset()) -> None:
        self._code = code
        self._in_process = in_process
        self._schemas = JsonSchemas(keep=16)
        self._known: dict[tuple[Path, str], tuple[str, Entry]] = {}  # digest of the file, and what it defines

    def read(self, file: Path, *, server: str = DEFAULT_SERVER, trusted: bool, problems: list[Problem]) -> Entry | None:
        """Return the entry that *file* defines, or None after adding all its faults to *problems*.

        With *trusted* the file's owner and mode are not looked at.
        """
        found: list[Problem] = []
        data = read_manifest(file, trusted=trusted, problems=found)
        entry = self._defined(data, file, server, found) if data is not None else None
        problems.extend(found)
        return entry

    def forget_all_but(self, files: Collection[tuple[Path, str]]) -> None:
        """Forget what files said that are there no more; *files* are (file, server)."""
        self._known = {place: known for place, known in self._known.items() if place in files}

    def _defined(self, data: bytes, file: Path, server: str, problems: list[Problem]) -> Entry | None:
        said = digest_bytes(data)
        known, entry = self._known.get((file, server), ("", None))
        if entry is not None and known == said and entry.manifest is not None:
            code = self._code_of(entry.manifest, file)
            if code == (entry.code_dir, entry.code_digest):
                return entry
        manifest = self._check(data, file, server, problems)
        if manifest is None or problems:
            return None
        made = self._entry(manifest, file, server)
        self._known[file, server] = said, made
        return made

    def _check(self, data: bytes, file: Path, server: str, problems: list[Problem]) -> ToolManifest | None:
        document = read_document(data, file=str(file))
        problems.extend(document.problems)
        if not document.complete:
            return None  # what half a file lacks is no fault of its own
        problems.extend(_lint_text(document))
        for name in ("input_schema", "output_schema"):
            if isinstance(document.value, dict) and isinstance(document.value.get(name), dict):
                problems.extend(lint_schema(document, (name,), needs_object=True))
        manifest = _parse(document, problems)
        if manifest is None or problems:
            return None
        problems.extend(self._lint_binding(document, manifest, file))
        problems.extend(self._lint_meaning(document, manifest, server))
        return manifest

    def _lint_binding(self, document: Document, manifest: ToolManifest, file: Path) -> Iterator[Problem]:
        binding = manifest.binding
        if binding.kind in ("mcp_remote", "openapi_proxy"):
            yield document.problem(
                ("binding", "kind"), f"{binding.kind} cannot be used in a manifest of this version; use sandbox_job"
            )
            return
        if binding.kind == "inproc_safe":
            if binding.entry_point not in self._in_process:
                yield document.problem(
                    ("binding", "entry_point"), "is not one of the gateway's own in-process tools; use sandbox_job"
                )
            return
        module, _, function = binding.entry_point.partition(":")
        if not (module.isidentifier() and function.isidentifier()):
            yield document.problem(("binding", "entry_point"), "must be module:function")
        elif self._module_of(module, file) is None:
            yield document.problem(
                ("binding", "entry_point"), f"there is no {module}.py among the bundled tools or beside the manifest"
            )
        argument = binding.artifact_argument
        if argument is not None and argument not in _mapping(manifest.input_schema.get("properties")):
            yield document.problem(("binding", "artifact_argument"), f"the input schema has no property {argument!r}")
        if argument is not None and binding.workspace in ("project", "state"):
            yield document.problem(
                ("binding", "artifact_argument"),
                f"an artifact cannot be put into a workspace that survives calls ({binding.workspace}); "
                "use workspace: none or fresh",
            )

    def _lint_meaning(self, document: Document, manifest: ToolManifest, server: str) -> Iterator[Problem]:
        """What only shows once the manifest as a whole is understood."""
        if public_name(server, manifest.id) != f"{server}{SEPARATOR}{manifest.id}":
            yield document.problem(("id",), f"{server}{SEPARATOR}{manifest.id} is longer than 64 characters")
        for name in ("input_schema", "output_schema"):
            schema = getattr(manifest, name)
            if schema is not None:
                for reason in self._schemas.refusals(schema):
                    yield document.problem((name,), f"does not compile: {reason}")
        if manifest.golden is not None:
            for fault in self._schemas.problems(manifest.input_schema, manifest.golden.arguments):
                yield document.problem(("golden", "arguments"), f"does not fit the input schema: {fault}")

    def _module_of(self, module: str, file: Path) -> Path | None:
        """The bundled module first: a file beside a manifest cannot take the place of one of ours."""
        return next(
            (path for path in (self._code / f"{module}.py", file.parent / f"{module}.py") if path.is_file()), None
        )

    def _code_of(self, manifest: ToolManifest, file: Path) -> tuple[str, str]:
        """Return the directory of the entry point's module where it is not a bundled one, and the module's digest."""
        if manifest.binding.kind != "sandbox_job":
            return "", ""
        module = self._module_of(manifest.binding.entry_point.partition(":")[0], file)
        if module is None:
            return "", ""
        code_digest = digest_bytes(module.read_bytes())
        return "" if module.parent == self._code else str(module.parent), code_digest

    def _entry(self, manifest: ToolManifest, file: Path, server: str) -> Entry:
        code_dir, code_digest = self._code_of(manifest, file)
        return Entry(
            kind="tool", server=server, name=manifest.id, definition=_definition(manifest), version=manifest.version,
            binding=manifest.binding.kind, labels=manifest.labels, limits=manifest.limits,
            side_effects=manifest.side_effects, posture=manifest.binding.posture,
            profile=manifest.binding.profile if manifest.binding.kind == "sandbox_job" else "", manifest=manifest,
            code_dir=code_dir, code_digest=code_digest,
        )  # fmt: skip


def _side_by_side(versions: list[Entry]) -> list[Entry]:
    newest = newest_of(versions)
    return [newest, *(replace(one, state="superseded") for one in sorted_newest(versions) if one is not newest)]


def _definition(manifest: ToolManifest) -> JsonObject:
    """Return the tool as MCP lists it (2025-11-25 and 2026-07-28, server/tools)."""
    description = manifest.description.strip()
    if manifest.deprecated:
        description = f"{description}\n\nDeprecated: {manifest.deprecated}"
    definition: JsonObject = {
        "name": manifest.id,
        "title": manifest.title,
        "description": description,
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


def _parse(document: Document, problems: list[Problem]) -> ToolManifest | None:
    if not isinstance(document.value, dict):
        problems.append(document.problem((), "must be a mapping with the fields of a manifest (docs/manifest.md)"))
        return None
    try:
        return ToolManifest.model_validate_json(canonical(document.value), strict=True)  # "yes" is no truth value
    except ValidationError as error:
        problems.extend(
            document.problem(tuple(fault["loc"]), _say(fault["type"], fault["msg"])) for fault in error.errors()
        )
        return None


def _say(kind: str, message: str) -> str:
    if kind == "extra_forbidden":
        return "is not a field of a manifest"
    if kind == "missing":
        return "is missing"
    return message.removeprefix("Value error, ")


def _mapping(value: JsonValue) -> JsonObject:
    return value if isinstance(value, dict) else {}


def _lint_text(document: Document) -> Iterator[Problem]:
    """Refuse characters that show nothing or turn text around: a person must see all that a model reads."""
    todo: list[tuple[Place, JsonValue]] = [((), document.value)]
    while todo:
        place, value = todo.pop()
        if isinstance(value, dict):
            todo.extend(((*place, key), inner) for key, inner in value.items())
            value = " ".join(value)
        elif isinstance(value, list):
            todo.extend(((*place, index), inner) for index, inner in enumerate(value))
        if isinstance(value, str):
            bad = next((char for char in value if char not in _ORDINARY and _is_hidden(char)), None)
            if bad is not None:
                yield document.problem(place, f"holds the invisible character U+{ord(bad):04X}")


def _is_hidden(char: str) -> bool:
    return (not char.isascii() and unicodedata.category(char) in ("Cf", "Cc", "Cn", "Co", "Cs")) or char < " "
