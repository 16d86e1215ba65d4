"""The real daemon, or the real embedded gateway, with the recorder behind it: `omni-mcp` but for its command line."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from omni_mcp.assembly import open_gateway
from omni_mcp.config import load_settings
from omni_mcp.daemon.run import run_daemon, run_embedded
from omni_mcp.logs import LineSink
from omni_mcp.paths import find_home
from tests.faults.recorder import Recorder


def main() -> int:
    """Run until told to end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--embedded", action="store_true")
    given = parser.parse_args()
    home = find_home()
    settings = load_settings(home.settings_file)
    settings = settings.model_copy(update={"server": settings.server.model_copy(update={"port": 0})})
    recorder = Recorder(given.record)
    opener = partial(open_gateway, sources=[recorder], executors={"mcp_remote": recorder})
    sink = LineSink(file=None)
    try:
        if given.embedded:
            return run_embedded(settings, home, sink=sink, agent=None, profile=None, opener=opener)
        return run_daemon(settings, home, sink=sink, announce=lambda facts: None, opener=opener)
    finally:
        sink.close()


if __name__ == "__main__":
    sys.exit(main())
