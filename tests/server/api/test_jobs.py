"""Jobs over the API."""

from __future__ import annotations

from typing import Any

import pytest

from nimburion.core.job import NewJob
from nimburion.core.queries import Page
from tests.server.conftest import Api


async def test_jobs_are_listed_in_pages_newest_first(api: Api) -> None:
    await api.enqueue(*"abc")
    first = await api.get("/jobs?limit=2")
    second = await api.get("/jobs", params={"limit": 2, "after": first["next"]})
    ids = [job["id"] for page in (first, second) for job in page["jobs"]]
    assert (ids, second["next"]) == (["c", "b", "a"], None)


async def test_a_cursor_beyond_all_jobs_begins_with_the_newest(api: Api) -> None:
    await api.enqueue("a")
    for after in ("9" * 18, "9" * 19, "9" * 200):
        assert [job["id"] for job in (await api.get(f"/jobs?after={after}"))["jobs"]] == ["a"]


async def test_jobs_are_filtered(api: Api) -> None:
    await api.enqueue("a", queue="mail")
    await api.enqueue("b", name="other")
    await api.fail("c")
    for query, expected in (
        ("state=failed", ["c"]),
        ("state=failed&state=pending", ["c", "b", "a"]),
        ("queue=mail", ["a"]),
        ("name=other", ["b"]),
        ("name=other&queue=mail", []),
        ("reason=permanent", ["c"]),
        ("created_from=2020-01-01T00:00:00Z", ["c", "b", "a"]),
        ("created_to=1577836800", []),
        ("finished_from=2020-01-01T00:00:00Z", ["c"]),
        ("finished_to=2020-01-01T00:00:00Z", []),
        ("min_failures=1", ["c"]),
        ("tenant=acme", []),
        ("correlation_id=r 1", []),
        (f"fingerprint={'0' * 16}", []),
    ):
        assert [job["id"] for job in (await api.get(f"/jobs?{query}"))["jobs"]] == expected


async def test_jobs_are_found_by_tenant_and_correlation_id(api: Api) -> None:
    body = {"name": "send", "id": "a", "tenant": "acme", "correlation_id": "r-1"}
    await api.post("/jobs", body)
    await api.enqueue("b")
    for name in ("tenant", "correlation_id"):
        page = await api.get("/jobs", params={name: body[name]})
        assert [job["id"] for job in page["jobs"]] == ["a"]


async def test_jobs_are_stored_and_found_by_tag(api: Api) -> None:
    await api.post("/jobs", {"name": "send", "id": "a", "tags": ["media", "eu"]})
    await api.enqueue("b")
    (job,) = (await api.get("/jobs?tag=media"))["jobs"]
    assert (job["id"], job["tags"]) == ("a", ["media", "eu"])
    assert (await api.get("/jobs/b"))["tags"] == []


