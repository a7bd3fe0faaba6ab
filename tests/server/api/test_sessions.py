"""The sessions of workers over the API."""

from __future__ import annotations

from nimburion.core.session import Session
from tests.server.conftest import Api


async def test_sessions_are_listed_in_pages_oldest_first(api: Api) -> None:
    for name in ("b", "a", "c"):
        session = Session(id=name, host="h", pid=1, queues=("default",), names=("send",))
        await api.processor.backend.open_session(session)
    first = await api.get("/sessions?limit=2")
    second = await api.get("/sessions", params={"limit": 2, "after": first["next"]})
    found = [session for page in (first, second) for session in page["sessions"]]
    assert sorted(session["id"] for session in found) == ["a", "b", "c"]
    assert second["next"] is None
    assert (found[0]["live"], found[0]["queues"], found[0]["running"]) == (True, ["default"], 0)
    assert (await api.get("/queues"))["queues"] == []
