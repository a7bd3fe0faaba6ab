"""The audit log over the API."""

from __future__ import annotations

from tests.server.conftest import Api


async def test_changes_are_listed_in_pages_newest_first(api: Api) -> None:
    await api.post("/queues/mail/pause", {"reason": "deploy", "for": 60})
    await api.post("/queues/mail/resume")
    first = await api.get("/audit?limit=1")
    second = await api.get("/audit", params={"limit": 1, "after": first["next"]})
    records = [record for page in (first, second) for record in page["records"]]
    assert [record["action"] for record in records] == ["queue.resume", "queue.pause"]
    assert records[1]["details"] == {"reason": "deploy", "for": "60.0"}
    assert (records[1]["by"], records[1]["origin"]) == ("local", "api")


async def test_a_cursor_of_another_list_is_refused(api: Api) -> None:
    response = await api.client.get("/api/v1/audit?after=none")
    assert response.status_code == 422
