"""The server that the official conformance suite expects, as the world behind the gateway: no process, no network.

It speaks our ports and not the protocol, so what the suite then measures is the gateway. A question to the caller is
pushed where the caller's era allows it and is otherwise a multi-round result.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import struct
import zlib
from collections.abc import Awaitable, Callable, Iterable

from omni_mcp.contracts.call import Answer, AskRefused, Call, InputRequired, Principal, Result
from omni_mcp.contracts.json import JsonObject, JsonValue
from omni_mcp.contracts.tool import Entry
from tests.conformance.definitions import STATIC_BINARY, STATIC_TEXT, TEMPLATE, WATCHED, every_entry

PAUSE_S = 0.05  # the suite wants to see messages arrive one by one; its own description names 50 ms
CAPABILITY_OF = {"elicitation/create": "elicitation", "sampling/createMessage": "sampling", "roots/list": "roots"}
TEMPLATE_URI = re.compile(re.escape(TEMPLATE).replace(r"\{id\}", "(.+)"))
Step = Callable[[Call], Awaitable[Result]]


class ConformanceServer:
    """A source, an executor and a completer in one: what one upstream server is to the gateway.

    `list_changed` is told `tools`, `prompts` or `resources`; `resource_updated` the URI.
    """

    def __init__(
        self,
        *,
        list_changed: Callable[[str], None],
        resource_updated: Callable[[str], None],
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._list_changed = list_changed
        self._resource_updated = resource_updated
        self._pause = pause
        self._entries = every_entry()
        self._watched_version = 1
        self._tools: dict[str, Step] = {
            "test_simple_text": _simple_text,
            "test_image_content": _image,
            "test_audio_content": _audio,
            "test_embedded_resource": _embedded,
            "test_multiple_content_types": _mixed,
            "test_error_handling": _failing,
            "test_x_mcp_header": _mirrored,
            "json_schema_2020_12_tool": _rich,
            "test_tool_with_logging": self._log_thrice,
            "test_logging_tool": self._log_once,
            "test_tool_with_progress": self._progress,
            "test_reconnection": self._slow,
            "test_missing_capability": _needs_sampling,
            "test_trigger_tool_change": self._change_tools,
            "test_trigger_prompt_change": self._change_prompts,
            "test_trigger_resource_update": self._touch_watched,
            "test_streaming_elicitation": self._progress_then_ask,
            **_asking_tools(),
        }

    def load(self) -> Iterable[Entry]:
        """Return everything that the suite looks for."""
        return list(self._entries)

    async def execute(self, call: Call) -> Result:
        """Answer one call as the suite expects it."""
        assert call.tool is not None, "the chain dispatches only what it resolved"
        if call.kind == "resource":
            return self._read(call.name)
        if call.kind == "prompt":
            return await _prompt(call)
        return await self._tools[call.tool.name](call)

    async def complete(
        self, principal: Principal, entry: Entry, argument: JsonObject, context: JsonObject
    ) -> JsonObject:
        """Suggest words that start as the argument does."""
        words = ["paris", "park", "party", "test", "testValue1", "testValue2"]
        fitting = [word for word in words if word.startswith(str(argument.get("value", "")))]
        return {"values": fitting, "total": len(fitting), "hasMore": False}

    async def _log_thrice(self, call: Call) -> Result:
        for number, message in enumerate(
            ("Tool execution started", "Tool processing data", "Tool execution completed")
        ):
            if number:
                await self._pause(PAUSE_S)
            await call.link.log("info", message, None)
        return text("Tool with logging executed successfully")

    async def _log_once(self, call: Call) -> Result:
        await call.link.log("info", "A log message", None)
        return text("Logged, for who asked for it")

    async def _progress(self, call: Call) -> Result:
        for number, progress in enumerate((0, 50, 100)):
            if number:
                await self._pause(PAUSE_S)
            await call.link.progress(progress, 100, f"Completed step {progress} of 100")
        return text("Tool with progress executed successfully")

    async def _slow(self, call: Call) -> Result:
        await self._pause(PAUSE_S * 2)
        return text("Reconnection test completed successfully")

    async def _progress_then_ask(self, call: Call) -> Result:
        await call.link.progress(50, 100, "Half way")
        return await _streaming_question(call)

    async def _change_tools(self, call: Call) -> Result:
        self._list_changed("tools")
        return text("A tool came and went")

    async def _change_prompts(self, call: Call) -> Result:
        self._list_changed("prompts")
        return text("A prompt came and went")

    async def _touch_watched(self, call: Call) -> Result:
        self._watched_version += 1
        self._resource_updated(WATCHED)
        return text(f"{WATCHED} is now version {self._watched_version}")

    def _read(self, uri: str) -> Result:
        if uri == STATIC_TEXT:
            return _contents(uri, "text/plain", "This is the content of the static text resource.")
        if uri == STATIC_BINARY:
            return answer({"contents": [{"uri": uri, "mimeType": "image/png", "blob": PNG}]})
        if uri == WATCHED:
            return _contents(uri, "text/plain", f"Watched resource, version {self._watched_version}")
        found = TEMPLATE_URI.fullmatch(uri)
        assert found is not None, "the catalog hands on only what fits the template"
        data = {"id": found[1], "templateTest": True, "data": f"Data for ID: {found[1]}"}
        return _contents(uri, "application/json", json.dumps(data))


def answer(body: JsonObject) -> Answer:
    """Wrap a wire-shaped result."""
    return Answer(body=body, is_error=bool(body.get("isError", False)), where="remote")


def text(words: str, *, is_error: bool = False) -> Answer:
    """Wrap a text for a tool."""
    body: JsonObject = {"content": [{"type": "text", "text": words}]}
    return answer({**body, "isError": True} if is_error else body)


def _contents(uri: str, media_type: str, words: str) -> Answer:
    return answer({"contents": [{"uri": uri, "mimeType": media_type, "text": words}]})


def _red_dot() -> str:
    """A picture of one red pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\x00\xff\x00\x00"))
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")).decode()


