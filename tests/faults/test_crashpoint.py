"""The hook itself: it kills at the n-th reach of its point, with nothing run in between, and is otherwise not there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

COUNT = """
from omni_mcp.chain.crashpoint import reach
for number in range(3):
    reach("other")
    reach("here")
    print(number, flush=True)
try:
    reach("here")
finally:
    print("cleaned up", flush=True)
"""


def run(crash: str | None) -> tuple[int, str]:
    environment = {name: value for name, value in os.environ.items() if name != "OMNI_CRASH"}
    if crash is not None:
        environment["OMNI_CRASH"] = crash
    end = subprocess.run([sys.executable, "-c", COUNT], env=environment, capture_output=True, text=True, check=False)
    return end.returncode, end.stdout


def test_without_the_variable_nothing_happens() -> None:
    assert run(None) == (0, "0\n1\n2\ncleaned up\n")
    assert run("") == (0, "0\n1\n2\ncleaned up\n")


def test_the_n_th_reach_of_the_named_point_kills_without_any_cleaning_up() -> None:
    assert run("here:2") == (-signal.SIGKILL, "0\n")
    assert run("here") == (-signal.SIGKILL, "")
    assert run("here:4") == (-signal.SIGKILL, "0\n1\n2\n")


def test_a_point_that_is_not_reached_so_often_kills_nothing() -> None:
    assert run("here:9")[0] == 0
    assert run("nowhere:1")[0] == 0
