"""Schedules over the API."""

from __future__ import annotations

import pytest

from tests.server.conftest import Api

DAILY = {"name": "daily", "when": "0 2 * * *", "job": "send", "payload": {"to": "ann"}}


async def test_a_schedule_from_the_first_to_the_last_request(api: Api) -> None:
    added = await api.post("/schedules", {**DAILY, "timezone": "Europe/Rome", "overlap": "skip"})
    assert (added["condition"], added["timezone"], added["overlap"]) == (
        "active",
        "Europe/Rome",
        "skip",
    )
    assert (await api.post("/schedules/daily/pause"))["done"] == "paused"
    assert (await api.get("/schedules/daily"))["condition"] == "paused"
    assert (await api.post("/schedules/daily/resume"))["done"] == "resumed"
    job = await api.post("/schedules/daily/run")
    history = await api.get("/schedules/daily/history")
    assert [record["id"] for record in history["jobs"]] == [job["id"]]
    assert (await api.delete("/schedules/daily"))["done"] == "deleted"
    assert (await api.get("/schedules"))["schedules"] == []


async def test_schedules_are_listed_in_pages(api: Api) -> None:
    for name in ("b", "a", "c"):
        await api.post("/schedules", {**DAILY, "name": name})
    first = await api.get("/schedules?limit=2&ticks=1")
    second = await api.get("/schedules", params={"limit": 2, "after": first["next"]})
    assert [one["name"] for one in first["schedules"] + second["schedules"]] == ["a", "b", "c"]
    assert (first["next"], second["next"]) == ("b", None)
    assert (
        len(first["schedules"][0]["next_ticks"]),
        len(second["schedules"][0]["next_ticks"]),
    ) == (
        1,
        5,
    )


async def test_a_repeated_run_with_a_key_makes_one_job(api: Api) -> None:
    await api.post("/schedules", DAILY)
    await api.post("/schedules", {**DAILY, "name": "other"})
    key = {"Idempotency-Key": "1"}
    first = await api.post("/schedules/daily/run", headers=key)
    assert await api.post("/schedules/daily/run", headers=key) == first
    assert await api.post("/schedules/other/run", headers=key) != first
    assert (await api.get("/counts"))["counts"]["pending"] == 2


@pytest.mark.parametrize(
    "change",
    [
        {"when": "* 25 * * *"},
        {"when": "@at 2001-01-01T00:00Z"},
        {"timezone": "Europe/Roma"},
        {"payload": []},
        {"name": "a b"},
        {"overlap": "perhaps"},
    ],
    ids=str,
)
async def test_a_wrong_schedule_is_not_added(api: Api, change: dict[str, object]) -> None:
    response = await api.client.post("/api/v1/schedules", json={**DAILY, **change})
    assert response.status_code == 422
    assert (await api.get("/schedules"))["schedules"] == []


async def test_an_expression_is_explained(api: Api) -> None:
    report = await api.get("/ticks", params={"when": "0 2 * * *", "count": 3})
    assert (len(report["ticks"]), report["timezone"]) == (3, "UTC")
    assert report["ticks"][1] - report["ticks"][0] == 86_400
    assert report["explanation"]
