"""The raw arguments fit the input schema, before a person is asked or anything runs. Nothing is coerced."""

from __future__ import annotations

from collections.abc import Awaitable

from omni_mcp.contracts.call import Call, Handler, Result
from omni_mcp.contracts.errors import InvalidArguments
from omni_mcp.contracts.hosts import NO_HOST
from omni_mcp.contracts.memory import is_withheld
from omni_mcp.contracts.ports import Schemas
from omni_mcp.contracts.tool import Entry


class CheckArguments:
    """Refuses arguments that do not fit, naming each place."""

    def __init__(self, schemas: Schemas) -> None:
        self._schemas = schemas

    def __call__(self, call: Call, proceed: Handler) -> Awaitable[Result]:
        if call.tool is not None and is_withheld(call.tool.server, call.arguments):
            raise InvalidArguments(
                "do_not_store is set, so nothing was kept, and the text is not on record. Do not send what must not be "
                "stored to the memory"
            )
        if call.tool is not None and (problems := self._problems(call, call.tool) or _host_problems(call, call.tool)):
            raise InvalidArguments(
                f"the arguments of {call.name!r} do not fit: " + "; ".join(problems), data={"problems": problems}
            )
        return proceed(call)

    def _problems(self, call: Call, tool: Entry) -> list[str]:
        if call.kind == "tool":
            return self._schemas.problems(tool.definition.get("inputSchema", {"type": "object"}), call.arguments)
        if call.kind == "prompt":
            declared = tool.definition.get("arguments") or []
            missing = [a["name"] for a in declared if a.get("required") and a["name"] not in call.arguments]
            wrong = [name for name, value in call.arguments.items() if not isinstance(value, str)]
            return [f"$.{name}: is required" for name in missing] + [f"$.{name}: must be a string" for name in wrong]
        return []


def _host_problems(call: Call, tool: Entry) -> list[str]:
    """A URL that fits the schema may still name no host, or one that can be read in two ways."""
    if tool.manifest is None or NO_HOST not in tool.hosts_for(call.arguments):
        return []
    return [
        f"$.{tool.manifest.binding.egress_argument}: must be a whole http or https URL in ASCII, such as "
        "https://example.org/, without user:password@; an IP address in its usual form"
    ]
