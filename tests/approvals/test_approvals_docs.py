"""The numbers and commands in docs/approvals.md are those in force."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from omni_mcp.cli.approvals import approvals
from omni_mcp.config import ApprovalSettings
from omni_mcp.engines.approvals.standing import MAX_AGE_S
from omni_mcp.engines.approvals.standing_store import DAY_NS, MAX_SPAN_NS, MAX_STANDING
from omni_mcp.engines.approvals.store import MAX_OPEN, MAX_OPEN_PER_PRINCIPAL

PAGE = (Path(__file__).parents[2] / "docs" / "approvals.md").read_text("utf-8")
NUMBERS = {1: "one", 5: "five"}


@pytest.mark.parametrize(
    "words",
    [
        f"at most {MAX_SPAN_NS // DAY_NS} days",
        f"At most {MAX_STANDING:,} stand",
        f"{MAX_OPEN_PER_PRINCIPAL} questions of one caller are open, or {MAX_OPEN} in all",
        f"({ApprovalSettings().wait_s:.0f} s unless set)",
        f"{NUMBERS[int(MAX_AGE_S)]} seconds",
    ],
)
def test_a_number_on_the_page_is_the_one_in_force(words: str) -> None:
    assert words in " ".join(PAGE.split())


def test_every_command_on_the_page_exists_and_every_command_is_on_the_page() -> None:
    shown = set(re.findall(r"^omni-mcp approvals ([a-z]+)", PAGE, re.MULTILINE))

    assert shown == set(approvals.list_commands(click.Context(approvals)))
