"""The page about replays is true: its settings and its suite are read by the program."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from omni_mcp.config import Settings
from omni_mcp.replay.suite import load_suite

PAGE = (Path(__file__).resolve().parent.parent.parent / "docs" / "replay.md").read_text()


def _block(language: str) -> str:
    return str(re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[0])


def test_the_settings_of_the_page_say_what_it_says() -> None:
    log = Settings.model_validate(tomllib.loads(_block("toml"))).log

    assert log.keeps_bodies("anything") and not log.keeps_bodies("medical")
    assert log.keep_bodies == Settings().log.keep_bodies


def test_the_suite_of_the_page_is_one(tmp_path: Path) -> None:
    file = tmp_path / "suite.yaml"
    file.write_text(_block("yaml"))

    suite = load_suite(file)

    assert suite.threshold == 0.9 and [case.name for case in suite.cases] == ["search", "as it was in May"]
