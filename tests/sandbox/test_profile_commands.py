"""`omni-mcp sandbox profiles`, `show` and `check`, and what `doctor` says of profiles, as a person runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from omni_mcp.cli.root import cli

OWN = 'profile = 1\ndescription = "Mine."\n'


class Operator:
    """Somebody with a directory of their own."""

    def __init__(self, config: Path) -> None:
        self.config = config

    def write(self, name: str, text: str, *, mode: int = 0o600) -> Path:
        place = self.config / "profiles"
        place.mkdir(parents=True, mode=0o700, exist_ok=True)
        file = place / f"{name}.toml"
        file.write_text(text)
        file.chmod(mode)
        return file

    def sandbox(self, *words: str) -> Result:
        return CliRunner().invoke(cli, ["sandbox", *words], env={"OMNI_HOME": str(self.config)})

    def json(self, *words: str) -> Any:
        return json.loads(self.sandbox(*words, "--json").stdout)


@pytest.fixture
def operator(tmp_path: Path) -> Operator:
    config = tmp_path / "config"
    config.mkdir(mode=0o700)
    return Operator(config)


@pytest.fixture
def cells(no_bwrap: bool) -> None:
    if no_bwrap:
        pytest.skip("no bubblewrap")


def test_the_list_names_every_profile_and_where_it_comes_from(operator: Operator) -> None:
    operator.write("shell", OWN)
    operator.write("web", OWN + 'hosts = ["api.example.org:443"]\n')
    origins = {row["name"]: row["origin"] for row in operator.json("profiles")}

    assert origins["job"] == "shipped" and origins["web"] == "own"
    assert origins["shell"] == "own, replaces the shipped one"
    text = operator.sandbox("profiles").stdout
    assert all(name in text for name in origins) and "1 hosts" not in text and "1 host" in text


def test_a_profile_is_shown_in_words_with_what_this_machine_gives(operator: Operator) -> None:
    operator.write("web", OWN + 'hosts = ["api.example.org:443"]\nread = ["/opt/not-there"]\n')
    text = operator.sandbox("show", "web").stdout

    assert "Mine." in text and "api.example.org:443 through the proxy" in text
    assert "This machine gives" in text and "Not stopped:" in text
    assert "/opt/not-there is not there" in text


def test_whether_a_demand_is_met_can_be_read_by_a_program(operator: Operator, cells: None) -> None:
    found = operator.json("show", "shell")

    assert found["met"] is True and found["isolation"]["posture"] in ("full", "no-cgroup")
    assert found["limits"]["memory_mib"] == 256


def test_an_unknown_profile_names_the_next_step(operator: Operator) -> None:
    done = operator.sandbox("show", "nope")

    assert done.exit_code == 1 and "omni-mcp sandbox profiles" in done.stderr


def test_check_starts_a_cell_for_every_profile_in_force(operator: Operator, cells: None) -> None:
    operator.write("mine", OWN)
    done = operator.sandbox("check")

    assert done.exit_code == 0, done.output
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert {"job", "http", "python", "shell", "server", "npx", "uvx", "mine"} == set(lines)
    assert all("seccomp" in line for line in lines.values())


def test_check_names_file_line_and_path_of_every_fault(operator: Operator) -> None:
    one = operator.write("one", OWN + "surprise = 1\n")
    two = operator.write("two", OWN + 'read = ["/"]\n')
    done = operator.sandbox("check", str(one), str(two))

    assert done.exit_code == 1
    assert f"{one}:3: $.surprise: " in done.stderr and f"{two}:3: $.read: " in done.stderr


def test_check_of_a_file_that_is_not_there_fails(operator: Operator) -> None:
    assert operator.sandbox("check", "/no/such/file.toml").exit_code == 1


def test_check_sees_a_directory_that_is_not_there(operator: Operator, cells: None) -> None:
    file = operator.write("mine", OWN + 'read = ["/opt/not-there"]\n')
    done = operator.sandbox("check", str(file))

    assert done.exit_code == 1 and "/opt/not-there" in done.output


def test_check_ends_with_three_where_less_can_be_had_than_demanded(operator: Operator, tmp_path: Path) -> None:
    file = operator.write("mine", OWN + 'posture = "full"\n')
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    command = [sys.executable, "-m", "omni_mcp.cli.main", "sandbox", "check", str(file), "--json"]
    done = subprocess.run(
        command, env={"PATH": str(nothing), "OMNI_HOME": str(operator.config)}, capture_output=True, check=False
    )

    assert done.returncode == 3
    assert json.loads(done.stdout)[0]["reason"] == "sandbox_unavailable"


def test_an_own_profile_that_others_can_write_is_told_by_every_command(operator: Operator) -> None:
    operator.write("shell", OWN, mode=0o666)

    for words in (("profiles",), ("show", "shell"), ("check",)):
        done = operator.sandbox(*words)
        assert done.exit_code == 1 and "others can write" in done.stderr


def doctor(operator: Operator) -> list[dict[str, str]]:
    done = CliRunner().invoke(cli, ["doctor", "--json"], env={"OMNI_HOME": str(operator.config)})
    found: list[dict[str, str]] = json.loads(done.stdout)["findings"]
    return found


def test_doctor_says_what_is_not_stopped_and_whether_each_profile_can_be_had(operator: Operator, cells: None) -> None:
    found = {finding["name"]: finding for finding in doctor(operator)}

    assert found["not stopped"]["text"]
    assert found["profiles"]["level"] == "ok" and found["profiles"]["text"].startswith("7,")


def test_doctor_fails_on_a_faulty_profile_and_names_its_place(operator: Operator) -> None:
    file = operator.write("mine", OWN + "surprise = 1\n")
    found = [finding for finding in doctor(operator) if finding["name"] == "profiles"]

    assert found[0]["level"] == "fail" and f"{file}:3: $.surprise" in found[0]["text"]
