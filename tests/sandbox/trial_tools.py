"""Functions that run inside a cell, for the tests."""

from __future__ import annotations

import fcntl
import os
import sys
import threading
import time
from typing import Any

from failure import ToolFailure  # type: ignore[import-not-found,unused-ignore]  # it is there inside a cell

_WORD_OF_THE_END = 4  # the counter in which a function that was waited for leaves word


def echo(arguments: dict[str, Any]) -> dict[str, Any]:
    print("on stdout")
    print("on stderr", file=sys.stderr)
    return {"echo": arguments, "cwd": os.getcwd()}


def refuse(arguments: dict[str, Any]) -> dict[str, Any]:
    raise ToolFailure("give me a number")


def crash(arguments: dict[str, Any]) -> dict[str, Any]:
    raise KeyError("missing")


def vanish(arguments: dict[str, Any]) -> dict[str, Any]:
    os._exit(0)


def flood(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"flood": "x" * arguments["bytes"]}


def not_an_object(arguments: dict[str, Any]) -> Any:
    return [1, 2]


def forge(arguments: dict[str, Any]) -> dict[str, Any]:
    """Write bytes of one's own choice where the result goes."""
    os.write(3, arguments["text"].encode())
    os._exit(0)


def eat_memory(arguments: dict[str, Any]) -> dict[str, Any]:
    block = bytearray(arguments["mib"] << 20)
    return {"bytes": len(block)}


def spin(arguments: dict[str, Any]) -> dict[str, Any]:
    while True:
        pass


def leave_files(arguments: dict[str, Any]) -> dict[str, Any]:
    os.makedirs("out/deep")
    with open("out/report.txt", "w") as file:
        file.write("a report")
    with open("out/deep/data.bin", "wb") as file:
        file.write(b"\x00\x01")
    return {"left": 2}


def read_artifact(arguments: dict[str, Any]) -> dict[str, Any]:
    with open("in/artifact", "rb") as file:
        return {"text": file.read().decode()}


def count_up(arguments: dict[str, Any]) -> dict[str, Any]:
    """Keep a number in the workspace."""
    try:
        with open("number") as file:
            number = int(file.read())
    except FileNotFoundError:
        number = 0
    with open("number", "w") as file:
        file.write(str(number + 1))
    return {"number": number + 1}


def versions(arguments: dict[str, Any]) -> dict[str, Any]:
    import jsonschema

    return {"file": jsonschema.__file__}


def nest(arguments: dict[str, Any]) -> dict[str, Any]:
    """Make directories in one another."""
    for _ in range(arguments["levels"]):
        os.mkdir(arguments["name"])
        os.chdir(arguments["name"])
    return {}


def close_doors(arguments: dict[str, Any]) -> dict[str, Any]:
    """Take every permission from a directory inside, and from the workspace itself."""
    os.mkdir("inner")
    with open("inner/file", "wb") as file:
        file.write(bytes(arguments["bytes"]))
    places = [os.open(name, os.O_RDONLY) for name in ("inner", ".")]
    for place in places:
        os.fchmod(place, 0)
    return {"modes": [os.fstat(place).st_mode & 0o777 for place in places]}


def fill(arguments: dict[str, Any]) -> dict[str, Any]:
    """Write so many files of 1 MiB, with a pause after each."""
    for number in range(arguments["mib"]):
        with open(f"fill{number}", "wb") as file:
            file.write(os.urandom(1 << 20))
        time.sleep(arguments["pause_s"])
    return {}


def make_files(arguments: dict[str, Any]) -> dict[str, Any]:
    for number in range(arguments["files"]):
        os.close(os.open(f"file{number}", os.O_CREAT | os.O_WRONLY))
    return {}


def take_time(arguments: dict[str, Any]) -> dict[str, Any]:
    time.sleep(arguments["s"])
    return {}


def leave_behind(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return while a child, an orphan or a thread still holds a lock on the file `held` of the workspace."""
    ready, tell = os.pipe()

    def hold() -> None:
        held = os.open("held", os.O_RDWR | os.O_CREAT)
        fcntl.flock(held, fcntl.LOCK_EX)
        os.write(tell, b".")
        while True:
            time.sleep(1)

    if arguments["what"] == "thread":
        threading.Thread(target=hold, daemon=True).start()
    elif os.fork() == 0:
        if arguments["what"] == "child" or os.fork() == 0:
            hold()
        os._exit(0)
    os.read(ready, 1)
    return {"left": arguments["what"]}


def claim_to_have_ended(arguments: dict[str, Any]) -> dict[str, Any]:
    """Say what a function says that has returned, and go on with a lock on the file `held` of the workspace."""
    held = os.open("held", os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    os.eventfd_write(_WORD_OF_THE_END, 1)
    while True:
        time.sleep(1)


def say_and_take_back(arguments: dict[str, Any]) -> dict[str, Any]:
    """Say again and again that it has returned, with the word that stands for exit code 0, and take the word away."""
    for _ in range(arguments["times"]):
        os.eventfd_write(_WORD_OF_THE_END, 1)
        try:
            os.eventfd_read(_WORD_OF_THE_END)
        except BlockingIOError:
            break
    return {"times": arguments["times"]}
