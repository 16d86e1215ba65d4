"""`omni-mcp init`: a first policy, small enough to read, and what it allows in words."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click
import orjson

from omni_mcp.cli.person import json_option, printable
from omni_mcp.cli.policy import policy_dir
from omni_mcp.cli.trial import entries_of, somebody, try_call
from omni_mcp.contracts.errors import BadRequest
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.policy.files import PolicyFile, read_policy_files
from omni_mcp.engines.policy.policy import open_policy
from omni_mcp.engines.policy.policy_set import compile_policies, read_shipped
from omni_mcp.engines.policy.request import resource_id
from omni_mcp.paths import bundled, find_home, write_private

SOME_HOST = "host.invalid:443"  # RFC 6761, 6.4: nobody has it, so no rule means it alone
Starter = Literal["desktop", "team", "ci"]
STARTERS: dict[Starter, str] = {
    "desktop": "what you accepted as read-only runs, and clients may remember; the rest is asked about, call by call",
    "team": "agents may use what was accepted as read-only and not private; everything else is refused",
    "ci": "the gateway's own read-only tools run; everything else is refused, and nobody is asked",
}
NEXT: dict[Starter, tuple[str, ...]] = {
    "desktop": ("omni-mcp import", "omni-mcp connect CLIENT", "omni-mcp approvals watch"),
    "team": ("omni-mcp add NAME -- CMD ARGS", "omni-mcp allow SERVER__TOOL --to AGENT", "omni-mcp keys create NAME"),
    "ci": ("omni-mcp allow SERVER__TOOL", "omni-mcp policy test", "omni-mcp lock --check"),
}


@click.command(epilog="Examples: omni-mcp init | omni-mcp init --starter ci | omni-mcp init --starter team --force")
@click.option("--starter", type=click.Choice(list(STARTERS)), default="desktop", show_default=True, help="For whom.")
@click.option("--force", is_flag=True, help="Replace the file if it is there and differs.")
@json_option
def init(starter: Starter, force: bool, as_json: bool) -> None:
    """Write a small policy to begin with, and say what it allows."""
    home = find_home()
    file = policy_dir(home) / f"{starter}.cedar"
    text = (bundled("policies") / "starters" / file.name).read_text(encoding="utf-8")
    written = _write(file, text, force=force)
    policy = open_policy(home.policies, bundled("policies"))
    somebodys = somebody(agent="any-client")
    verdicts = {
        resource_id(entry.server, entry.name): try_call(policy, somebodys, entry, hosts=_some_host(entry)).verdict
        for entry in entries_of(home, "call_tool", None, None)
    }
    beside = sorted(one.name for one in read_policy_files(file.parent) if one.name != file.name)
    if as_json:
        facts = {
            "file": str(file),
            "starter": starter,
            "written": written,
            "means": STARTERS[starter],
            "beside": beside,
        }
        click.echo(orjson.dumps({**facts, "tools": verdicts, "next": NEXT[starter]}))
        return
    click.echo(f"{file}{'' if written else ' (as it was)'}\n  {STARTERS[starter]}")
    if beside:
        click.echo(f"  in force beside it, and what they allow is allowed: {', '.join(map(printable, beside))}")
        for name in [name for name in beside if name.removesuffix(".cedar") in STARTERS]:
            click.echo(f"    {name} is another starter; to be rid of it: rm {file.with_name(name)}")
    for verdict, word in (("allow", "runs"), ("ask", "is asked about"), ("deny", "is refused")):
        names = sorted(name for name, found in verdicts.items() if found == verdict)
        if names:
            click.echo(f"  {word}: {', '.join(names)}")
    click.echo("next:\n" + "\n".join(f"  {step}" for step in NEXT[starter]))


def _some_host(entry: Entry) -> tuple[str, ...]:
    """Return a host for a tool whose calls name one: without it a call of it is not what its calls are."""
    names_one = entry.manifest is not None and entry.manifest.binding.egress_argument is not None
    return (SOME_HOST,) if names_one else ()


def _write(file: Path, text: str, *, force: bool) -> bool:
    """Write *file*; False if it says so already.

    Raises:
        BadRequest: it says something else, and *force* was not given.
        ConfigError: beside the rules that are there it would not load.
    """
    if file.exists():
        if file.read_text(encoding="utf-8") == text:
            return False
        if not force:
            raise BadRequest(f"{file} is there and was edited; look at it, or replace it with --force")
    others = [one for one in read_policy_files(file.parent) if one.name != file.name]
    compile_policies([*others, PolicyFile(file.name, text)], read_shipped(bundled("policies")))
    write_private(file, text.encode())
    return True
