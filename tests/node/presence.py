"""Whether a test that needs Node.js runs, is skipped, or fails because it had to run."""

from __future__ import annotations

import os

import pytest

from tests.node.setup import Node, find_node


def needed_node() -> Node:
    """Return the installed Node.js, or end the test: a skip, or a failure where `OMNI_REQUIRE` lists `node`."""
    node = find_node()
    if node is not None:
        return node
    message = "Node.js and its packages are not installed: run tests/node/setup.py"
    if "node" in os.environ.get("OMNI_REQUIRE", "").split(","):
        pytest.fail(message)
    pytest.skip(message)