async def test_a_search_stops_at_its_budget_and_continues(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    await api.enqueue(*"abcd")
    original = api.processor.backend.reads.list_jobs

    async def list_jobs(*args: Any, **options: Any) -> Page:
        return await original(*args, **options, budget=3)

    monkeypatch.setattr(api.processor.backend.reads, "list_jobs", list_jobs)
    first = await api.get("/jobs?tenant=acme")
    assert (first["jobs"], first["examined"]) == ([], 3)
    second = await api.get("/jobs", params={"tenant": "acme", "after": first["next"]})
    assert (second["jobs"], second["examined"], second["next"]) == ([], 1, None)


async def test_a_job_is_shown_with_its_attempts(api: Api) -> None:
    await api.fail("a")
    (attempt,) = (await api.get("/jobs/a"))["attempts"]
    assert (attempt["number"], attempt["outcome"]) == (1, "permanent")


async def test_why_a_job_is_not_running(api: Api) -> None:
    await api.enqueue("a")
    await api.fail("b", queue="mail")
    await api.post("/queues/default/pause", {"reason": "deploy"})
    why = await api.get("/jobs/a/why")
    assert [cause["kind"] for cause in why["causes"]] == ["paused", "no_worker"]
    assert why["causes"][0]["text"] == "Queue 'default' is paused by local, reason: deploy."
    assert (why["job"]["id"], why["pause"]["reason"], why["limits"]) == ("a", "deploy", [])
    response = await api.client.get("/api/v1/jobs/b/why")
    assert [cause["kind"] for cause in response.json()["causes"]] == ["dead"]
    assert "hush" not in response.text
    assert (await api.client.get("/api/v1/jobs/none/why")).status_code == 404


async def test_a_job_is_shown_with_its_errors_and_without_its_data(api: Api) -> None:
    await api.fail("a")
    job = await api.get("/jobs/a")
    assert (job["state"], job["reason"], job["error"]["message"]) == (
        "failed",
        "permanent",
        "no good",
    )
    assert job["errors"] == [job["error"]]
    assert "traceback" not in job["error"]
    assert "payload" not in job


async def test_the_payload_is_the_stored_text_itself(api: Api) -> None:
    text = '{ "n": 12345678901234567890.10, "n": 1 }'
    await api.client.post(
        "/api/v1/jobs", content=f'{{"name": "send", "id": "a", "payload": {text}}}'
    )
    response = await api.client.get("/api/v1/jobs/a/contents")
    assert text in response.text
    assert (await api.processor.backend.reads.get_job("a")).payload == text.encode()


async def test_a_payload_that_is_no_json_is_shown_as_base64(api: Api) -> None:
    await api.processor.backend.producing.enqueue([NewJob("a", "send", "default", b"\xff{")])
    contents = await api.get("/jobs/a/contents")
    assert (contents["payload"], contents["payload_base64"]) == (None, "/3s=")


async def test_a_job_is_enqueued_with_its_options_and_runs(api: Api) -> None:
    body = {
        "name": "send",
        "payload": {"to": "ann"},
        "id": "a",
        "queue": "default",
        "priority": 7,
        "after": 0,
        "unique_key": "ann",
        "headers": {"source": "test"},
        "tenant": "acme",
        "max_retries": 1,
        "timeout": 30,
        "expires": 3600,
    }
    assert await api.post("/jobs", body) == {"id": "a", "outcome": "created"}
    assert (await api.post("/jobs", {"name": "send", "at": "2999-01-01T00:00:00+01:00"}))["id"]
    job = await api.get("/jobs/a")
    assert (job["priority"], job["tenant"], job["expires"]) == (7, "acme", 3600)
    assert await api.processor.drain() == 1
    contents = await api.get("/jobs/a/contents")
    assert (contents["result"], contents["headers"]) == ("ann ", {"source": "test"})
    assert contents["unique_key"] == "ann"


async def test_a_repeated_enqueue_makes_one_job(api: Api) -> None:
    body = {"name": "send", "payload": {"to": "ann"}}
    key = {"Idempotency-Key": '"order 17"'}
    response = await api.client.post("/api/v1/jobs", json=body, headers=key)
    assert response.status_code == 400  # a space is no visible character
    key = {"Idempotency-Key": '"order-17"'}
    first = await api.post("/jobs", body, headers=key)
    assert (first["outcome"], await api.post("/jobs", body, headers=key)) == (
        "created",
        {"id": first["id"], "outcome": "existing"},
    )
    await api.post("/jobs", {**body, "id": "own"})
    await api.post("/jobs", {**body, "id": "own"})
    assert (await api.get("/counts"))["counts"]["pending"] == 2
    other = {"name": "send", "payload": {"to": "bob"}}
    response = await api.client.post("/api/v1/jobs", json=other, headers=key)
    assert (response.status_code, response.json()["title"]) == (409, "Job conflict")


async def test_keys_tenants_and_correlation_ids_are_any_text(api: Api) -> None:
    text = "Müller & Söhne: " + "🚂" * 496
    body = {"name": "send", "unique_key": text, "tenant": text, "correlation_id": text}
    stored = await api.post("/jobs", body)
    job = await api.get(f"/jobs/{stored['id']}")
    contents = await api.get(f"/jobs/{stored['id']}/contents")
    assert (contents["unique_key"], job["tenant"], job["correlation_id"]) == (text,) * 3


@pytest.mark.parametrize("option", ["unique_key", "tenant", "correlation_id"])
@pytest.mark.parametrize("value", ["", "a\nb", "x" * 513], ids=ascii)
async def test_a_text_that_no_job_can_have_is_refused(api: Api, option: str, value: str) -> None:
    response = await api.client.post("/api/v1/jobs", json={"name": "send", option: value})
    assert response.status_code == 422
    assert option in response.text


async def test_a_unique_key_that_is_held_is_a_conflict(api: Api) -> None:
    await api.post("/jobs", {"name": "send", "id": "a", "unique_key": "k"})
    body = {"name": "send", "id": "b", "unique_key": "k"}
    assert (await api.client.post("/api/v1/jobs", json=body)).status_code == 409
    assert await api.post("/jobs", {**body, "unique": {"on_duplicate": "existing"}}) == {
        "id": "a",
        "outcome": "existing",
    }
    unique = {"debounce": 5, "max_wait": 60}
    replacing = {**body, "unique": unique, "payload": {"to": "bob"}}
    assert await api.post("/jobs", replacing) == {"id": "a", "outcome": "replaced"}
    job = await api.get("/jobs/a")
    assert (job["state"], job["unique_mode"]) == (
        "scheduled",
        "replace, while pending or scheduled or retrying, due at most 60 s after the first enqueue",
    )


async def test_a_job_is_cancelled(api: Api) -> None:
    await api.enqueue("a")
    assert await api.post("/jobs/a/cancel") == {"id": "a", "outcome": "cancelled"}
    assert await api.post("/jobs/a/cancel") == {"id": "a", "outcome": "finished"}


async def test_waiting_jobs_run_now(api: Api) -> None:
    await api.enqueue("a", "b", after=3600.0)
    await api.enqueue("due")
    assert await api.post("/jobs/a/run-now") == {"id": "a", "outcome": "due"}
    assert await api.post("/jobs/a/run-now") == {"id": "a", "outcome": "unchanged"}
    assert (await api.get("/jobs/a"))["state"] == "pending"
    report = await api.post("/jobs/run-now", {"ids": ["b", "due", "none", "b"]})
    assert report["jobs"] == [
        {"id": "b", "outcome": "due"},
        {"id": "due", "outcome": "unchanged"},
        {"id": "none", "outcome": "not found"},
    ]
    missing = await api.client.post("/api/v1/jobs/none/run-now")
    assert missing.status_code == 404
    counts = [record["changed"] for record in (await api.get("/audit"))["records"]]
    assert counts == [0, 1, 0, 1]


async def test_several_jobs_are_cancelled_by_id_or_filter(api: Api) -> None:
    await api.enqueue(*"abc")
    await api.enqueue("d", queue="mail")
    report = await api.post("/jobs/cancel", {"ids": ["a", "none", "a"]})
    assert report["jobs"] == [
        {"id": "a", "outcome": "cancelled"},
        {"id": "none", "outcome": "not found"},
    ]
    report = await api.post("/jobs/cancel", {"queue": "default", "limit": 1})
    assert [job["id"] for job in report["jobs"]] == ["c"]
    report = await api.post(
        "/jobs/cancel", {"queue": "default", "limit": 1, "after": report["next"]}
    )
    assert [job["id"] for job in report["jobs"]] == ["b"]
    report = await api.post("/jobs/cancel", {"all": True})
    assert [job["id"] for job in report["jobs"]] == ["d"]


async def test_the_jobs_to_cancel_must_be_selected_in_one_way(api: Api) -> None:
    for body in ({}, {"ids": ["a"], "all": True}, {"ids": ["a"], "queue": "mail"}):
        response = await api.client.post("/api/v1/jobs/cancel", json=body)
        assert response.status_code == 422
