"""The operator's files: who can write to them, and what is wrong in them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from omni_mcp.cli.doctor.finding import Finding, Patient, faults
from omni_mcp.config import read_secrets
from omni_mcp.contracts.errors import ConfigError
from omni_mcp.engines.catalog.manifests import ManifestDirectory, ManifestSource
from omni_mcp.engines.identity.keys import private_file_fault
from omni_mcp.engines.policy.policy_set import load_policies, read_shipped
from omni_mcp.paths import Home, bundled
from omni_mcp.serving.socket import PATH_LIMIT_BYTES


def check_permissions(patient: Patient) -> Iterator[Finding]:
    """Who can write where decisions, code and keys come from."""
    home = patient.home
    for name, path in (
        ("home", home.config), ("data", home.data), ("policies", home.policies), ("manifests", home.manifests),
        ("profiles", home.profiles), ("runtime", home.runtime), ("secrets", home.secrets),
    ):  # fmt: skip
        yield _directory_finding(f"{name} directory", path)
    for name, path in (("keys file", home.keys_file), ("token file", home.token_file)):
        fault = private_file_fault(path)
        if fault:
            yield Finding(name=name, level="fail", text=f"{path}: {fault}", next=f"chmod 600 {path}")
        else:
            yield Finding(name=name, level="ok", text=str(path) if path.exists() else f"{path} (not made yet)")
    if len(os.fsencode(home.socket)) > PATH_LIMIT_BYTES:
        hint = "set XDG_RUNTIME_DIR to a shorter path"
        yield Finding(name="socket path", level="fail", text=f"{home.socket} is too long", next=hint)


def check_files(patient: Patient) -> Iterator[Finding]:
    """Settings, policies and manifests, with the place of every fault."""
    if patient.settings_fault is not None:
        yield from faults("settings", patient.settings_fault)
    elif patient.settings is not None:
        try:
            read_secrets(patient.settings, dict(os.environ))
            yield Finding(name="settings", level="ok", text=str(patient.home.settings_file))
        except ConfigError as error:
            yield from faults("settings", error)
    yield from _policy_findings(patient.home)
    directories = [
        ManifestDirectory(path=bundled("manifests"), bundled=True),
        ManifestDirectory(path=patient.home.manifests),
    ]
    try:
        entries = list(ManifestSource(directories, code=bundled("sandbox") / "tools").load())
        yield Finding(name="manifests", level="ok", text=f"{len(entries)} tools")
    except ConfigError as error:
        yield from faults("manifests", error)


def _directory_finding(name: str, path: Path) -> Finding:
    try:
        facts = path.lstat()
    except FileNotFoundError:
        return Finding(name=name, level="ok", text=f"{path} (not made yet)")
    except OSError as error:
        return Finding(name=name, level="fail", text=f"{path}: {error.strerror}", next="run this as the gateway's user")
    if not stat.S_ISDIR(facts.st_mode):
        return Finding(name=name, level="fail", text=f"{path} is no directory", next=f"move {path} away")
    if facts.st_uid not in (os.getuid(), 0):
        return Finding(
            name=name, level="fail", text=f"{path} belongs to user {facts.st_uid}", next=f"chown {os.getuid()} {path}"
        )
    if facts.st_mode & 0o022:
        mode = stat.S_IMODE(facts.st_mode)
        return Finding(
            name=name, level="fail", text=f"others can write to {path} ({mode:04o})", next=f"chmod go-w {path}"
        )
    return Finding(name=name, level="ok", text=str(path))


def _policy_findings(home: Home) -> Iterator[Finding]:
    if not home.policies.exists():
        text = f"{home.policies} is not there, so every call is denied"
        yield Finding(name="policy", level="warn", text=text, next="omni-mcp allow tools__files_read")
        return
    try:
        policies = load_policies(home.policies, read_shipped(bundled("policies")))
    except ConfigError as error:
        yield from faults("policy", error)
        return
    yield Finding(name="policy", level="ok", text=f"{len(policies.rules)} rules")
    for warning in policies.warnings:
        yield Finding(name="policy", level="warn", text=str(warning), next="omni-mcp policy check")
