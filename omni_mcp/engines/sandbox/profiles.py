"""Profile: what kind of cell a job gets, read strictly from `sandbox/profiles/*.toml`."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from omni_mcp.contracts.errors import ConfigError, Problem
from omni_mcp.contracts.manifest import Closed

_FILE_LIMIT_BYTES = 64 * 1024
_NAME = re.compile(r"^[a-z0-9]+(-[a-z0-9]+)*$")


class Profile(Closed):
    """What is the same for every job of one kind; limits come with each job.

    `posture` is the least isolation that does; `cpus` is enforced only where a cpu cgroup can be had.
    """

    profile: Literal[1]
    description: str = Field(min_length=1, max_length=512)
    posture: Literal["full", "no-cgroup"] = "no-cgroup"
    unix_sockets: bool = False
    cpus: float = Field(1.0, gt=0, le=256)
    start_limit_s: float = Field(15.0, gt=0, le=120)
    environment: dict[str, str] = Field(default_factory=dict, max_length=64)


def load_profiles(*directories: Path) -> dict[str, Profile]:
    """Read every profile of *directories*; a later directory replaces a profile of the same name.

    Raises:
        ConfigError: with every fault of every file, as file, line and path.
    """
    profiles: dict[str, Profile] = {}
    problems: list[Problem] = []
    for directory in directories:
        for file in sorted(directory.glob("*.toml")):
            profile = _read(file, problems)
            if profile is not None:
                profiles[file.stem] = profile
    if problems:
        raise ConfigError(problems)
    return profiles


def _read(file: Path, problems: list[Problem]) -> Profile | None:
    before = len(problems)
    if not _NAME.match(file.stem):
        problems.append(Problem(file=str(file), line=0, path="", message="a profile's name is lower case with dashes"))
    try:
        if file.stat().st_size > _FILE_LIMIT_BYTES:
            raise ValueError(f"larger than {_FILE_LIMIT_BYTES} bytes")
        text = file.read_text(encoding="utf-8")
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"line (\d+)", str(error))
        line = int(place.group(1)) if place else 0
        problems.append(Problem(file=str(file), line=line, path="", message=str(error)))
        return None
    except (OSError, ValueError) as error:  # ValueError also covers bytes that are not UTF-8
        problems.append(Problem(file=str(file), line=0, path="", message=str(error)))
        return None
    try:
        profile = Profile.model_validate(data, strict=True)
    except ValidationError as error:
        for fault in error.errors():
            keys = [str(key) for key in fault["loc"]]
            problems.append(
                Problem(file=str(file), line=_line_of(text, keys), path=".".join(["$", *keys]), message=fault["msg"])
            )
        return None
    return profile if len(problems) == before else None


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
