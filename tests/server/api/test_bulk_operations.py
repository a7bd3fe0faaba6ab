"""Bulk operations over the API."""

from __future__ import annotations

from tests.server.conftest import Api
from tests.waiting import wait_until


async def test_a_preview_counts_and_shows_the_first_jobs(api: Api) -> None:
    await api.fail("a", "b", queue="mail")
    await api.fail("c")
    await api.enqueue("d", queue="mail")
    preview = await api.get("/operations/preview?action=replay&queue=mail")
    assert (preview["count"], preview["complete"]) == (2, True)
    assert [job["id"] for job in preview["first"]] == ["b", "a"]
    assert (await api.get("/operations"))["operations"] == []


async def test_an_operation_runs_in_the_server(api: Api) -> None:
    """It starts at once, and filters without an index are allowed."""
    await api.fail("a", "b")
    runner = api.services.bulk_operations
    await runner.start()
    body = {"min_failures": 0, "rate": 1000}
    started = await api.post("/operations/replay", body)
    assert (started["state"], started["by"], started["origin"]) == ("running", "local", "api")

    async def is_done() -> bool:
        return bool((await api.get(f"/operations/{started['id']}"))["state"] == "done")

    await wait_until(is_done, "the operation is done")
    await runner.stop()
    (listed,) = (await api.get("/operations"))["operations"]
    assert (listed["id"], listed["done"], listed["rate"]) == (started["id"], 2, 1000)
    assert listed["filter"]["min_failures"] == 0
    actions = [record["action"] for record in (await api.get("/audit"))["records"]]
    assert actions == ["operations.end", "operations.start_replay"]


async def test_an_operation_is_started_once_per_idempotency_key(api: Api) -> None:
    headers = {"Idempotency-Key": "k"}
    first = await api.post("/operations/delete", {"all": True}, headers=headers)
    again = await api.post("/operations/delete", {"all": True}, headers=headers)
    assert first == again
    assert len((await api.get("/operations"))["operations"]) == 1


async def test_a_key_that_was_used_for_another_operation_is_a_conflict(api: Api) -> None:
    headers = {"Idempotency-Key": "k"}
    body = {"all": True, "created_from": "2026-03-01T08:00:00.123Z", "rate": 10}
    await api.post("/operations/delete", body, headers=headers)
    await api.post("/operations/delete", body, headers=headers)
    for action, other in (("cancel", body), ("delete", {"queue": "mail"})):
        path = f"/api/v1/operations/{action}"
        response = await api.client.post(path, json=other, headers=headers)
        assert (response.status_code, response.json()["type"]) == (
            409,
            "urn:nimburion:problem:operation-conflict",
        )
    assert len((await api.get("/operations"))["operations"]) == 1


async def test_an_operation_is_cancelled(api: Api) -> None:
    started = await api.post("/operations/cancel", {"state": ["pending"], "limit": 5})
    cancelled = await api.post(f"/operations/{started['id']}/cancel")
    assert (cancelled["state"], cancelled["limit"]) == ("cancelled", 5)
    response = await api.client.post("/api/v1/operations/none/cancel")
    assert (response.status_code, response.json()["type"]) == (
        404,
        "urn:nimburion:problem:operation-not-found",
    )


async def test_the_jobs_must_be_selected_and_fit_the_action(api: Api) -> None:
    for body in ({}, {"all": True, "ids": ["a"]}, {"state": ["pending"]}):
        response = await api.client.post("/api/v1/operations/replay", json=body)
        assert response.status_code == 422, body


async def test_a_preview_without_a_filter_counts_all_that_the_action_can_change(api: Api) -> None:
    await api.fail("a", "b")
    await api.enqueue("c")
    assert (await api.get("/operations/preview?action=replay"))["count"] == 2