def _silence() -> str:
    """A sound of eight samples, all zero."""
    samples = bytes(8)
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 8000, 8000, 1, 8)
    data = struct.pack("<4sI", b"data", len(samples)) + samples
    return base64.b64encode(struct.pack("<4sI4s", b"RIFF", 4 + len(form) + len(data), b"WAVE") + form + data).decode()


PNG = _red_dot()
WAV = _silence()
IMAGE: JsonObject = {"type": "image", "data": PNG, "mimeType": "image/png"}


def _resource_block(uri: str, media_type: str, words: str) -> JsonObject:
    return {"type": "resource", "resource": {"uri": uri, "mimeType": media_type, "text": words}}


async def _simple_text(call: Call) -> Result:
    return text("This is a simple text response for testing.")


async def _image(call: Call) -> Result:
    return answer({"content": [IMAGE]})


async def _audio(call: Call) -> Result:
    return answer({"content": [{"type": "audio", "data": WAV, "mimeType": "audio/wav"}]})


async def _embedded(call: Call) -> Result:
    words = "This is an embedded resource content."
    return answer({"content": [_resource_block("test://embedded-resource", "text/plain", words)]})


async def _mixed(call: Call) -> Result:
    words = {"type": "text", "text": "Multiple content types test:"}
    block = _resource_block("test://mixed-content-resource", "application/json", '{"test":"data","value":123}')
    return answer({"content": [words, IMAGE, block]})


async def _failing(call: Call) -> Result:
    return text("This tool intentionally returns an error for testing", is_error=True)


async def _mirrored(call: Call) -> Result:
    return text(f"region is {call.arguments['region']}")


async def _rich(call: Call) -> Result:
    return text(json.dumps(call.arguments, sort_keys=True))


def elicitation(message: str, properties: JsonObject, required: Iterable[str] = ()) -> JsonObject:
    """Return an `elicitation/create` request."""
    schema: JsonObject = {"type": "object", "properties": properties, "required": list(required)}
    return {"method": "elicitation/create", "params": {"message": message, "requestedSchema": schema}}


def sampling(words: str, max_tokens: int) -> JsonObject:
    """Return a `sampling/createMessage` request."""
    message = {"role": "user", "content": {"type": "text", "text": words}}
    return {"method": "sampling/createMessage", "params": {"messages": [message], "maxTokens": max_tokens}}


ROOTS: JsonObject = {"method": "roots/list", "params": {}}


def answers_of(call: Call, requests: JsonObject) -> JsonObject | None:
    """Return the caller's answers if every one of *requests* has one of the right shape, else None."""
    responses = call.round.responses if call.round else {}
    wanted = {"elicitation/create": "action", "sampling/createMessage": "content", "roots/list": "roots"}
    for key, request in requests.items():
        response = responses.get(key)
        if not isinstance(response, dict) or wanted[request["method"]] not in response:
            return None
    return {key: responses[key] for key in requests}


