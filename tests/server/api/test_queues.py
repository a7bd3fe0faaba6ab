"""Queues over the API."""

from __future__ import annotations

from nimburion.core.session import Session
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
        answer = await api.post(f"/queues/mail/{verb}")
        assert answer == {"queue": "mail", "paused": paused, "until": None}
        assert (await api.get("/queues/mail"))["paused"] is paused


async def test_all_queues_are_paused_and_resumed(api: Api) -> None:
    await api.enqueue("a", queue="mail")
    await api.enqueue("b", queue="slow")
    worker = Session(id="w", queues=("idle", "mail"), names=("send",))
    await api.processor.backend.consuming.open_session(worker)
    await api.post("/queues/slow/pause", {"reason": "broken"})
    answer = await api.post("/queues/pause", {"reason": "deploy", "for": 60})
    assert answer["queues"] == ["idle", "mail"]
    assert answer["until"] is not None
    reasons = {one["name"]: one["pause"]["reason"] for one in (await api.get("/queues"))["queues"]}
    assert reasons == {"idle": "deploy", "mail": "deploy", "slow": "broken"}
    answer = await api.post("/queues/resume")
    assert answer == {"queues": ["idle", "mail", "slow"], "paused": False, "until": None}
    assert not any(one["paused"] for one in (await api.get("/queues"))["queues"])
    records = (await api.get("/audit"))["records"]
    assert [(one["action"], one["changed"]) for one in records[:2]] == [
        ("queue.resume_all", 3),
        ("queue.pause_all", 2),
    ]


async def test_a_pause_has_a_reason_and_an_end(api: Api) -> None:
    now = await api.processor.backend.now()
    answer = await api.post("/queues/mail/pause", {"reason": "deploy", "for": 3600})
    assert 3590 < answer["until"] - now < 3700
    pause = (await api.get("/queues/mail"))["pause"]
    assert (pause["by"], pause["reason"], pause["until"]) == ("local", "deploy", answer["until"])
    answer = await api.post("/queues/mail/pause", {"until": "2999-01-01T00:00:00+01:00"})
    assert answer["until"] == 32_472_140_400
    response = await api.client.post(
        "/api/v1/queues/mail/pause", json={"until": "2020-01-01T00:00:00Z"}
    )
    assert (response.status_code, response.json()["type"]) == (
        409,
        "urn:nimburion:problem:past-time",
    )
    assert (await api.get("/queues/mail"))["pause"]["until"] == answer["until"]
    response = await api.client.post(
        "/api/v1/queues/mail/pause", json={"for": 1, "until": "2999-01-01T00:00:00Z"}
    )
    assert response.status_code == 422


async def test_jobs_are_counted(api: Api) -> None:
    await api.enqueue("a", "b", queue="mail")
    await api.fail("c")
    everything = await api.get("/counts")
    assert (everything["counts"]["pending"], everything["counts"]["failed"]) == (2, 1)
    assert len(everything["counts"]) == 8
    assert (await api.get("/counts?queue=mail"))["counts"]["failed"] == 0


async def test_a_queue_named_like_a_json_value_is_a_name(api: Api) -> None:
    await api.enqueue("a", queue="null")
    await api.enqueue("b", queue="1")
    assert (await api.get("/counts?queue=null"))["counts"]["pending"] == 1
    assert (await api.get("/jobs?queue=1"))["jobs"][0]["id"] == "b"
