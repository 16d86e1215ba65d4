"""Completions: suggestions for an argument of a prompt or of a resource template, for who may use that."""

from __future__ import annotations

from collections.abc import Callable

from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.ports import Catalog, Completer
from omni_mcp.contracts.tool import CallKind, Entry
from omni_mcp.protocol.methods import URI_LIMIT, string_at
from omni_mcp.protocol.outcome import unknown_target
from omni_mcp.protocol.rpc import INVALID_PARAMS, RpcError
from omni_mcp.serving.calls import Asked
from omni_mcp.serving.permission import Permission

CompleterOf = Callable[[Entry], Completer | None]


class Completions:
    """Answers `completion/complete`."""

    def __init__(
        self, catalog: Catalog, permission: Permission, completer_of: CompleterOf, *, stamp: JsonObject
    ) -> None:
        self._catalog = catalog
        self._permission = permission
        self._completer_of = completer_of
        self._stamp = stamp

    async def complete(self, asked: Asked) -> JsonObject:
        """Return what fits; nothing where nobody suggests anything.

        Raises:
            RpcError: the request is not well formed, or names what is not there or not for this caller.
        """
        kind, name, entry = self._target(asked)
        argument = asked.params["argument"]
        string_at(argument.get("name"), path="params.argument.name")
        string_at(argument.get("value"), path="params.argument.value", limit=URI_LIMIT)
        if not await self._permission.given(asked, kind, name, entry):
            raise unknown_target(kind, name, era=asked.era)
        assert entry is not None  # the policy never allows the unknown resource
        completer = self._completer_of(entry)
        found: JsonObject = {"values": [], "hasMore": False}
        if completer is not None:
            context = asked.params.get("context") or {}
            found = await completer.complete(asked.session.principal, entry, argument, context)
        result: JsonObject = {"completion": found}
        return {"resultType": "complete", "_meta": self._stamp, **result} if asked.era == "modern" else result

    def _target(self, asked: Asked) -> tuple[CallKind, str, Entry | None]:
        ref, profile, project = asked.params["ref"], asked.session.profile, asked.session.principal.project
        if ref.get("type") == "ref/prompt":
            name = string_at(ref.get("name"), path="params.ref.name")
            return "prompt", name, self._catalog.find(profile, "prompt", name, project=project)
        if ref.get("type") == "ref/resource":
            uri = string_at(ref.get("uri"), path="params.ref.uri", limit=URI_LIMIT)
            templates = self._catalog.entries(profile, "resource_template", project=project)
            entry = next((entry for public, entry in templates if public == uri), None)
            return "resource", uri, entry or self._catalog.find(profile, "resource", uri, project=project)
        path = {"path": "$.params.ref.type"}
        raise RpcError(INVALID_PARAMS, "params.ref.type must be ref/prompt or ref/resource", path)
