"""What can be looked up: projects, open questions, the catalog, the failure catalogue, the gateway's state."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import cache

import orjson

from omni_mcp.contracts import api
from omni_mcp.contracts.approval import Approval
from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.errors import CATALOGUE, NotFound
from omni_mcp.contracts.ids import iso_time
from omni_mcp.contracts.json import JsonObject
from omni_mcp.engines.approvals.desk import ApprovalDesk
from omni_mcp.serving.api.asking import Asking, Handler
from omni_mcp.serving.api.document import document
from omni_mcp.serving.api.routes import ROUTES
from omni_mcp.serving.edge import Edge
from omni_mcp.serving.lists import LISTINGS


def about_handlers(
    status: Callable[[], JsonObject], *, version: str, is_draining: Callable[[], bool]
) -> dict[str, Handler]:
    """Return what needs nothing but the gateway's own word.

    Args:
        status: how the whole gateway stands, for operators. Others learn whether it serves them, and no name.
    """
    described = cache(lambda: document(ROUTES, version=version))  # 60 ms, and few ask
    errors = api.ErrorPage(
        items=tuple(
            api.ErrorShown(
                code=one.code, category=one.category, retry=one.retry, http_status=one.http_status,
                meaning=one.meaning, recovery=one.recovery,
            )
            for one in CATALOGUE.values()
        )
    )  # fmt: skip

    async def get_document(asking: Asking) -> JsonObject:
        return await asyncio.to_thread(described)

    async def get_status(asking: Asking) -> JsonObject:
        found = status()
        who = asking.principal
        return found if who.is_operator else status_for(who, found, version=version, is_draining=is_draining())

    async def list_errors(asking: Asking) -> api.ErrorPage:
        return errors

    async def list_projects(asking: Asking) -> api.ProjectPage:
        return api.ProjectPage(items=(project_of(asking.principal),))

    async def get_project(asking: Asking) -> api.ProjectShown:
        if asking.place["project"] != asking.principal.project:
            raise NotFound("there is no such project of yours")
        return project_of(asking.principal)

    return {
        "get_document": get_document, "get_status": get_status, "list_errors": list_errors,
        "list_projects": list_projects, "get_project": get_project,
    }  # fmt: skip


def status_for(principal: Principal, status: JsonObject, *, version: str, is_draining: bool) -> JsonObject:
    """Return what everybody with a token may know of a gateway: whether it serves them, and as whom."""
    log = status.get("log")
    is_healthy = bool(log.get("healthy", True)) if isinstance(log, dict) else True
    return {
        "version": version,
        "ready": is_healthy and not is_draining,
        "log": "ok" if is_healthy else "unavailable",
        "draining": is_draining,
        "principal": principal.key,
    }


def project_of(principal: Principal) -> api.ProjectShown:
    """Return the project that a credential is for."""
    return api.ProjectShown(
        id=principal.project, principal=principal.key, kind=principal.kind, owner=principal.owner or None,
        roles=principal.roles,
    )  # fmt: skip


class LookupRoutes:
    """Answers what needs the desk or the catalog."""

    def __init__(self, desk: ApprovalDesk, edge: Edge) -> None:
        self._desk = desk
        self._edge = edge

    def handlers(self) -> Mapping[str, Handler]:
        """What serves each operation."""
        return {
            "list_questions": self._list_questions,
            "get_question": self._get_question,
            "list_catalog": self._list_catalog,
        }

    async def _list_questions(self, asking: Asking) -> api.QuestionPage:
        return api.QuestionPage(items=tuple([question_shown(one) for one in await self._own(asking.principal)]))

    async def _get_question(self, asking: Asking) -> api.QuestionShown:
        wanted = asking.place["approval"]
        found = next((one for one in await self._own(asking.principal) if one.id == wanted), None)
        if found is None:
            raise NotFound("no such question of yours is open")
        return question_shown(found)

    async def _own(self, principal: Principal) -> list[Approval]:
        found = await self._desk.open_questions(project=principal.project)
        return [one for one in found if one.principal == principal.key]

    async def _list_catalog(self, asking: Asking) -> api.CatalogPage:
        query: api.CatalogQuery = asking.query
        if not self._edge.has_profile(query.profile):
            raise NotFound("there is no such profile")
        method, listing = next(pair for pair in LISTINGS.items() if pair[1].kind == query.kind)
        page = orjson.loads(await self._edge.page(method, asking.principal, query.profile, query.cursor))
        items = [
            api.CatalogItem(kind=query.kind, name=one[listing.key], definition=one) for one in page[listing.member]
        ]
        return api.CatalogPage(items=tuple(items), next=page.get("nextCursor"))


def question_shown(question: Approval) -> api.QuestionShown:
    """Return a question as the caller sees it: which rules ask it, and whom, is for operators."""
    return api.QuestionShown(
        id=question.id, state=question.state, call=question.call, run=question.run, name=question.name,
        arguments=question.arguments, hosts=question.hosts, asked_at=iso_time(question.asked_at_ns),
        expires_at=iso_time(question.expires_at_ns),
    )  # fmt: skip
