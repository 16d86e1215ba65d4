"""`messages`: a server of the gateway's own by which a client reports what was said, into the run that it is in.

Only the three kinds of a conversation go in: calls and their outcomes come from the call chain alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args

from omni_mcp.contracts.api import MESSAGE_LIMIT_CHARS, MessageDraft, MessageKind
from omni_mcp.contracts.call import Answer, Call
from omni_mcp.contracts.json import JsonObject, canonical
from omni_mcp.contracts.manifest import Labels, Limits
from omni_mcp.contracts.tool import Entry
from omni_mcp.serving.messages import Messages

SERVER = "messages"
SAY = "say"
LABELS = Labels(read_only=False, destructive=False, egress=False, reads_private=False, reads_untrusted=False)

_SAY: JsonObject = {
    "name": SAY,
    "title": "Messages: say",
    "description": "Put one message of this conversation on record, in the order in which it was said. It is kept in "
    "the run of this connection, beside the calls; nobody answers it.",
    "inputSchema": {
        "type": "object",
        "properties": {
            "kind": {
                "enum": list(get_args(MessageKind)),
                "description": "Who speaks; a delta is one piece of an answer that is not finished yet.",
            },
            "text": {"type": "string", "maxLength": MESSAGE_LIMIT_CHARS},
            "author": {"type": "string", "maxLength": 128, "description": "A name for whoever speaks."},
            "model": {"type": "object", "description": "Provider, id, parameters of the model that wrote it."},
        },
        "required": ["kind", "text"],
        "additionalProperties": False,
    },
    "annotations": {"readOnlyHint": False, "destructiveHint": False, "openWorldHint": False},
}


class MessagesSource:
    """The server's one entry. It is part of the package, so it is accepted."""

    def load(self) -> Iterable[Entry]:
        """As the port."""
        yield Entry(
            kind="tool", server=SERVER, name=SAY, definition=_SAY, version="1.0.0", binding="inproc_safe",
            labels=LABELS, limits=Limits(timeout_s=10.0), side_effects="non_idempotent",
        )  # fmt: skip


class MessagesExecutor:
    """Answers the server's calls."""

    def __init__(self, messages: Messages) -> None:
        self._messages = messages

    async def execute(self, call: Call) -> Answer:
        """As the port.

        Raises:
            RateLimited, QuotaExceeded: as `Messages.store`.
        """
        said = MessageDraft.model_validate(call.arguments)
        (seq,) = await self._messages.store(call.principal, call.run, [said], call=call.id, parent=call.parent)
        found: JsonObject = {"run": call.run, "seq": seq}
        text = canonical(found).decode()
        return Answer(body={"content": [{"type": "text", "text": text}], "structuredContent": found, "isError": False})
