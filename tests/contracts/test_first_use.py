"""Models are built when they are first used, in whatever thread: each of them refuses what it would refuse later."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from pydantic import ValidationError
import omni_mcp.config, omni_mcp.contracts.api, omni_mcp.contracts.events, omni_mcp.contracts.lock
from omni_mcp.contracts.manifest import Closed

THREADS = 4
sys.setswitchinterval(1e-5)

def below(model):
    return [one for inner in model.__subclasses__() for one in (inner, *below(inner))]

def refusal(model):
    try:
        model.model_validate({"no_such_field": 1})
    except ValidationError as error:
        return sorted((fault["type"], str(fault["loc"])) for fault in error.errors())

def together(model):
    start = threading.Barrier(THREADS)
    def one(_):
        start.wait()
        return refusal(model)
    return list(threads.map(one, range(THREADS)))

with ThreadPoolExecutor(THREADS) as threads:
    models = below(Closed)
    found = [(model, together(model)) for model in models]
odd = [model.__name__ for model, told in found if told != [refusal(model)] * THREADS or not told[0]]
print(len(models), *odd)
"""


def test_models_that_several_threads_use_for_the_first_time_are_whole_in_each() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    count, *odd = done.stdout.split()

    assert int(count) > 50, done.stderr
    assert odd == []
