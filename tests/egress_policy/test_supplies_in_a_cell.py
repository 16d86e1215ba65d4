"""A tool of the operator's in a real cell finds its share, read-only, and its secret; other tools find neither."""

from __future__ import annotations

from pathlib import Path

import pytest

from omni_mcp.config import Settings, load_settings
from omni_mcp.testing import ALLOW_ALL, home_in, local_gateway, write_private

pytestmark = [pytest.mark.usefixtures("cells"), pytest.mark.sandbox]
TOKEN = "token-of-the-operator"
MANIFEST = """manifest: 1
id: look
version: 1.0.0
title: Look
description: Looks.
input_schema: {type: object}
binding: {kind: sandbox_job, entry_point: "look:look", shares: [papers]}
secrets: [api_key]
side_effects: none
labels: {read_only: true, destructive: false, egress: false, reads_private: false, reads_untrusted: false}
"""
MODULE = """import hashlib, os

def look(arguments):
    try:
        open("/shares/papers/new.txt", "w")
        wrote = "yes"
    except OSError as error:
        wrote = type(error).__name__
    secret = os.environ.get("API_KEY", "")
    return {"text": open("/shares/papers/one.txt").read(), "wrote": wrote, "names": sorted(os.listdir("/shares")),
            "key": hashlib.sha256(secret.encode()).hexdigest()[:8], "said": secret}
"""
PLAIN = MANIFEST.replace(", shares: [papers]", "").replace("secrets: [api_key]\n", "").replace("look", "bare")
PLAIN_MODULE = """import os

def bare(arguments):
    return {"shares": os.path.exists("/shares/papers"), "variables": sorted(os.environ)}
"""


def settings_of(tmp_path: Path) -> Settings:
    papers = tmp_path / "papers"
    papers.mkdir()
    (papers / "one.txt").write_text("on paper")
    write_private(tmp_path / "key", TOKEN)
    text = f'[secrets]\napi_key = "file:{tmp_path / "key"}"\n[shares]\npapers = "{papers}"\n'
    return load_settings(write_private(tmp_path / "omni.toml", text))


async def test_a_share_can_be_read_and_not_written_and_a_secret_comes_and_stays_out_of_the_record(
    tmp_path: Path,
) -> None:
    home = home_in(tmp_path)
    for name, text in (("look.yaml", MANIFEST), ("look.py", MODULE), ("bare.yaml", PLAIN), ("bare.py", PLAIN_MODULE)):
        write_private(home.manifests / name, text)
    settings = settings_of(tmp_path)
    async with local_gateway(ALLOW_ALL, settings=settings, directory=tmp_path) as here, here.client() as client:
        looked = await client.call("tools__look")
        bare = await client.call("tools__bare")
        said = str([event.payload for event in await here.events()])

    assert not looked["isError"], looked
    found = looked["structuredContent"]
    assert (found["text"], found["names"]) == ("on paper", ["papers"])
    assert found["wrote"] in ("OSError", "PermissionError")
    assert found["key"] == "1b82c790"
    assert found["said"] != TOKEN and TOKEN not in said
    assert bare["structuredContent"]["shares"] is False
    assert "API_KEY" not in bare["structuredContent"]["variables"]
