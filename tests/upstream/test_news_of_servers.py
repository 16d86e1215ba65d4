"""A server's word that its lists changed holds its calls until what it offers is known, each notice by itself."""

from __future__ import annotations

import asyncio

import pytest

from omni_mcp.contracts.errors import UpstreamUnavailable
from omni_mcp.engines.upstream.listing import Listing
from omni_mcp.upstreams.news import News


async def test_only_calls_of_the_server_that_changes_wait_and_only_until_that_notice_is_answered() -> None:
    news = News()
    news.noticed("a")
    waits = asyncio.ensure_future(news.settled("a"))
    await asyncio.sleep(0)
    await news.settled("b")
    news.noticed("a")
    news.answered("a", 1)
    await waits
    late = asyncio.ensure_future(news.settled("a"))
    await asyncio.sleep(0)
    assert not late.done()  # the second notice came after the lists were asked for
    news.answered("a", 1)
    await late


async def test_a_listing_counts_once_it_is_in_the_catalog() -> None:
    news = News()
    news.noticed("a")
    news.listed("a", Listing())
    news.answered("a", 1)
    waits = asyncio.ensure_future(news.settled("a"))
    listings, _ = await news.next()
    assert list(listings) == ["a"]
    news.noticed("a")
    news.answered("a", 1)  # nothing new, while the first listing is still being taken in
    second = asyncio.ensure_future(news.settled("a"))
    await asyncio.sleep(0)
    assert not waits.done() and not second.done()
    news.caught_up()
    await asyncio.gather(waits, second)


async def test_the_wait_is_bounded() -> None:
    news = News(settle_s=0.01)
    news.noticed("a")
    with pytest.raises(UpstreamUnavailable, match="is changing what it offers"):
        await news.settled("a")
