"""A module beside an operator's manifest runs in a cell: the one that was read, whoever can read the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from omni_mcp.paths import bundled
from omni_mcp.testing import ALLOW_ALL, home_in, local_gateway
from tests.sandbox import operator_module
from tests.sandbox.conftest import lacking, run_as_ordinary_user

pytestmark = pytest.mark.sandbox


@pytest.fixture(scope="module", params=["this user", "an ordinary user"])
def found(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What calls of the operator's tools answered, under this gateway's user (root, often) and under another."""
    return run_as_ordinary_user(
        Path(operator_module.__file__), str(bundled("sandbox")), ourselves=request.param == "this user"
    )


@pytest.fixture
def answers(found: dict[str, Any]) -> dict[str, Any]:
    if found["isolation"]["posture"] == "none":
        lacking("userns", f"no sandbox here: {found['isolation']['missing']}")
    return found


def test_a_module_that_only_the_operator_can_read_runs(answers: dict[str, Any]) -> None:
    assert answers["greet"] == {"greeting": "hello ann", "file": "/packages/own_tools.py"}


def test_a_module_named_like_a_bundled_one_does_not_take_its_place(answers: dict[str, Any]) -> None:
    assert "impostor" not in answers["hash"]
    assert answers["hash"]["hex"] == "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"


def test_a_module_that_changed_after_it_was_read_is_refused_until_it_is_read_again(answers: dict[str, Any]) -> None:
    assert answers["changed"]["code"] == "sandbox_unavailable"
    assert "changed" in answers["changed"]["message"]
    assert answers["reloaded"]["greeting"] == "goodbye ann"


def test_a_module_that_is_gone_makes_the_tool_unavailable(answers: dict[str, Any]) -> None:
    assert answers["removed"]["code"] == "sandbox_unavailable"


def test_a_workspace_that_a_job_closed_is_open_for_the_next(answers: dict[str, Any]) -> None:
    assert answers["close"] == {}
    assert [entry["path"] for entry in answers["look"]["entries"]] == ["inner"]


@pytest.mark.usefixtures("cells")
async def test_an_operators_tool_is_called_through_the_whole_gateway(tmp_path: Path) -> None:
    operator_module.place_files(home_in(tmp_path).manifests)
    async with local_gateway(ALLOW_ALL, directory=tmp_path) as here, here.client(version="2025-11-25") as client:
        result = await client.call("tools__greet", {"name": "ann"})
        assert result["structuredContent"]["greeting"] == "hello ann", result
