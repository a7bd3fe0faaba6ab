"""Concurrency limits over the API."""

from __future__ import annotations

from nimburion.core.session import Session
from tests.server.conftest import Api


async def test_limits_are_listed_in_pages_with_their_holders(api: Api) -> None:
    await api.processor.backend.open_session(
        Session(id="w", queues=("q",), names=("a", "b", "c"), limits={"a": 1, "b": 2, "c": 3})
    )
    first = await api.get("/limits?limit=2")
    second = await api.get("/limits", params={"limit": 2, "after": first["next"]})
    found = [limit for page in (first, second) for limit in page["limits"]]
    assert [(limit["name"], limit["limit"]) for limit in found] == [("a", 1), ("b", 2), ("c", 3)]
    assert (found[0]["in_use"], found[0]["holders"], second["next"]) == (0, [], None)
