"""A tool of the operator's own: a manifest with its module beside it runs in a cell, and follows its file."""

from __future__ import annotations

from pathlib import Path

import pytest

from omni_mcp.testing import ALLOW_ALL, error_of, home_in, local_gateway, write_private

MANIFEST = """manifest: 1
id: words
version: 1.0.0
title: Words
description: Counts the words of a text.
input_schema: {type: object, properties: {text: {type: string}}, required: [text], additionalProperties: false}
binding: {kind: sandbox_job, entry_point: "words:words"}
labels: {read_only: false, destructive: false, egress: false, reads_private: false, reads_untrusted: false}
"""
MODULE = 'def words(arguments):\n    return {"words": len(arguments["text"].split())}\n'


@pytest.mark.usefixtures("cells")
@pytest.mark.parametrize("mode", [0o644, 0o600])
async def test_a_module_beside_its_manifest_runs_and_a_changed_module_is_a_changed_definition(
    mode: int, tmp_path: Path
) -> None:
    home = home_in(tmp_path)
    write_private(home.manifests / "words.yaml", MANIFEST)
    module = write_private(home.manifests / "words.py", MODULE)
    module.chmod(mode)
    async with local_gateway(ALLOW_ALL, directory=tmp_path) as here, here.client() as client:
        result = await client.call("tools__words", {"text": "one two three"})
        assert result["structuredContent"] == {"words": 3}
        module.write_text(MODULE.replace(".split()", ""))
        changed = await here.until("catalog_changed")
        assert (changed.payload or {})["changed"] == ["tool tools/words"]
        result = await client.call("tools__words", {"text": "one two three"})
        assert result["structuredContent"] == {"words": 13}


@pytest.mark.usefixtures("cells")
async def test_a_module_that_changed_and_was_not_read_again_yet_does_not_run(tmp_path: Path) -> None:
    """What was decided on is what runs: the digest of the module is part of the definition."""
    home = home_in(tmp_path)
    write_private(home.manifests / "words.yaml", MANIFEST)
    module = write_private(home.manifests / "words.py", MODULE)
    async with local_gateway(ALLOW_ALL, directory=tmp_path) as here, here.client() as client:
        module.write_text('def words(arguments):\n    return {"words": "something else"}\n')
        result = await client.call("tools__words", {"text": "one two three"})
        assert error_of(result)["code"] == "sandbox_unavailable"
        assert "the tool's code changed" in result["content"][0]["text"]
