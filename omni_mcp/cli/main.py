"""The `omni-mcp` command. Starts fast: a command's module is imported when that command runs, and not before."""

from __future__ import annotations

import importlib
import sys


def main() -> None:
    """Entry point of the console script."""
    if len(sys.argv) > 1 and sys.argv[1] == "stdio" and not {"-h", "--help", "--embedded"} & set(sys.argv[2:]):
        shim = importlib.import_module("omni_mcp.cli.shim")  # without click: the first answer is due in 150 ms
        sys.exit(shim.main(sys.argv[2:]))
    root = importlib.import_module("omni_mcp.cli.root")
    root.cli()


if __name__ == "__main__":
    main()
