"""`sandbox` runs commands in cells, and lists, shows and checks the profiles that say what kind of cell a job gets."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import click

from omni_mcp.cli.lazy import LazyGroup
from omni_mcp.cli.postures import NOT_STOPPED
from omni_mcp.contracts.errors import ConfigError, NotFound, Problem
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.sandbox import Isolation, Job, JobEnd
from omni_mcp.engines.sandbox.cells import open_sandbox
from omni_mcp.engines.sandbox.profiles import Profile, load_profiles, read_profile
from omni_mcp.paths import bundled, find_home

EXIT_FAILED, EXIT_NOT_HERE = 1, 3
_HOMES = {
    "workspace": "/workspace",
    "fresh": "/home/cell, empty at each start",
    "kept": "/home/cell, kept between starts, one per server",
}
_SOCKETS = {
    True: "unix sockets",
    False: "no unix sockets",
    None: "unix sockets, where no directory of the host is seen",
}


@click.group(
    cls=LazyGroup,
    elsewhere={
        "run": ("omni_mcp.cli.sandbox_run", "run", "Run a command in a fresh cell: no network, no files of yours.")
    },
)
def sandbox() -> None:
    """Run a command in a cell; list, show and check sandbox profiles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A profile and where it comes from: `shipped`, `own`, or `own, replaces the shipped one`."""

    name: str
    profile: Profile
    origin: str


@sandbox.command("profiles")
@click.option("--json", "as_json", is_flag=True, help="One JSON array instead of text.")
def list_profiles(as_json: bool) -> None:
    """List the profiles, shipped and your own."""
    known = known_profiles()
    if as_json:
        click.echo(json.dumps([_as_json(one) for one in known], ensure_ascii=False))
        return
    width = max(len(one.name) for one in known)
    for one in known:
        limits = one.profile.limits
        sizes = f"{limits.memory_mib} MiB, {limits.processes} processes, {limits.timeout_s:g} s"
        network = _counted(len(one.profile.hosts), "host") if one.profile.hosts else "no network"
        click.echo(f"{one.name:<{width}}  {one.origin:<7}  {one.profile.posture:<9}  {network:<10}  {sizes}")


@sandbox.command("show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
def show_profile(name: str, as_json: bool) -> None:
    """Print a profile in full, and what this machine gives against what it demands."""
    one = next((one for one in known_profiles() if one.name == name), None)
    if one is None:
        raise NotFound(f"there is no sandbox profile {name!r}; see: omni-mcp sandbox profiles")
    isolation = asyncio.run(_isolation())
    if as_json:
        here = {"isolation": isolation.as_json(), "met": isolation.at_least(one.profile.posture)}
        click.echo(json.dumps(_as_json(one) | here, ensure_ascii=False))
        return
    click.echo(f"{one.name} ({one.origin}): {one.profile.description}\n")
    for title, text in _in_words(one.profile):
        click.echo(f"{title:<14} {text}")
    click.echo("")
    for line in _here(one.profile, isolation):
        click.echo(line)


@sandbox.command("check")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON array instead of text.")
def check_profiles(files: tuple[Path, ...], as_json: bool) -> None:
    """Check profile files; without one, check all in force. Starts a cell for each and says what holds in it.

    Exit codes: 0 all is well; 1 a file is faulty, a cell does not start, or a directory of `read` is missing; 3 less
    isolation than demanded.
    """
    profiles = _read(files) if files else {one.name: one.profile for one in known_profiles()}
    ends = asyncio.run(_try_each(profiles))
    absent = {name: [path for path in profile.read if not Path(path).exists()] for name, profile in profiles.items()}
    if as_json:
        rows = [{"profile": name, "reason": end.reason, "message": end.message, "absent": absent[name],
                 **end.isolation.as_json()}
                for name, end in ends.items()]  # fmt: skip
        click.echo(json.dumps(rows, ensure_ascii=False))
    else:
        for name, end in ends.items():
            click.echo(f"{name}: {_verdict(end)}")
            for path in absent[name]:
                click.echo(f"{name}: $.read: {path} is not there; its jobs run without it")
    if any(end.reason == "sandbox_unavailable" for end in ends.values()):
        sys.exit(EXIT_NOT_HERE)
    sys.exit(0 if all(map(_is_well, ends.values())) and not any(absent.values()) else EXIT_FAILED)


def known_profiles() -> list[Known]:
    """Return the profiles in force, by name.

    Raises:
        ConfigError: one of them is faulty.
    """
    shipped = load_profiles(bundled("sandbox") / "profiles")
    own = load_profiles(own=find_home().profiles)
    found = {name: Known(name=name, profile=profile, origin="shipped") for name, profile in shipped.items()}
    for name, profile in own.items():
        origin = "own, replaces the shipped one" if name in shipped else "own"
        found[name] = Known(name=name, profile=profile, origin=origin)
    return [found[name] for name in sorted(found)]


def _read(files: tuple[Path, ...]) -> dict[str, Profile]:
    profiles: dict[str, Profile] = {}
    problems: list[Problem] = []
    for file in files:
        try:
            profiles[file.stem] = read_profile(file)
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError(problems)
    return profiles


async def _isolation() -> Isolation:
    async with open_sandbox(profiles={}, sandbox_dir=bundled("sandbox"), max_jobs=1) as found:
        return found.isolation()


async def _try_each(profiles: Mapping[str, Profile]) -> dict[str, JobEnd]:
    async with open_sandbox(profiles=profiles, sandbox_dir=bundled("sandbox"), max_jobs=1) as found:
        return {
            name: await found.run(Job(profile=name, argv=("/bin/sh", "-c", ":"), limits=profile.limits))
            for name, profile in profiles.items()
        }


def _is_well(end: JobEnd) -> bool:
    return end.reason == "exit" and end.exit_code == 0


def _verdict(end: JobEnd) -> str:
    if _is_well(end):
        sockets = "unix sockets" if end.limits["unix_sockets"] else "no unix sockets"
        return f"{end.isolation.posture} ({', '.join(end.isolation.layers)}), {sockets}"
    said = end.message or end.stderr.decode(errors="replace").strip()
    return f"{end.reason}: {said}" if said else f"{end.reason} {end.exit_code if end.exit_code is not None else ''}"


def _as_json(one: Known) -> JsonObject:
    return {"name": one.name, "origin": one.origin, **one.profile.model_dump(mode="json")}


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _in_words(profile: Profile) -> Iterator[tuple[str, str]]:
    yield "demands", profile.posture
    yield "network", ", ".join(profile.hosts) + " through the proxy" if profile.hosts else "none of its own"
    yield "sockets", _SOCKETS[profile.unix_sockets]
    yield "reads", ", ".join(("the system's programs", *profile.read))
    yield "certificates", "of the host" if profile.certificates else "none"
    yield "home", _HOMES[profile.home]
    caches = ", ".join(f"{name} at {place}" for name, place in profile.caches.items())
    yield "caches", f"{caches}; {profile.cache_mib} MiB in all" if caches else "none"
    yield "processor", f"{profile.cpus:g} cores' worth, where a cgroup counts it"
    limits = profile.limits
    yield "time", f"{limits.timeout_s:g} s, of it {limits.cpu_s:g} s of CPU time"
    yield "memory", f"{limits.memory_mib} MiB"
    yield "processes", f"{limits.processes}, each with {limits.open_files} open files"
    yield "disk", f"{limits.disk_mib} MiB in {limits.inodes} files, {limits.file_size_mib} MiB each"
    yield "output", f"{limits.output_limit_bytes} bytes"
    yield "variables", " ".join(f"{name}={value}" for name, value in profile.environment.items()) or "the usual ones"
    yield "secrets", " ".join(f"{name} from {secret}" for name, secret in profile.secrets.items()) or "none"
    yield "kept ready", f"{profile.warm} cells, with {', '.join(profile.preload) or 'nothing'} imported"


def _here(profile: Profile, isolation: Isolation) -> Iterator[str]:
    met = "enough" if isolation.at_least(profile.posture) else "NOT enough: its jobs are refused"
    yield f"This machine gives {isolation.posture}: {met}."
    yield f"In force: {', '.join(isolation.layers) or 'nothing'}."
    yield f"Not stopped: {NOT_STOPPED[isolation.posture]}."
    for layer, reason in isolation.missing.items():
        yield f"Missing: {layer}: {reason}"
    for path in profile.read:
        if not Path(path).exists():
            yield f"Missing: {path} is not there; its jobs run without it"
