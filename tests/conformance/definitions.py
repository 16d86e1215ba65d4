"""What the server under the conformance suite offers: the names and schemas that the suite's scenarios ask for."""

from __future__ import annotations

from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.manifest import Labels
from omni_mcp.contracts.tool import Entry, EntryKind

SERVER = "everything"
PROFILE = "conformance"
# Labels of the mildest kind, so that no shipped guardrail asks a person during the suite.
HARMLESS = Labels(read_only=True, destructive=False, egress=False, reads_private=False, reads_untrusted=False)

STATIC_TEXT = "test://static-text"
STATIC_BINARY = "test://static-binary"
WATCHED = "test://watched-resource"
TEMPLATE = "test://template/{id}/data"

NO_ARGUMENTS: JsonObject = {"type": "object", "properties": {}}
RICH_SCHEMA: JsonObject = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}


def text_argument(name: str, description: str) -> JsonObject:
    """Return an input schema with one required string."""
    return {
        "type": "object",
        "properties": {name: {"type": "string", "description": description}},
        "required": [name],
    }


def every_entry() -> list[Entry]:
    """Return everything that the suite looks for, and two tools of our own that make changes seen."""
    return [*_tools(), *_resources(), *_prompts()]


def _tools() -> list[Entry]:
    return [_tool(name, description, NO_ARGUMENTS) for name, description in PLAIN_TOOLS.items()] + [
        _tool("test_sampling", "Asks the client's model", text_argument("prompt", "What the model is asked")),
        _tool("test_elicitation", "Asks the client's user", text_argument("message", "What the user is asked")),
        _tool("test_x_mcp_header", "Has an argument that is mirrored in a header", _mirrored_argument()),
        _tool("json_schema_2020_12_tool", "Tool with JSON Schema 2020-12 features", RICH_SCHEMA),
    ]


PLAIN_TOOLS = {
    "test_simple_text": "Answers with text",
    "test_image_content": "Answers with an image",
    "test_audio_content": "Answers with sound",
    "test_embedded_resource": "Answers with an embedded resource",
    "test_multiple_content_types": "Answers with text, an image and a resource",
    "test_tool_with_logging": "Sends three log messages while it runs",
    "test_logging_tool": "Sends one log message while it runs",
    "test_tool_with_progress": "Reports its progress three times",
    "test_error_handling": "Always fails",
    "test_elicitation_sep1034_defaults": "Asks the user with a default for each primitive type",
    "test_elicitation_sep1330_enums": "Asks the user with each form of an enumeration",
    "test_streaming_elicitation": "Reports progress, then asks the user",
    "test_reconnection": "Takes a moment to answer",
    "test_missing_capability": "Needs a client that can sample",
    "test_trigger_tool_change": "Adds a tool, removes it again and says that the list changed",
    "test_trigger_prompt_change": "Adds a prompt, removes it again and says that the list changed",
    "test_trigger_resource_update": f"Changes {WATCHED}",
    "test_input_required_result_elicitation": "Asks for a name before it answers",
    "test_input_required_result_sampling": "Asks a model before it answers",
    "test_input_required_result_list_roots": "Asks for the roots before it answers",
    "test_input_required_result_request_state": "Wants its own state back before it answers",
    "test_input_required_result_multiple_inputs": "Asks three things at once",
    "test_input_required_result_multi_round": "Asks twice, one question after the other",
    "test_input_required_result_tampered_state": "Has a state that nobody may change",
    "test_input_required_result_capabilities": "Asks only for what the client can do",
}


def _resources() -> list[Entry]:
    return [
        _resource(STATIC_TEXT, "Static text", "A text that never changes", "text/plain"),
        _resource(STATIC_BINARY, "Static image", "An image that never changes", "image/png"),
        _resource(WATCHED, "Watched resource", "A text that changes when it is told to", "text/plain"),
        _entry(
            "resource_template",
            TEMPLATE,
            {
                "uriTemplate": TEMPLATE,
                "name": "Template",
                "description": "Data for an id",
                "mimeType": "application/json",
            },
        ),
    ]


def _prompts() -> list[Entry]:
    return [
        _prompt("test_simple_prompt", "A prompt without arguments"),
        _prompt("test_prompt_with_arguments", "A prompt with two arguments", "arg1", "arg2"),
        _prompt("test_prompt_with_embedded_resource", "A prompt that embeds a resource", "resourceUri"),
        _prompt("test_prompt_with_image", "A prompt with an image"),
        _prompt("test_input_required_result_prompt", "A prompt that asks for its context first"),
    ]


def _entry(kind: EntryKind, name: str, definition: JsonObject) -> Entry:
    return Entry(
        kind=kind,
        server=SERVER,
        name=name,
        definition=definition,
        version="1.0.0",
        binding="mcp_remote",
        labels=HARMLESS,
        side_effects="none",
    )


def _tool(name: str, description: str, schema: JsonObject) -> Entry:
    return _entry("tool", name, {"name": name, "description": description, "inputSchema": schema})


def _resource(uri: str, name: str, description: str, media_type: str) -> Entry:
    return _entry("resource", uri, {"uri": uri, "name": name, "description": description, "mimeType": media_type})


def _prompt(name: str, description: str, *arguments: str) -> Entry:
    wanted = [{"name": argument, "description": f"The {argument}", "required": True} for argument in arguments]
    return _entry("prompt", name, {"name": name, "description": description, "arguments": wanted})


def _mirrored_argument() -> JsonObject:
    return {
        "type": "object",
        "properties": {"region": {"type": "string", "description": "Any region", "x-mcp-header": "Region"}},
        "required": ["region"],
    }
