"""One daemon in front of broken servers of both transports, for all tests of a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.upstream_faults.yard import Yard, open_yard, over_http, stdio

PATIENT_S, HURRIED_S = 30.0, 1.0


@pytest.fixture(scope="module")
def yard(cells: None) -> Iterator[Yard]:
    """Servers `bad_…` have a long deadline, `late_…` a short one; `calm` is nobody's business."""
    with ExitStack() as stack:
        servers = {"calm": stdio()}
        for name, timeout_s in (("bad", PATIENT_S), ("late", HURRIED_S)):
            servers[f"{name}_lines"] = stdio(timeout_s=timeout_s)
            servers[f"{name}_http"] = stack.enter_context(over_http(timeout_s=timeout_s))
        yield stack.enter_context(open_yard(servers))
