"""`omni-mcp components` says who serves what and why: as the running gateway chose, else as far as settings tell."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner, Result

from omni_mcp.cli.root import cli
from tests.clients.running import new_place, serving

ENGINE = "[plugins.executors.acme-engine]\n"


def asked(home: Path, *words: str, settings: str = "") -> Result:
    home.mkdir(mode=0o700, exist_ok=True)
    file = home / "omni.toml"
    file.touch(mode=0o600)
    file.write_text(settings)
    return CliRunner().invoke(cli, ["components", *words], env={"OMNI_HOME": str(home)})


def test_a_running_gateway_says_who_won_who_lost_and_in_which_tier(installed: Path) -> None:
    with new_place(PYTHONPATH=str(installed)) as place:
        place.home.settings_file.touch(mode=0o600)
        place.home.settings_file.write_text(ENGINE)
        with serving(place):
            listed = place.run_json("components", "list")
            found = place.run_json("components", "explain", "executor", "sandbox_job")
            chosen = place.run_json("components", "explain", "executor", "sandbox_job", "--selection", "bundled")
            nobody = place.end_of("components", "explain", "executor", "sandbox_job", "--selection", "nobody")
            text = place.run("components", "explain", "executor", "mcp_remote")

    assert listed["source"] == "gateway"
    assert {row["key"] for row in listed["components"]} >= {"sandbox_job", "inproc_safe", "mcp_remote"}
    assert (found["winner"], found["decided_in"]) == ("acme-engine", "stack")
    assert found["losers"] == [{"provider": "bundled", "lost_in": "stack"}]
    assert (chosen["winner"], chosen["losers"]) == ("bundled", [{"provider": "acme-engine", "lost_in": "selection"}])
    assert nobody.returncode == 1 and "choose one of: acme-engine, bundled" in nobody.stderr
    assert text == "executor mcp_remote: bundled, the only one\n"


@pytest.mark.parametrize(
    ("words", "there"),
    [
        (("store", "x"), "there are: executor"),
        (("executor", "nix"), "there are: inproc_safe, mcp_remote, openapi_proxy, sandbox_job"),
        (("executor", "sandbox_job", "--selection", "nix"), "choose one of: bundled"),
    ],
)
def test_what_is_not_there_ends_with_1_and_says_what_is(words: tuple[str, ...], there: str, tmp_path: Path) -> None:
    end = asked(tmp_path / "home", "explain", *words)
    assert end.exit_code == 1 and there in end.output


def test_without_a_gateway_it_says_what_the_settings_say_and_that_it_does(acme: Path, tmp_path: Path) -> None:
    selected = f'[plugins.select]\nsandbox_job = "acme-engine"\n{ENGINE}'
    found = orjson.loads(
        asked(tmp_path / "h", "explain", "executor", "sandbox_job", "--json", settings=selected).stdout
    )
    said = asked(tmp_path / "h", settings=selected)
    unselected = asked(tmp_path / "h", "explain", "executor", "sandbox_job", "--json", settings=ENGINE)

    assert found["source"] == "settings" and found["winner"] == "acme-engine"
    assert found["losers"] == [{"provider": "bundled", "lost_in": "selection"}]
    assert "executor sandbox_job    acme-engine  before bundled\n" in said.stdout
    assert "no gateway runs" in said.stderr
    assert orjson.loads(unselected.stdout)["winner"] == "bundled", "what it is for is in its code, which was not run"


def test_a_selection_that_is_not_installed_leaves_the_gateways_own(tmp_path: Path) -> None:
    selected = '[plugins.select]\nsandbox_job = "nobody"\n'
    found = orjson.loads(
        asked(tmp_path / "h", "explain", "executor", "sandbox_job", "--json", settings=selected).stdout
    )

    assert (found["winner"], found["losers"]) == ("bundled", [])
