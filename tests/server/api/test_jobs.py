"""Jobs over the API."""

from __future__ import annotations

from nimburion.core.job import NewJob
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
    ):
        assert [job["id"] for job in (await api.get(f"/jobs?{query}"))["jobs"]] == expected


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
    assert (await api.processor.backend.get("a")).payload == text.encode()


async def test_a_payload_that_is_no_json_is_shown_as_base64(api: Api) -> None:
    await api.processor.backend.enqueue([NewJob("a", "send", "default", b"\xff{")])
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
    }
    assert await api.post("/jobs", body) == {"id": "a"}
    assert (await api.post("/jobs", {"name": "send", "at": "2999-01-01T00:00:00+01:00"}))["id"]
    job = await api.get("/jobs/a")
    assert (job["priority"], job["unique_key"], job["tenant"]) == (7, "ann", "acme")
    assert await api.processor.drain() == 1
    contents = await api.get("/jobs/a/contents")
    assert (contents["result"], contents["headers"]) == ("ann ", {"source": "test"})


async def test_a_repeated_enqueue_makes_one_job(api: Api) -> None:
    body = {"name": "send", "payload": {"to": "ann"}}
    key = {"Idempotency-Key": '"order 17"'}
    response = await api.client.post("/api/v1/jobs", json=body, headers=key)
    assert response.status_code == 400  # a space is no visible character
    key = {"Idempotency-Key": '"order-17"'}
    first = await api.post("/jobs", body, headers=key)
    assert await api.post("/jobs", body, headers=key) == first
    await api.post("/jobs", {**body, "id": "own"})
    await api.post("/jobs", {**body, "id": "own"})
    assert (await api.get("/counts"))["counts"]["pending"] == 2
    other = {"name": "send", "payload": {"to": "bob"}}
    response = await api.client.post("/api/v1/jobs", json=other, headers=key)
    assert (response.status_code, response.json()["title"]) == (409, "Job conflict")


async def test_a_unique_key_that_is_held_is_a_conflict(api: Api) -> None:
    await api.post("/jobs", {"name": "send", "id": "a", "unique_key": "k"})
    body = {"name": "send", "id": "b", "unique_key": "k"}
    assert (await api.client.post("/api/v1/jobs", json=body)).status_code == 409
    assert await api.post("/jobs", {**body, "on_duplicate": "existing"}) == {"id": "a"}


async def test_a_job_is_cancelled(api: Api) -> None:
    await api.enqueue("a")
    assert await api.post("/jobs/a/cancel") == {"id": "a", "outcome": "cancelled"}
    assert await api.post("/jobs/a/cancel") == {"id": "a", "outcome": "finished"}


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
