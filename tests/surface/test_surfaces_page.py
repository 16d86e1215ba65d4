"""What docs/surfaces.md shows is what happens."""

from __future__ import annotations

import re
from pathlib import Path

from omni_mcp.config import load_settings, surface_of
from omni_mcp.engines.catalog import cost
from omni_mcp.serving.surface import surface_for
from omni_mcp.testing import Canary, error_of, local_gateway
from tests.surface.shelf import CALL, SEARCH, fill, settings

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "surfaces.md").read_text()


def block(language: str) -> str:
    [found] = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


def test_the_settings_of_the_page_mean_what_it_says(tmp_path: Path) -> None:
    file = tmp_path / "omni.toml"
    file.write_text(block("toml"))
    found = load_settings(file)
    assert surface_for(surface_of(found, "default"), "claude-code").mode == "full"
    assert surface_for(surface_of(found, "default"), "").key == "auto:40000"
    assert surface_for(surface_of(found, "work"), "claude-code").mode == "search"


async def test_the_rules_of_the_page_open_search_and_nothing_else(canary: Canary) -> None:
    fill(canary, count=10)
    async with local_gateway(block("cedar"), canary=canary, settings=settings(mode="search"), cells=False) as here:
        async with here.client() as client:
            assert {tool["name"] for tool in await client.listed("tools")} == {SEARCH, CALL}
            found = await client.call(SEARCH, {"query": "issue"})
            assert found["structuredContent"] == {"tools": [], "more": False, "servers": {}}
            refused = await client.call(CALL, {"name": "canary__create_issue"})
            assert error_of(refused)["code"] == "policy_denied"
    assert canary.touched == []


def test_the_weights_of_the_page_are_those_of_the_code() -> None:
    for weight in ("0.96", "0.04", "1.45", "0.91", "0.66", "0.3"):
        assert weight in PAGE
    weights = (cost._PER_WORD, cost._PER_LONG_LETTER, cost._PER_NUMBER, cost._PER_MARKS, cost._PER_LONG_MARK)
    assert (*weights, cost._PER_OTHER_BYTE) == (0.96, 0.04, 1.45, 0.91, 0.66, 0.3)