async def pushed(call: Call, request: JsonObject, finish: Callable[[JsonObject], Answer]) -> Result:
    """Ask one thing: by a pushed request in the handshake era, by a multi-round result in the modern one."""
    if call.client.era == "modern":
        answered = answers_of(call, {"question": request})
        return (
            finish(answered["question"]) if answered else InputRequired(requests={"question": request}, where="remote")
        )
    try:
        return finish(await call.link.ask(request["method"], request["params"]))
    except AskRefused:
        return text(f"the client cannot answer {request['method']}", is_error=True)


def rounds(requests: JsonObject, finish: Callable[[JsonObject], Answer], *, state: JsonValue = None) -> Step:
    """Make a tool that asks *requests* in one round, again and again until all answers fit, then finishes."""

    async def step(call: Call) -> Result:
        answered = answers_of(call, requests)
        if answered is None or (state is not None and (call.round is None or call.round.state != state)):
            return InputRequired(requests=requests, state=state, where="remote")
        return finish(answered)

    return step


def _asking_tools() -> dict[str, Step]:
    return {**_pushing_tools(), **_round_tools()}


def _pushing_tools() -> dict[str, Step]:
    user_schema: JsonObject = {
        "username": {"type": "string", "description": "User's response"},
        "email": {"type": "string", "description": "User's email address"},
    }

    async def ask_model(call: Call) -> Result:
        return await pushed(call, sampling(call.arguments["prompt"], 100), _model_said)

    async def ask_user(call: Call) -> Result:
        request = elicitation(call.arguments["message"], user_schema, ["username", "email"])
        return await pushed(call, request, lambda said: text(f"User response: {_said(said)}"))

    async def ask_with_defaults(call: Call) -> Result:
        request = elicitation("Please review and update the form fields with defaults", DEFAULTS)
        return await pushed(call, request, lambda said: text(f"Elicitation completed: {_said(said)}"))

    async def ask_with_enums(call: Call) -> Result:
        request = elicitation("Please select options from the enum fields", ENUMS)
        return await pushed(call, request, lambda said: text(f"Elicitation completed: {_said(said)}"))

    return {
        "test_sampling": ask_model,
        "test_elicitation": ask_user,
        "test_elicitation_sep1034_defaults": ask_with_defaults,
        "test_elicitation_sep1330_enums": ask_with_enums,
    }


NAME_FORM: JsonObject = {"name": {"type": "string"}}
CONFIRM = elicitation("Please confirm", {"ok": {"type": "boolean"}}, ["ok"])


def _round_tools() -> dict[str, Step]:
    ask_name = elicitation("What is your name?", NAME_FORM, ["name"])
    capital = sampling("What is the capital of France?", 100)
    many = {"user_name": ask_name, "greeting": sampling("Generate a greeting", 50), "client_roots": ROOTS}
    prefix = "test_input_required_result_"
    return {
        f"{prefix}elicitation": rounds({"user_name": ask_name}, lambda said: _hello(said["user_name"])),
        f"{prefix}sampling": rounds({"capital_question": capital}, lambda said: _model_said(said["capital_question"])),
        f"{prefix}list_roots": rounds({"client_roots": ROOTS}, lambda said: _root_list(said["client_roots"])),
        f"{prefix}request_state": rounds(
            {"confirm": CONFIRM}, lambda _: text("state-ok: the state came back unchanged"), state={"request": "state"}
        ),
        f"{prefix}tampered_state": rounds(
            {"confirm": CONFIRM}, lambda _: text("the state came back unchanged"), state={"sealed": "by the gateway"}
        ),
        f"{prefix}multiple_inputs": rounds(many, lambda said: text(f"answered: {', '.join(sorted(said))}"), state=1),
        f"{prefix}multi_round": _two_questions,
        f"{prefix}capabilities": _only_what_the_client_can,
    }


