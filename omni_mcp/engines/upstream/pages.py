"""Pages: a server sends a person to a web page, in the words of the client's era, and says later that it is done there.

Source: MCP 2025-11-25, client/elicitation, "URL Mode". 2026-07-28 has neither the error nor the notification.
"""

from __future__ import annotations

from collections import OrderedDict

from omni_mcp.contracts.call import Call, CallerLink, InputRequired
from omni_mcp.contracts.json import JsonObject, JsonValue
from omni_mcp.protocol.eras import PAGES_SINCE, at_least

PAGES_LIMIT = 16  # of one error
OPEN_LIMIT = 256  # of one connection; the oldest goes
ID_LIMIT = 1024
STATE = "pages"


class Pages:
    """Which client was sent to which page of one server."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, CallerLink] = OrderedDict()

    def opened(self, params: JsonObject, link: CallerLink) -> None:
        """Remember whom the server asked to open a page, if that is what it asks and the page has an id."""
        page = params.get("elicitationId")
        if params.get("mode") != "url" or not isinstance(page, str) or len(page) > ID_LIMIT:
            return
        self._open[page] = link
        self._open.move_to_end(page)
        while len(self._open) > OPEN_LIMIT:
            self._open.popitem(last=False)

    def done(self, page: JsonValue) -> bool:
        """Tell whoever was sent to *page*; False if nobody was."""
        link = self._open.pop(page, None) if isinstance(page, str) else None
        if link is not None:
            link.page_done(page)
        return link is not None


def pages_of(data: JsonValue) -> list[JsonObject]:
    """Return the pages that `data` of the error -32042 names; none where it is not what the clause wants."""
    found = data.get("elicitations") if isinstance(data, dict) else None
    if not isinstance(found, list) or not 0 < len(found) <= PAGES_LIMIT:
        return []
    return found if all(isinstance(page, dict) and page.get("mode") == "url" for page in found) else []


def can_open(call: Call) -> bool:
    """Whether the client said that it can send its person to a page, in a version that knows how to be told."""
    declared = call.client.capabilities.get("elicitation")
    knows = call.client.era == "modern" or at_least(call.client.protocol_version, PAGES_SINCE)
    return knows and isinstance(declared, dict) and isinstance(declared.get("url"), dict)


def to_be_opened(pages: list[JsonObject]) -> InputRequired:
    """Return the round in which a modern client opens *pages*; the next one calls again."""
    requests = {
        f"page{number}": {"method": "elicitation/create", "params": page} for number, page in enumerate(pages, 1)
    }
    return InputRequired(requests=requests, state={STATE: list(requests)}, where="remote")


def declined(call: Call) -> bool:
    """Whether a page was to be opened before this round, and its person did not want that."""
    state = call.round.state if call.round is not None else None
    if call.round is None or not isinstance(state, dict) or STATE not in state:
        return False
    answers = [call.round.responses.get(key) for key in state[STATE]]
    return not all(isinstance(answer, dict) and answer.get("action") == "accept" for answer in answers)
