"""Queues over the API."""

from __future__ import annotations

from tests.server.conftest import Api


async def test_queues_are_listed_in_pages(api: Api) -> None:
    for queue in ("a", "b", "c"):
        await api.enqueue(f"job-{queue}", queue=queue)
    first = await api.get("/queues?limit=2")
    second = await api.get("/queues", params={"limit": 2, "after": first["next"]})
    names = [queue["name"] for page in (first, second) for queue in page["queues"]]
    assert (names, first["next"], second["next"]) == (["a", "b", "c"], "b", None)
    assert first["queues"][0]["size"] == 1
    assert first["queues"][0]["names"] == {"send": 1}
    assert first["queues"][0]["unserved"] == {"send": "no worker is live"}


async def test_a_queue_is_paused_and_resumed_any_number_of_times(api: Api) -> None:
    for verb, paused in (("pause", True), ("pause", True), ("resume", False), ("resume", False)):
        assert await api.post(f"/queues/mail/{verb}") == {"queue": "mail", "paused": paused}
        assert (await api.get("/queues/mail"))["paused"] is paused


async def test_jobs_are_counted(api: Api) -> None:
    await api.enqueue("a", "b", queue="mail")
    await api.fail("c")
    everything = await api.get("/counts")
    assert (everything["counts"]["pending"], everything["counts"]["failed"]) == (2, 1)
    assert len(everything["counts"]) == 7
    assert (await api.get("/counts?queue=mail"))["counts"]["failed"] == 0


async def test_a_queue_named_like_a_json_value_is_a_name(api: Api) -> None:
    await api.enqueue("a", queue="null")
    await api.enqueue("b", queue="1")
    assert (await api.get("/counts?queue=null"))["counts"]["pending"] == 1
    assert (await api.get("/jobs?queue=1"))["jobs"][0]["id"] == "b"
