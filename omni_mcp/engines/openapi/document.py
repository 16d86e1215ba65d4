"""Document: an OpenAPI 3.0 or 3.1 document, whose references lead nowhere but into itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote

from omni_mcp.contracts.errors import ConfigError, Problem
from omni_mcp.contracts.json import JsonObject, JsonValue
from omni_mcp.contracts.openapi import check_base_url
from omni_mcp.engines.openapi.reader import Place, ReadFile

METHODS = ("get", "put", "post", "delete", "options", "head", "patch")  # the way out of a cell knows no trace
OPERATION_LIMIT = 2_000
REFERENCE_CHAIN = 32
_DIALECTS = ("https://spec.openapis.org/oas/3.1/dialect/base", "https://json-schema.org/draft/2020-12/schema")

Version = Literal["3.0", "3.1"]


class Fault(Exception):
    """One place of the document cannot be used."""

    def __init__(self, place: Place, message: str) -> None:
        super().__init__(message)
        self.place = place
        self.message = message


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path. `shared` is the path item around it, at `shared_place`."""

    method: str
    path: str
    value: JsonObject
    place: Place
    shared: JsonObject
    shared_place: Place

    @property
    def id(self) -> str:
        """Its operationId; empty where it has none."""
        return str(self.value.get("operationId") or "")

    @property
    def label(self) -> str:
        """Such as `GET /pets/{petId}`."""
        return f"{self.method.upper()} {self.path}"


class Document:
    """What a file says.

    Raises:
        ConfigError: it is no document of a version that is understood.
    """

    def __init__(self, read: ReadFile) -> None:
        self._read = read
        self._root = read.value
        self.version: Version = "3.1" if str(self._root.get("openapi")).startswith("3.1.") else "3.0"
        problems = [read.problem(place, message) for place, message in self._outline()]
        if problems:
            raise ConfigError(problems)

    @property
    def version_said(self) -> str:
        """The version of the interface, as its author writes it."""
        return str(self._root["info"].get("version") or "")

    def problem(self, fault: Fault) -> Problem:
        """Return *fault* with its file and line."""
        return self._read.problem(fault.place, fault.message)

    def operations(self) -> Iterator[Operation]:
        """Yield every operation in the order of the file.

        Raises:
            Fault: a path item leads nowhere, or there are too many.
        """
        count = 0
        for path, item in self._root.get("paths", {}).items():
            if path.startswith("x-"):
                continue
            shared, place = self.resolve(item, ("paths", path))
            for method in METHODS:
                if method not in shared:
                    continue
                count += 1
                if count > OPERATION_LIMIT:
                    raise Fault(("paths",), f"holds more than {OPERATION_LIMIT} operations")
                value = shared[method]
                if not isinstance(value, dict):
                    raise Fault((*place, method), "must be a mapping")
                yield Operation(
                    method=method, path=path, value=value, place=(*place, method), shared=shared, shared_place=place
                )

    def resolve(self, value: JsonValue, place: Place) -> tuple[JsonObject, Place]:
        """Return the mapping that *value* is or refers to, and where that stands.

        Raises:
            Fault: it is none, or its references leave the document, lead nowhere or in a circle.
        """
        for _ in range(REFERENCE_CHAIN):
            if not isinstance(value, dict):
                raise Fault(place, "must be a mapping")
            if "$ref" not in value:
                return value, place
            value, place = self.follow(value["$ref"], (*place, "$ref"))
        raise Fault(place, "refers to itself, or through too many others")

    def follow(self, reference: JsonValue, place: Place) -> tuple[JsonValue, Place]:
        """Return what a `$ref` names (RFC 6901) and where that stands.

        Raises:
            Fault: it is no JSON pointer into this document, or nothing is there.
        """
        if not isinstance(reference, str) or not re.fullmatch(r"#(/.*)?", reference, re.DOTALL):
            raise Fault(place, f"{str(reference)[:200]!r} leaves the document; only references such as "
                        "#/components/schemas/Pet are followed")  # fmt: skip
        found: JsonValue = self._root
        steps: list[str | int] = []
        for raw in unquote(reference[1:]).split("/")[1:]:
            step = raw.replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict) and step in found:
                found = found[step]
                steps.append(step)
            elif isinstance(found, list) and re.fullmatch(r"[0-9]{1,6}", step) and int(step) < len(found):
                found = found[int(step)]
                steps.append(int(step))
            else:
                raise Fault(place, f"{reference[:200]!r} is not there")
        return found, tuple(steps)

    def base_url(self) -> str:
        """Return the one server of the document.

        Raises:
            Fault: it has none, several, or one that is no origin with a path.
        """
        servers = self._root.get("servers") or []
        urls = sorted({self._server_url(server, ("servers", index)) for index, server in enumerate(servers)})
        if len(urls) != 1:
            raise Fault(("servers",), f"names {len(urls)} servers; say in omni.toml with base_url which one is meant")
        return urls[0]

    def check_servers(self, operation: Operation, base_url: str) -> None:
        """Look whether an operation belongs to another server than the rest.

        Raises:
            Fault: it does; what is called is one origin and path prefix, whatever the document says.
        """
        for holder, place in ((operation.value, operation.place), (operation.shared, operation.shared_place)):
            servers = holder.get("servers")
            if not servers:
                continue
            if not isinstance(servers, list):
                raise Fault((*place, "servers"), "must be a list")
            urls = {self._server_url(server, (*place, "servers", index)) for index, server in enumerate(servers)}
            if urls != {base_url}:
                raise Fault((*place, "servers"), f"is served elsewhere than {base_url}")
            return

    def _server_url(self, server: JsonValue, place: Place) -> str:
        if not isinstance(server, dict) or not isinstance(server.get("url"), str):
            raise Fault(place, "must be a mapping with a url")
        variables = server.get("variables") or {}
        if not isinstance(variables, dict):
            raise Fault((*place, "variables"), "must be a mapping")
        url = server["url"]
        for name in re.findall(r"\{([^{}]*)\}", url):
            variable = variables.get(name)
            if not isinstance(variable, dict) or not isinstance(variable.get("default"), str):
                raise Fault((*place, "url"), f"the variable {name!r} has no default; set base_url in omni.toml")
            url = url.replace("{" + name + "}", variable["default"])
        try:
            return check_base_url(url)
        except ValueError as error:
            raise Fault((*place, "url"), f"{url[:200]!r}: {error}; set base_url in omni.toml") from error

    def _outline(self) -> Iterator[tuple[Place, str]]:
        """Yield what makes the document as a whole unfit."""
        if "swagger" in self._root:
            yield ("swagger",), "is version 2.0; convert it to OpenAPI 3.0 or 3.1"
            return
        version = self._root.get("openapi")
        if not isinstance(version, str) or not re.fullmatch(r"3\.[01]\.[0-9]+(-.+)?", version):
            yield ("openapi",), f"{str(version)[:40]!r} is not supported; 3.0 and 3.1 are"
            return
        if not isinstance(self._root.get("info"), dict):
            yield ("info",), "is missing, or no mapping"
        paths = self._root.get("paths", {})
        if not isinstance(paths, dict):
            yield ("paths",), "must be a mapping"
        elif not paths:
            yield ("paths",), "holds no path"
        if self._root.get("jsonSchemaDialect", _DIALECTS[0]) not in _DIALECTS:
            yield ("jsonSchemaDialect",), "is not a dialect that is supported here"
        servers = self._root.get("servers")
        if servers is not None and not isinstance(servers, list):
            yield ("servers",), "must be a list"
