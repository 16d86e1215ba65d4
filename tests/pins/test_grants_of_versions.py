"""A standing grant is good for the version that its project has, and for no other."""

from __future__ import annotations

from pathlib import Path

from tests.pins.test_restarts import FIRST, SECOND
from tests.upstream.servers.web import web_server
from tests.upstream.town import Shop, a_town
from tests.waiting import until


async def test_a_grant_in_a_pinned_project_covers_the_pinned_version_only(tmp_path: Path) -> None:
    shop = Shop(tools=[FIRST])
    async with web_server(shop.script()) as server:
        async with a_town(tmp_path, f'[servers.up]\nurl = "{server.url}"\n') as town:
            await town.accepted("up")
            town.runs("pins", "set", "old", "up__it", "1")
            shop.tools = [SECOND]
            town.here.gateway._engines.behind._upstreams.refresh("up")
            listing = town.here.home.data / "listings" / "up.json"
            await until(lambda: "Second." in listing.read_text())
            town.accepts("up")
            find = town.here.gateway.catalog.find
            await until(lambda: (now := find("default", "tool", "up__it", project="new")) and now.state == "accepted")
            seen = {project: find("default", "tool", "up__it", project=project) for project in ("old", "new")}
            given = {
                project: town.runs("approvals", "grant", "up__it", "--project", project, "--expires", "1h", "--yes")
                for project in seen
            }

    for project, entry in seen.items():
        assert entry is not None
        assert given[project]["definitions"] == [entry.digest]
    assert given["old"]["definitions"] != given["new"]["definitions"]
