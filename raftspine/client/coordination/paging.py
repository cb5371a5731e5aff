"""Listings, page by page."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

from raftspine.client.coordination.channel import Channel


async def pages(on: Channel, path: str, query: Mapping[str, str | None]) -> AsyncIterator[dict[str, Any]]:
    """The items of a listing, fetched page by page while you iterate."""
    cursor: str | None = None
    while True:
        page = await on.look(path, {**query, "cursor": cursor})
        for item in page["items"]:
            yield item
        cursor = page.get("next_cursor")
        if cursor is None:
            return