async def _two_questions(call: Call) -> Result:
    first = {"step1": elicitation("Step 1: What is your name?", NAME_FORM, ["name"])}
    second = {"step2": elicitation("Step 2: What is your favorite color?", {"color": {"type": "string"}}, ["color"])}
    state = call.round.state if call.round else None
    if isinstance(state, dict) and state.get("step") == 2:
        said = answers_of(call, second)
        if said is None:
            return InputRequired(requests=second, state=state, where="remote")
        return text(f"{state['name']} likes {_field(said['step2'], 'color')}")
    said = answers_of(call, first)
    if said is None:
        return InputRequired(requests=first, state={"step": 1}, where="remote")
    return InputRequired(requests=second, state={"step": 2, "name": _field(said["step1"], "name")}, where="remote")


async def _only_what_the_client_can(call: Call) -> Result:
    every = {"name": elicitation("What is your name?", NAME_FORM, ["name"]), "greeting": sampling("Say hello", 50)}
    able = {
        key: request for key, request in every.items() if CAPABILITY_OF[request["method"]] in call.client.capabilities
    }
    if not able:
        return text("the client can do nothing that this tool needs", is_error=True)
    return await rounds(able, lambda said: text(f"answered: {', '.join(sorted(said))}"))(call)


_needs_sampling = rounds({"greeting": sampling("Say hello", 50)}, lambda said: _model_said(said["greeting"]))
_streaming_question = rounds(
    {"user_name": elicitation("What is your name?", NAME_FORM, ["name"])}, lambda said: _hello(said["user_name"])
)


def _said(response: JsonObject) -> str:
    return f"action={response.get('action')}, content={json.dumps(response.get('content', {}), sort_keys=True)}"


def _field(response: JsonObject, name: str) -> str:
    content = response.get("content")
    return str(content.get(name, "")) if isinstance(content, dict) else ""


def _hello(response: JsonObject) -> Answer:
    return text(f"Hello, {_field(response, 'name')}!")


def _model_said(response: JsonObject) -> Answer:
    content = response.get("content")
    return text(f"LLM response: {content.get('text', '') if isinstance(content, dict) else content}")


def _root_list(response: JsonObject) -> Answer:
    return text("Client roots: " + ", ".join(str(root.get("uri")) for root in response["roots"]))


DEFAULTS: JsonObject = {
    "name": {"type": "string", "description": "User name", "default": "John Doe"},
    "age": {"type": "integer", "description": "User age", "default": 30},
    "score": {"type": "number", "description": "User score", "default": 95.5},
    "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
    "verified": {"type": "boolean", "description": "Verification status", "default": True},
}


def _titled(*pairs: tuple[str, str]) -> list[JsonObject]:
    return [{"const": value, "title": title} for value, title in pairs]


ENUMS: JsonObject = {
    "untitledSingle": {"type": "string", "enum": ["option1", "option2", "option3"]},
    "titledSingle": {
        "type": "string",
        "oneOf": _titled(("value1", "First Option"), ("value2", "Second Option"), ("value3", "Third Option")),
    },
    "legacyEnum": {
        "type": "string",
        "enum": ["opt1", "opt2", "opt3"],
        "enumNames": ["Option One", "Option Two", "Option Three"],
    },
    "untitledMulti": {"type": "array", "items": {"type": "string", "enum": ["option1", "option2", "option3"]}},
    "titledMulti": {
        "type": "array",
        "items": {
            "anyOf": _titled(("value1", "First Choice"), ("value2", "Second Choice"), ("value3", "Third Choice"))
        },
    },
}


def _messages(*contents: JsonObject) -> Answer:
    return answer({"messages": [{"role": "user", "content": content} for content in contents]})


async def _prompt(call: Call) -> Result:
    assert call.tool is not None
    name, given = call.tool.name, call.arguments
    if name == "test_simple_prompt":
        return _messages({"type": "text", "text": "This is a simple prompt for testing."})
    if name == "test_prompt_with_arguments":
        words = f"Prompt with arguments: arg1='{given['arg1']}', arg2='{given['arg2']}'"
        return _messages({"type": "text", "text": words})
    if name == "test_prompt_with_embedded_resource":
        block = _resource_block(given["resourceUri"], "text/plain", "Embedded resource content for testing.")
        return _messages(block, {"type": "text", "text": "Please process the embedded resource above."})
    if name == "test_prompt_with_image":
        return _messages(IMAGE, {"type": "text", "text": "Please analyze the image above."})
    return await _prompt_with_context(call)


_prompt_with_context = rounds(
    {"user_context": elicitation("What context should the prompt use?", {"context": {"type": "string"}}, ["context"])},
    lambda said: _messages({"type": "text", "text": f"Use this context: {_field(said['user_context'], 'context')}"}),
)
