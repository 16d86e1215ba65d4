"""What the settings give to jobs: networks, credentials, secrets, shared directories."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from omni_mcp.config import Settings
from omni_mcp.contracts.errors import ConfigError, Problem
from omni_mcp.contracts.hosts import host_of_url
from omni_mcp.contracts.sandbox import Credential
from omni_mcp.engines.sandbox.supplies import Supplies, ToolCredential
from omni_mcp.host_places import HostPlaces
from omni_mcp.paths import Home


def supplies_of(settings: Settings, secrets: Mapping[str, str], home: Home) -> Supplies:
    """Return what the settings give to jobs.

    Raises:
        ConfigError: a secret cannot stand in a header, or no cell may be shown a shared directory.
    """
    shown = HostPlaces(home)
    if problems := [*_secrets_unfit_for_headers(settings, secrets), *_shares_that_no_job_may_see(settings, shown)]:
        raise ConfigError(problems)
    return Supplies(
        networks=settings.egress.networks,
        credentials=(*_of_tools(settings, secrets), *_of_documents(settings, secrets)),
        secrets=secrets,
        shares={name: Path(place) for name, place in settings.shares.items()},
        shown=shown,
    )


def _secrets_unfit_for_headers(settings: Settings, secrets: Mapping[str, str]) -> list[Problem]:
    wanted = {
        f"$.egress.credentials.{number}.secret": one.secret for number, one in enumerate(settings.egress.credentials)
    } | {
        f"$.openapi.{name}.credentials.{number}.secret": one.secret
        for name, document in settings.openapi.items()
        for number, one in enumerate(document.credentials)
    }
    found: list[Problem] = []
    for path, secret in wanted.items():
        value = secrets.get(secret, "")
        if not value or not all(" " <= letter <= "~" for letter in value):
            text = f"the value of {secret!r} is empty, or cannot stand in a header"
            found.append(Problem(file="omni.toml", line=0, path=path, message=text))
    return found


def _shares_that_no_job_may_see(settings: Settings, shown: HostPlaces) -> list[Problem]:
    faults = {name: shown.fault(place) for name, place in settings.shares.items()}
    return [
        Problem(file="omni.toml", line=0, path=f"$.shares.{name}", message=fault)
        for name, fault in faults.items() if fault
    ]  # fmt: skip


def _of_tools(settings: Settings, secrets: Mapping[str, str]) -> list[ToolCredential]:
    return [
        ToolCredential(
            credential=Credential(host=one.host, header=one.header, value=one.prefix + secrets[one.secret]),
            tools=frozenset(one.tools),
        )
        for one in settings.egress.credentials
    ]


def _of_documents(settings: Settings, secrets: Mapping[str, str]) -> list[ToolCredential]:
    return [
        ToolCredential(
            credential=Credential(
                host=host_of_url(document.base_url), header=one.header, value=one.prefix + secrets[one.secret]
            ),
            documents=frozenset({name}),
        )
        for name, document in settings.openapi.items()
        for one in document.credentials
    ]
