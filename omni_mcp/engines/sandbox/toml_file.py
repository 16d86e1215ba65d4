"""A TOML file that a person wrote becomes one frozen value; each fault has its file, line and path."""

from __future__ import annotations

import json
import os
import re
import stat
import tomllib
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from omni_mcp.contracts.errors import Problem
from omni_mcp.paths import ownership_fault

_SIZE_LIMIT_BYTES = 64 * 1024
_M = TypeVar("_M", bound=BaseModel)


def read_toml(file: Path, model: type[_M], *, private: bool, problems: list[Problem]) -> _M | None:
    """Read *file* as a *model*; on any fault add to *problems* and return None.

    Args:
        file: opened once, so that what was checked is what is read.
        model: refuses unknown keys itself.
        private: refuse a link, and a file that others may have written.
        problems: is added to.
    """

    def refuse(message: str, line: int = 0, path: str = "") -> None:
        problems.append(Problem(file=str(file), line=line, path=path, message=message))

    try:
        text = _read(file, private)
        data = json.dumps(tomllib.loads(text), allow_nan=False)
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"line (\d+)", str(error))
        refuse(str(error), int(place.group(1)) if place else 0)
        return None
    except OSError as error:
        refuse(f"cannot be read: {error.strerror}")
        return None
    except (ValueError, TypeError) as error:  # no UTF-8, no finite number, a date
        refuse(str(error))
        return None
    try:
        return model.model_validate_json(data, strict=True)
    except ValidationError as error:
        for fault in error.errors():
            keys = [str(key) for key in fault["loc"]]
            refuse(fault["msg"].removeprefix("Value error, "), _line_of(text, keys), ".".join(["$", *keys]))
    return None


def _read(file: Path, private: bool) -> str:
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (os.O_NOFOLLOW if private else 0))
    with open(descriptor, "rb") as stream:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise ValueError("must be a regular file")
        fault = ownership_fault(facts, file) if private else ""
        if fault:
            raise ValueError(fault)
        data = stream.read(_SIZE_LIMIT_BYTES + 1)
    if len(data) > _SIZE_LIMIT_BYTES:
        raise ValueError(f"is larger than {_SIZE_LIMIT_BYTES} bytes")
    return data.decode("utf-8")


def _line_of(text: str, keys: list[str]) -> int:
    """Return the line on which the last of *keys* is set, 0 if it is not (a missing key is the whole file's fault)."""
    table: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[\s*([A-Za-z0-9_.\"'-]+)\s*\]", line)
        if header:
            table = header.group(1).replace('"', "").replace("'", "").split(".")
            if table == keys:
                return number
            continue
        key = re.match(r"\s*[\"']?([A-Za-z0-9_-]+)[\"']?\s*=", line)
        if key and [*table, key.group(1)] == keys[: len(table) + 1]:
            return number
    return 0
