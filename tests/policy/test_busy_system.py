"""A gateway that runs out of descriptors goes on deciding by the rules that it has."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from omni_mcp.engines.policy.policy import open_policy
from omni_mcp.engines.policy.watcher import PolicyWatcher
from omni_mcp.paths import bundled

RULE = '@id("any") permit (principal, action, resource);'


async def test_without_a_free_descriptor_the_rules_in_force_stay_and_a_change_is_read_later(tmp_path: Path) -> None:
    folder = tmp_path / "policies"
    folder.mkdir(mode=0o700)
    rule = folder / "any.cedar"
    rule.write_text(RULE)
    rule.chmod(0o600)
    policy = open_policy(folder, bundled("policies"))
    before, held = policy.version, list[int]()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        while True:
            try:
                held.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                break
        reload = policy.reload()
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    assert reload.busy
    assert reload.problems
    assert policy.version == before
    assert not reload.denies_all

    async def report(_: object) -> None:
        return

    watcher = PolicyWatcher(policy, report)
    rule.write_text(RULE.replace("any", "other"))
    await watcher.look()
    await watcher.look()
    assert policy.version != before
