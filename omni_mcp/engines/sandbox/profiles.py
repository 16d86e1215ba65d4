"""Profile: what kind of cell a job gets, read strictly from `sandbox/profiles/*.toml` and the operator's own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, ValidationInfo, field_validator

from omni_mcp.contracts.errors import ConfigError, Problem
from omni_mcp.contracts.manifest import Closed, HostName, Limits, Posture
from omni_mcp.engines.sandbox.profile_rules import (
    cache_fault,
    module_fault,
    profile_name_fault,
    read_fault,
    variable_fault,
)
from omni_mcp.engines.sandbox.toml_file import read_toml
from omni_mcp.paths import ownership_fault

_T = TypeVar("_T")
_Text = Annotated[str, Field(max_length=4096)]


class Profile(Closed):
    """What is the same for every job of one kind."""

    profile: Literal[1]
    description: str = Field(min_length=1, max_length=512)
    posture: Posture = Field("no-cgroup", description="The least isolation that does.")
    cpus: float = Field(1.0, gt=0, le=256, description="Enforced only where a cpu cgroup can be had.")
    start_limit_s: float = Field(15.0, gt=0, le=120)
    unix_sockets: bool | None = Field(None, description="With names; None: where no directory of the host is seen.")
    read: tuple[str, ...] = Field((), max_length=32, description="Host paths seen read-only at the same place.")
    certificates: bool = Field(False, description="CA certificates of the host are at their usual places.")
    hosts: tuple[HostName, ...] = Field(
        (), max_length=64, description="host:port or *.suffix:port that every job may reach."
    )
    environment: dict[str, _Text] = Field(default_factory=dict, max_length=64)
    secrets: dict[str, str] = Field({}, max_length=32, description="Variable = name of a secret of omni.toml.")
    limits: Limits = Field(Limits(), description="For `sandbox run` and servers; a tool's manifest brings its own.")
    home: Literal["workspace", "fresh", "kept"] = Field(
        "workspace",
        description="HOME: `/workspace`; or `/home/cell`, empty (`fresh`) or one directory per server (`kept`).",
    )
    caches: dict[str, str] = Field({}, max_length=8, description="Name = place below /home/cell; kept, per server.")
    cache_mib: int = Field(1024, ge=1, le=65536, description="Cap on all caches of one server together.")
    preload: tuple[str, ...] = Field((), max_length=32, description="Modules of `sandbox/tools` imported ahead.")
    warm: int = Field(2, ge=0, le=64, description="Cells kept ready once the profile was used.")

    @field_validator("read")
    @classmethod
    def _read(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _all_well(value, value, read_fault)

    @field_validator("preload")
    @classmethod
    def _preload(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _all_well(value, value, module_fault)

    @field_validator("environment")
    @classmethod
    def _environment(cls, value: dict[str, str]) -> dict[str, str]:
        return _all_well(value, value.items(), lambda item: variable_fault(*item))

    @field_validator("secrets")
    @classmethod
    def _secrets(cls, value: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        twice = set(value) & set(info.data.get("environment", {}))
        if twice:
            raise ValueError(f"{', '.join(sorted(twice))} is set by `environment` already")
        return _all_well(value, value.items(), lambda item: variable_fault(*item))

    @field_validator("caches")
    @classmethod
    def _caches(cls, value: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        if value and info.data.get("home") == "workspace":
            raise ValueError('caches need home = "fresh" or "kept"')
        for place in value.values():
            if any(f"{other}/".startswith(f"{place}/") for other in _others(list(value.values()), place)):
                raise ValueError(f"two caches cannot be at or below {place!r}")
        return _all_well(value, value.items(), lambda item: cache_fault(*item))


def load_profiles(*directories: Path, own: Path | None = None) -> dict[str, Profile]:
    """Read every profile of *directories*, then of *own*; a later one replaces a profile of the same name.

    Args:
        directories: those that ship with the package.
        own: the operator's directory, which may be missing; nobody else may be able to write there.

    Raises:
        ConfigError: with every fault of every file, as file, line and path.
    """
    profiles: dict[str, Profile] = {}
    problems: list[Problem] = []
    for directory in directories:
        profiles.update(_read_all(directory, False, problems))
    if own is not None:
        profiles.update(_read_all(own, True, problems))
    if problems:
        raise ConfigError(problems)
    return profiles


def find_profile(name: str, *directories: Path, own: Path | None = None) -> Profile | None:
    """Return the one profile called *name*, as `load_profiles` would, but without a look at the others.

    Raises:
        ConfigError: it is there and faulty.
    """
    if profile_name_fault(name):
        return None
    places = [(directory, False) for directory in directories] + ([(own, True)] if own is not None else [])
    for directory, private in reversed(places):
        file = directory / f"{name}.toml"
        if os.path.lexists(file):
            fault = ownership_fault(directory.lstat(), directory) if private else ""
            if fault:
                raise ConfigError([Problem(file=str(directory), line=0, path="", message=fault)])
            return read_profile(file, private=private)
    return None


def read_profile(file: Path, *, private: bool = False) -> Profile:
    """Read one profile.

    Raises:
        ConfigError: with every fault of the file. With *private* it is one too if others may have written it.
    """
    problems: list[Problem] = []
    fault = profile_name_fault(file.stem)
    if fault:
        problems.append(Problem(file=str(file), line=0, path="", message=fault))
    profile = read_toml(file, Profile, private=private, problems=problems)
    if profile is None or problems:
        raise ConfigError(problems)
    return profile


def _read_all(directory: Path, private: bool, problems: list[Problem]) -> dict[str, Profile]:
    if private and not directory.exists():
        return {}
    fault = ownership_fault(directory.lstat(), directory) if private else ""
    if fault:
        problems.append(Problem(file=str(directory), line=0, path="", message=fault))
        return {}
    found: dict[str, Profile] = {}
    for file in sorted(directory.glob("*.toml")):
        try:
            found[file.stem] = read_profile(file, private=private)
        except ConfigError as error:
            problems.extend(error.problems)
    return found


def _all_well(value: _T, items: Iterable[object], fault_of: Callable[..., str]) -> _T:
    fault = next((fault for item in items if (fault := fault_of(item))), "")
    if fault:
        raise ValueError(fault)
    return value


def _others(places: list[str], place: str) -> list[str]:
    rest = list(places)
    rest.remove(place)
    return rest
