"""Runs a tool's function in a cell and writes what it returns, or how it failed, to a pipe as one JSON object."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import traceback

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from failure import ToolFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

EXIT_OK = 0
EXIT_TOOL_FAILURE = 1
EXIT_CRASH = 70  # sysexits.h, EX_SOFTWARE
_TEXT_LIMIT = 4096

_as_json = json.JSONEncoder(allow_nan=False).encode  # `json.dumps` makes one for each call

_HERE = os.path.dirname(os.path.abspath(__file__))
_PACKAGES = "/packages"  # read-only import packages that a manifest asks for


def run(entry_point: str, arguments: dict[str, Any], result_fd: int) -> int:
    """Call `module:function` and return the exit code for its outcome.

    A `ToolFailure` becomes `{"error": text}`; any other exception `{"error": its last line, "exception": its type}`.
    """
    code, answer = _call(entry_point, arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    view = memoryview(answer)
    while view:
        view = view[os.write(result_fd, view) :]
    return code


def hold(arguments: dict[str, Any], directory: str) -> int:
    """Return an open file that holds *arguments*: they may be larger than a command line or a pipe.

    It is made in *directory* and has no name there.
    """
    held = _open_nameless(directory)
    view = memoryview(json.dumps(arguments).encode())
    while view:
        view = view[os.write(held, view) :]
    os.lseek(held, 0, os.SEEK_SET)
    return held


def _open_nameless(directory: str) -> int:
    with contextlib.suppress(OSError):
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    place = os.path.join(directory, f".arguments-{os.urandom(8).hex()}")  # some file systems know only named ones
    held = os.open(place, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    os.unlink(place)
    return held


def command(entry_point: str, *, arguments_fd: int, result_fd: int) -> list[str]:
    """Return the command that does what `run` does, in a fresh interpreter; see `main`."""
    here = os.path.join(_HERE, "worker.py")
    return [sys.executable, "-I", "-S", "-B", here, entry_point, str(arguments_fd), str(result_fd)]


def _call(entry_point: str, arguments: dict[str, Any]) -> tuple[int, bytes]:
    try:
        result = _find(entry_point)(arguments)
        if not isinstance(result, dict):
            raise TypeError(f"{entry_point} returned {type(result).__name__}, not an object")
        return EXIT_OK, _as_json(result).encode()
    except ToolFailure as failure:
        told: dict[str, Any] = {"error": str(failure)[:_TEXT_LIMIT]}
        return EXIT_TOOL_FAILURE, json.dumps({**told, "passing": True} if failure.passing else told).encode()
    except BaseException as error:
        text = traceback.format_exception_only(error)[-1].strip()[:_TEXT_LIMIT]
        return EXIT_CRASH, json.dumps({"error": text, "exception": type(error).__name__}).encode()


def _find(entry_point: str) -> Any:
    module, _, function = entry_point.partition(":")
    if module in sys.modules:  # imported ahead
        return getattr(sys.modules[module], function)
    for place in (_PACKAGES, os.path.join(_HERE, "tools")):
        if place not in sys.path and os.path.isdir(place):
            sys.path.insert(0, place)
    return getattr(importlib.import_module(module), function)


def main() -> None:
    """Started by `command`: entry point, descriptor of the arguments, descriptor for the result."""
    entry_point, held, result = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with open(held, "rb") as file:
        arguments = json.loads(file.read())
    os.set_inheritable(result, False)
    os._exit(run(entry_point, arguments, result))


if __name__ == "__main__":
    main()
