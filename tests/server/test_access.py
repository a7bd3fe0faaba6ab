"""Every route checks the right of the caller, and no other site can use the server."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from nimburion.core.access_rights import RIGHTS
from nimburion.core.audit import list_audit
from nimburion.core.bulk_operations import (
    BulkAction,
    NewBulkOperation,
    list_bulk_operations,
    start_bulk_operation,
)
from nimburion.core.flows import NewFlow
from nimburion.core.limits import LimitChange
from nimburion.core.schedules import list_schedules
from nimburion.core.session import Session
from nimburion.server.access import SAFE_METHODS, SECURITY_HEADERS, ProtectedEndpoint
from nimburion.server.api.operation import Operation
from nimburion.server.openapi import API_PATH
from nimburion.server.routes import OPEN_PATHS, OPERATIONS
from tests.server.conftest import OWN, Api, MakeApi

TOKENS = {right: f"{right}-0123456789abcdef" for right in RIGHTS}
UNSAFE = [operation for operation in OPERATIONS if operation.method not in SAFE_METHODS]
SECRET = "hush"
BODIES: dict[str, object] = {
    "pause_queue": {"reason": "deploy", "for": 60},
    "pause_all_queues": {"reason": "deploy", "for": 60},
    "change_limit": {"concurrency": 2, "reason": "sale"},
    "enqueue_job": {"name": "send", "payload": {"secret": SECRET}, "id": "new"},
    "cancel_jobs": {"ids": ["a", "b"]},
    "send_signal": {"name": "paid", "payload": {"secret": SECRET}, "reason": "by phone"},
    "run_jobs_now": {"ids": ["later", "b"]},
    "replay_dead_letters": {"all": True},
    "purge_dead_letters": {"queue": "other"},
    "replay_edited_dead_letter": {"payload": {"to": "b", "secret": SECRET}},
    "set_tenant_weight": {"tenant": "acme", "weight": 2},
    "command_worker": {"command": "quiet"},
    "replay_flow": {"reason": "the disk has room again"},
    "start_replay": {"id": "new", "all": True, "rate": 10},
    "start_run_now": {"id": "new", "queue": "default"},
    "start_cancel": {"id": "new", "queue": "default"},
    "start_delete": {"id": "new", "ids": ["c"]},
    "add_schedule": {"name": "s", "when": "@daily", "job": "send", "payload": {"secret": SECRET}},
}
"""A body for each operation that needs one."""
RECORDS: dict[str, tuple[str, str, int | None]] = {
    "pause_queue": ("queue.pause", "default", None),
    "resume_queue": ("queue.resume", "default", None),
    "pause_all_queues": ("queue.pause_all", "", 1),
    "resume_all_queues": ("queue.resume_all", "", 1),
    "change_limit": ("limit.change", "job:send", None),
    "reset_limit": ("limit.reset", "job:send", None),
    "set_tenant_weight": ("tenant.weight", "acme", None),
    "enqueue_job": ("jobs.enqueue", "new", 1),
    "cancel_jobs": ("jobs.cancel", "", 2),
    "cancel_job": ("jobs.cancel", "a", 1),
    "run_jobs_now": ("jobs.run_now", "", 1),
    "show_stack": ("jobs.stack", "a", None),
    "send_signal": ("jobs.signal", "a", 1),
    "run_job_now": ("jobs.run_now", "a", 0),
    "replay_dead_letters": ("dead.replay", "", 1),
    "purge_dead_letters": ("dead.purge", "", 1),
    "replay_edited_dead_letter": ("dead.replay_edited", "c", 1),
    "command_worker": ("worker.quiet", "a", 1),
    "replay_flow": ("flows.replay", "flow", 0),
    "close_flow": ("flows.close", "flow", None),
    "cancel_flow": ("flows.cancel", "flow", 0),
    "start_replay": ("operations.start_replay", "new", None),
    "start_run_now": ("operations.start_run_now", "new", None),
    "start_cancel": ("operations.start_cancel", "new", None),
    "start_delete": ("operations.start_delete", "new", None),
    "cancel_operation": ("operations.cancel", "a", None),
    "add_schedule": ("schedule.add", "s", None),
    "delete_schedule": ("schedule.remove", "daily", None),
    "pause_schedule": ("schedule.pause", "daily", None),
    "resume_schedule": ("schedule.resume", "daily", None),
    "run_schedule": ("schedule.run", "daily", None),
}
"""The action, target and count of the audit record of each operation that changes something."""
BROKEN_ORIGIN = "http:" + "//["


@pytest.fixture
async def guarded(make_api: MakeApi, monkeypatch: pytest.MonkeyPatch) -> Api:
    """A server with one token for each right, two jobs and a dead letter."""
    for right, token in TOKENS.items():
        monkeypatch.setenv(f"TOKEN_{right.upper()}", token)
    tokens = [
        {"name": right, "rights": [right], "variable": f"TOKEN_{right.upper()}"} for right in RIGHTS
    ]
    made: Api = await make_api(tokens=tokens, host="0.0.0.0")
    await made.enqueue("a", "b")
    await made.enqueue("later", after=3600.0)
    await made.fail("c", queue="other")
    await made.services.schedules.add("daily", "@daily", "send")
    await made.processor.backend.maintenance.pause_queue("paused", paused=True)
    await made.processor.backend.maintenance.change_limit(
        LimitChange(name="job:send", concurrency=9)
    )
    flow = NewFlow(id="flow", name="import", members=1)
    await made.processor.backend.producing.enqueue([], [flow])
    running = NewBulkOperation(id="a", action=BulkAction.REPLAY)
    await start_bulk_operation(made.processor.backend, running)
    worker = Session(id="a", queues=("default",), names=("send",))
    await made.processor.backend.consuming.open_session(worker)
    return made


def bearer(right: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKENS[right]}"}


def make_url(path: str) -> str:
    """Return a path of the API with its parameters filled in."""
    job_id = "c" if path.startswith("/dead-letters") else "a"
    values = {"queue": "default", "id": job_id, "name": "daily", "limit": "job:send"}
    values["flow"] = "flow"
    return API_PATH + re.sub(r"\{(\w+)\}", lambda found: values[found[1]], path)


async def read_everything(api: Api) -> object:
    """Return all that the backend holds."""
    backend = api.processor.backend
    return (
        (await backend.reads.list_jobs(payloads=True)).jobs,
        [(queue.name, queue.paused) for queue in await backend.reads.list_queues()],
        await list_schedules(backend),
        [(session.id, session.command) for session in await backend.reads.list_sessions()],
        (await list_bulk_operations(backend)).operations,
        (await list_audit(backend)).records,
    )


async def test_each_route_is_protected(api: Api) -> None:
    for route in api.app.routes:
        assert isinstance(route, Route)
        if route.path not in OPEN_PATHS:
            assert isinstance(route.endpoint, ProtectedEndpoint), route.path
            assert route.endpoint.right in RIGHTS


async def test_no_route_has_the_wrong_right() -> None:
    for operation in OPERATIONS:
        if operation.method in SAFE_METHODS:
            assert operation.right in {"read", "payloads"}, operation.path
        else:
            assert operation.right in {"operate", "admin", "stacks"}, operation.path


@pytest.mark.parametrize("operation", UNSAFE, ids=lambda operation: operation.name)
async def test_each_change_is_recorded_with_the_name_of_the_token(
    guarded: Api, operation: object
) -> None:
    found = next(one for one in UNSAFE if one is operation)
    body = BODIES.get(found.name, {})
    headers = bearer(found.right)
    response = await guarded.client.request(
        found.method, make_url(found.path), json=body, headers=headers
    )
    assert response.status_code in {200, 201}, response.text
    record = (await list_audit(guarded.processor.backend)).records[0]
    assert (record.action, record.target, record.changed) == RECORDS[found.name]
    assert (record.by, record.origin, record.outcome) == (found.right, "api", "done")
    assert SECRET not in str(record)


async def test_a_request_that_only_reads_is_not_recorded(guarded: Api) -> None:
    before = await list_audit(guarded.processor.backend)
    for operation in OPERATIONS:
        if operation.method in SAFE_METHODS:
            await guarded.client.get(make_url(operation.path), headers=bearer(operation.right))
            assert operation.action is None, operation.path
    assert await list_audit(guarded.processor.backend) == before


async def test_a_change_that_fails_is_recorded_too(guarded: Api) -> None:
    response = await guarded.client.post(
        "/api/v1/workers/none/command", json={"command": "stop"}, headers=bearer("operate")
    )
    assert response.status_code == 404
    record = (await list_audit(guarded.processor.backend)).records[0]
    assert (record.action, record.target, record.outcome) == ("worker.stop", "none", "failed")


async def test_a_record_holds_no_control_characters(guarded: Api) -> None:
    body = {"name": "s", "when": "@daily\0\n", "job": "send"}
    response = await guarded.client.post("/api/v1/schedules", json=body, headers=bearer("admin"))
    assert response.status_code == 422
    record = (await list_audit(guarded.processor.backend)).records[0]
    assert record.details["when"] == r"@daily\x00\n"


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
async def test_a_route_answers_only_with_its_right(guarded: Api, operation: object) -> None:
    found = next(one for one in OPERATIONS if one is operation)
    before = await read_everything(guarded)
    for right in RIGHTS:
        if right != found.right:
            response = await request_operation(guarded, found, bearer(right))
            assert response.status_code == 403, right
            assert response.json()["type"] == "urn:nimburion:problem:missing-right"
            assert await read_everything(guarded) == before, right
    response = await request_operation(guarded, found, bearer(found.right))
    assert response.status_code not in {401, 403, 421}, response.text


NO_TOKEN: tuple[dict[str, str], ...] = (
    {},
    {"Authorization": "Bearer wrong-0123456789abcdef"},
    {"Authorization": f"Basic {TOKENS['admin']}"},
    {"Authorization": TOKENS["admin"]},
    {"Authorization": "Bearer "},
    {"Authorization": "Bearer \xff"},
    {"Cookie": f"Authorization=Bearer {TOKENS['admin']}"},
)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
async def test_without_a_token_nothing_is_read_or_changed(guarded: Api, operation: object) -> None:
    found = next(one for one in OPERATIONS if one is operation)
    before = await read_everything(guarded)
    for headers in NO_TOKEN:
        response = await request_operation(guarded, found, headers)
        assert response.status_code == 401, headers
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert SECRET not in response.text
        assert await read_everything(guarded) == before, headers


async def request_operation(
    api: Api, operation: Operation[Any, Any], headers: dict[str, str]
) -> httpx.Response:
    """Send a request for the operation, with headers that need not be ASCII."""
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    return await api.client.request(
        operation.method, make_url(operation.path), content=b"{}", headers=encoded
    )


async def test_two_tokens_in_one_request_are_no_token(guarded: Api) -> None:
    headers = [("Authorization", f"Bearer {TOKENS[right]}") for right in ("read", "admin")]
    response = await guarded.client.get("/api/v1/queues", headers=headers)
    assert response.status_code == 401


@pytest.mark.parametrize("right", ["read", "operate", "admin"])
async def test_the_data_of_jobs_is_hidden_without_its_right(guarded: Api, right: str) -> None:
    for operation in OPERATIONS:
        if operation.right == right:
            response = await guarded.client.request(
                operation.method, make_url(operation.path), json={}, headers=bearer(right)
            )
            assert SECRET not in response.text, operation.path


async def test_the_data_of_jobs_is_shown_with_its_right(guarded: Api) -> None:
    for job_id in ("a", "c"):
        response = await guarded.client.get(
            f"/api/v1/jobs/{job_id}/contents", headers=bearer("payloads")
        )
        assert SECRET in response.text


OTHER_SITES: tuple[dict[str, str], ...] = (
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "none"},
    {"Sec-Fetch-Site": "cross-site", "Origin": OWN},
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:9999"},
    {"Origin": BROKEN_ORIGIN},
    {"Content-Type": "text/plain"},
    {"Content-Type": "application/x-www-form-urlencoded"},
)


@pytest.mark.parametrize("operation", UNSAFE, ids=lambda operation: operation.name)
async def test_a_page_of_another_site_changes_nothing(api: Api, operation: object) -> None:
    found = next(one for one in UNSAFE if one is operation)
    await api.enqueue("a")
    before = await read_everything(api)
    for headers in OTHER_SITES:
        response = await request_operation(api, found, headers)
        assert response.status_code == 403, headers
        assert response.json()["type"] == "urn:nimburion:problem:cross-site"
        assert await read_everything(api) == before, headers


@pytest.mark.parametrize(
    "headers",
    [{"Sec-Fetch-Site": "same-origin"}, {"Origin": OWN}, {}],
    ids=str,
)
async def test_an_own_page_and_a_program_may_change_something(
    api: Api, headers: dict[str, str]
) -> None:
    response = await api.client.post("/api/v1/queues/mail/pause", headers=headers)
    assert response.json() == {"queue": "mail", "paused": True, "until": None}


async def test_a_token_does_not_make_another_site_trustworthy(guarded: Api) -> None:
    headers = {**bearer("operate"), "Sec-Fetch-Site": "cross-site"}
    response = await guarded.client.post("/api/v1/queues/mail/pause", headers=headers)
    assert response.status_code == 403


async def test_a_program_without_its_token_learns_that_it_needs_one(guarded: Api) -> None:
    request = guarded.client.build_request("POST", "/api/v1/queues/mail/pause")
    del request.headers["Content-Type"]
    assert (await guarded.client.send(request)).status_code == 401


async def test_a_program_with_a_token_needs_no_content_type(guarded: Api) -> None:
    request = guarded.client.build_request(
        "POST", "/api/v1/queues/mail/pause", headers=bearer("operate")
    )
    del request.headers["Content-Type"]
    assert (await guarded.client.send(request)).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "", "[::1", "10.0.0.1"],
)
async def test_another_host_name_is_refused(api: Api, host: str) -> None:
    response = await api.client.get("/api/v1/queues", headers={"Host": host})
    assert response.status_code == 421
    assert (await api.client.get("/health/live", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize("host", ["127.0.0.1:8420", "localhost", "LOCALHOST:1", "[::1]:8420"])
async def test_the_names_of_loopback_are_accepted(api: Api, host: str) -> None:
    response = await api.client.get("/api/v1/queues", headers={"Host": host})
    assert response.status_code == 200


async def test_other_hosts_can_be_allowed(make_api: MakeApi) -> None:
    api = await make_api(allowed_hosts="jobs.example.com, tools:8420")
    statuses = [
        (await api.client.get("/api/v1/queues", headers={"Host": host})).status_code
        for host in ("jobs.example.com", "Jobs.example.com:80", "tools:8420", "tools:1")
    ]
    assert statuses == [200, 200, 200, 421]


async def test_each_answer_has_the_security_headers(api: Api) -> None:
    for path in ("/api/v1/queues", "/api/v1/nothing", "/api/v1/jobs/none"):
        response = await api.client.get(path)
        assert {name: response.headers[name] for name in SECURITY_HEADERS} == SECURITY_HEADERS
    preflight = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    response = await api.client.options("/api/v1/jobs", headers=preflight)
    assert response.status_code == 405
    assert not [name for name in response.headers if name.startswith("access-control")]


async def test_a_defect_is_reported_without_its_text(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(**_: object) -> object:
        raise ZeroDivisionError("the secret of the defect")

    monkeypatch.setattr(api.processor.backend.reads, "list_queues", fail)
    response: httpx.Response = await api.client.get("/api/v1/queues")
    assert response.status_code == 500
    assert response.json()["type"] == "urn:nimburion:problem:internal-error"
    assert "secret" not in response.text
    assert "the secret of the defect" in caplog.text
