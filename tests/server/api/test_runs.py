"""Durable runs in the API: their timelines, and signals to them."""

from __future__ import annotations

import pytest

from nimburion.core.audit import list_audit
from nimburion.core.runs import NewSignal
from tests.server.conftest import Api, MakeApi
from tests.server.onboarding import start


async def test_a_run_with_its_values(api: Api) -> None:
    await start(api)
    run = await api.get("/jobs/r/run")
    assert (run["state"], run["complete"], run["cancelling"]) == ("suspended", True, False)
    step, wait = run["entries"]
    assert (step["kind"], step["key"], step["state"]) == ("step", "create_account", "done")
    assert (step["value"], step["value_size"]) == ({"email": "ann@example.com"}, 27)
    assert run["waits"] == [{"kind": "wait", "key": "confirmed", "until": wait["until"]}]
    assert "the signal 'confirmed'" in run["why"]


async def test_values_and_payloads_need_the_right(
    make_api: MakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN_READ", "read-0123456789abcdef")
    token = {"name": "me", "rights": ["read"], "variable": "TOKEN_READ"}
    api = await make_api(tokens=[token], host="0.0.0.0")
    await start(api)
    await api.services.backend.producing.send_signals([NewSignal("r", "other", "1", b'"hush"')])
    headers = {"Authorization": "Bearer read-0123456789abcdef"}
    run = await api.get("/jobs/r/run", headers=headers)
    assert (run["entries"][0]["value"], run["entries"][0]["value_size"]) == (None, 27)
    (signal,) = run["signals"]
    assert (signal["name"], signal["payload"], signal["size"]) == ("other", None, 6)
    refused = await api.client.post(
        "/api/v1/jobs/r/signals", json={"name": "confirmed"}, headers=headers
    )
    assert refused.status_code == 403


async def test_a_part_of_a_run(api: Api) -> None:
    await start(api)
    run = await api.get("/jobs/r/run?limit=1")
    assert (run["steps"], run["complete"]) == (1, False)


async def test_a_signal_is_sent_once_and_recorded(api: Api) -> None:
    await start(api)
    body = {"name": "confirmed", "payload": "ann", "id": "s1", "reason": "on the phone"}
    sent = await api.post("/jobs/r/signals", body)
    assert sent == {"job": "r", "id": "s1", "outcome": "stored"}
    assert (await api.post("/jobs/r/signals", body))["outcome"] == "exists"
    (signal,) = (await api.get("/jobs/r/run"))["signals"]
    assert (signal["name"], signal["payload"]) == ("confirmed", "ann")
    records = (await list_audit(api.services.backend, limit=9)).records
    assert [(one.action, one.target, one.changed) for one in records] == [
        ("jobs.signal", "r", 0),
        ("jobs.signal", "r", 1),
    ]
    assert records[0].details == {"signal": "confirmed", "id": "s1", "reason": "on the phone"}
    await api.processor.drain()
    assert (await api.get("/jobs/r"))["state"] == "completed"
    assert (await api.post("/jobs/r/signals", body))["outcome"] == "finished"


async def test_an_idempotency_key_is_the_id(api: Api) -> None:
    await start(api)
    headers = {"Idempotency-Key": "abc"}
    first = await api.post("/jobs/r/signals", {"name": "x"}, headers=headers)
    second = await api.post("/jobs/r/signals", {"name": "x"}, headers=headers)
    assert (first["outcome"], second["outcome"]) == ("stored", "exists")
    assert first["id"] == second["id"]


@pytest.mark.parametrize(
    ("job_id", "body", "status"),
    [
        ("none", {"name": "x"}, 404),
        ("r", {}, 422),
        ("r", {"name": "a/b"}, 422),
        ("r", {"name": "x" * 201}, 422),
        ("r", {"name": "x", "id": "a b"}, 422),
        ("r", {"name": "x", "payload": "y" * 70_000}, 422),
    ],
)
async def test_signals_that_are_refused(
    api: Api, job_id: str, body: dict[str, str], status: int
) -> None:
    await start(api)
    answer = await api.client.post(f"/api/v1/jobs/{job_id}/signals", json=body)
    assert answer.status_code == status


async def test_there_is_no_run_without_a_job(api: Api) -> None:
    assert (await api.client.get("/api/v1/jobs/none/run")).status_code == 404
    await api.enqueue("plain")
    run = await api.get("/jobs/plain/run")
    assert (run["steps"], run["entries"], run["waits"]) == (0, [], [])
