"""The bridge between eras: what a server asks its caller becomes a pushed request or a later round, as the caller can.

| | server of the handshake era asks | modern server answers `input_required` |
|---|---|---|
| handshake caller | pushed through `call.link` while the server waits | the edge pushes and calls again |
| modern caller | the call is parked; the question is an `InputRequired` | passed on as it is |
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from omni_mcp.contracts.call import AskRefused, Call, InputRequired
from omni_mcp.contracts.errors import UpstreamProtocol
from omni_mcp.contracts.json import JsonObject
from omni_mcp.engines.upstream.exchange import Answered, Exchange, Logged, Progress, Question, Withdrawn
from omni_mcp.engines.upstream.talk import Talk
from omni_mcp.protocol.eras import ASKS, may_ask
from omni_mcp.protocol.frames import RequestId
from omni_mcp.protocol.rpc import INTERNAL_ERROR, INVALID_PARAMS, METHOD_NOT_FOUND

INPUTS_LIMIT = 16


@dataclass(frozen=True, slots=True)
class Stuck:
    """The server waits for answers that only a later round of the call can bring."""

    questions: tuple[Question, ...]


async def converse(call: Call, talk: Talk, exchange: Exchange, *, may_park: Callable[[], bool]) -> Answered | Stuck:
    """Pass on what is said during one request until its answer comes, or until only another round helps.

    Raises:
        RemoteError, Garbled, WireFault: there will be no answer.
    """
    asking: dict[RequestId, asyncio.Task[None]] = {}
    stuck: dict[RequestId, Question] = {}
    try:
        while True:
            if stuck and not exchange.waiting_news():
                return Stuck(tuple(stuck.values()))
            news = await exchange.next()
            if isinstance(news, Answered):
                return news
            if isinstance(news, Progress):
                await call.link.progress(news.progress, news.total, news.message)
            elif isinstance(news, Logged):
                await call.link.log(news.level, news.data, news.logger)
            elif isinstance(news, Withdrawn):
                stuck.pop(news.id, None)
                if (task := asking.pop(news.id, None)) is not None:
                    task.cancel()
            elif (fault := fault_of(news, call)) is not None:
                talk.refuse(exchange, news.id, *fault)
            elif call.link.can_ask(news.method):
                asking[news.id] = asyncio.create_task(_ask(call, talk, exchange, news))
            elif call.client.era == "modern" and may_park():
                stuck[news.id] = news
            else:
                talk.refuse(exchange, news.id, METHOD_NOT_FOUND, f"the caller cannot be asked {news.method} now")
    finally:
        for task in asking.values():
            task.cancel()
        if asking:
            await asyncio.gather(*asking.values(), return_exceptions=True)


async def _ask(call: Call, talk: Talk, exchange: Exchange, question: Question) -> None:
    talk.pages.opened(question.params, call.link)
    try:
        result = await call.link.ask(question.method, passed_on(question.params))
    except AskRefused as refused:
        talk.refuse(exchange, question.id, INTERNAL_ERROR, str(refused)[:500] or "the caller refused")
        return
    talk.reply(exchange, question.id, result)


def fault_of(question: Question, call: Call) -> tuple[int, str] | None:
    """Say why this caller is not asked: it never declared that it could answer. (code, message) for the server.

    The server was told of every capability once for all callers, so it may well ask in vain.
    """
    declared = call.client.capabilities
    if not may_ask(question.method, declared):
        return METHOD_NOT_FOUND, f"the caller does not support {question.method}"
    params = question.params
    if question.method == "elicitation/create":
        mode, modes = params.get("mode", "form"), declared["elicitation"]
        has_modes = any(isinstance(modes.get(name), dict) for name in ("form", "url"))
        if mode not in ("form", "url") or (mode not in modes if has_modes else mode != "form"):
            return INVALID_PARAMS, f"the caller does not support elicitation of the mode {str(mode)[:32]!r}"
    with_tools = question.method == "sampling/createMessage" and ("tools" in params or "toolChoice" in params)
    if with_tools and not isinstance(declared["sampling"].get("tools"), dict):
        return INVALID_PARAMS, "the caller does not support sampling with tools"
    return None


def passed_on(params: JsonObject) -> JsonObject:
    """Return the parameters of a question without the server's progress token, which would mean nothing here."""
    meta = params.get("_meta")
    if not isinstance(meta, dict) or "progressToken" not in meta:
        return params
    return {**params, "_meta": {key: value for key, value in meta.items() if key != "progressToken"}}


def keyed(questions: tuple[Question, ...]) -> dict[str, Question]:
    """Name the questions of one round. A caller that answers some of them keeps the others under the same names."""
    return {f"q{str(question.id)[:64]}": question for question in questions}


def asked_of_caller(questions: dict[str, Question]) -> JsonObject:
    """Return the questions in the form of `InputRequired.requests`."""
    return {key: {"method": one.method, "params": passed_on(one.params)} for key, one in questions.items()}


def deliver(
    talk: Talk, exchange: Exchange, questions: dict[str, Question], responses: JsonObject
) -> dict[str, Question]:
    """Give the server the answers that came; returns the questions that are still open."""
    left = {}
    for key, question in questions.items():
        if question.id not in exchange.open_questions:
            continue  # taken back meanwhile
        response = responses.get(key)
        if isinstance(response, dict):
            talk.reply(exchange, question.id, response)
        else:
            left[key] = question
    return left


def input_required(server: str, result: JsonObject) -> InputRequired:
    """Return what a modern server's `input_required` result says.

    Raises:
        UpstreamProtocol: it asks what no client can be asked.
    """
    requests, state = result.get("inputRequests") or {}, result.get("requestState")
    fit = isinstance(requests, dict) and len(requests) <= INPUTS_LIMIT and (state is None or isinstance(state, str))
    if fit:
        fit = all(
            isinstance(one, dict) and one.get("method") in ASKS and isinstance(one.get("params", {}), dict)
            for one in requests.values()
        )
    if not fit or (not requests and state is None):
        raise UpstreamProtocol(
            "the server behind it asked for something that no client can be asked", detail=f"{server}: input_required"
        )
    asked = {key: {**one, "params": one.get("params", {})} for key, one in requests.items()}
    return InputRequired(requests=asked, state={"requestState": state}, where="remote")


def second_round(call: Call) -> JsonObject:
    """Return the members that a later round adds to the parameters of a request to a modern server."""
    if call.round is None:
        return {}
    more: JsonObject = {"inputResponses": call.round.responses}
    with suppress(TypeError, KeyError):
        state = call.round.state["requestState"]
        if state is not None:
            more["requestState"] = state
    return more
