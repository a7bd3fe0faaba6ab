"""Every error is a problem document."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from nimburion.core.errors import BackendFull, BackendUnavailable
from nimburion.server import access
from nimburion.server.problems import PROBLEM_TYPE, ProblemDocument
from tests.server.conftest import Api, MakeApi

JSON = {"Content-Type": "application/json"}


async def find_problem(
    api: Api, method: str, path: str, content: bytes = b"", headers: dict[str, str] = JSON
) -> tuple[int, str, ProblemDocument]:
    """Return status, code and document of a request that fails."""
    response = await api.client.request(method, path, content=content, headers=headers)
    assert response.headers["Content-Type"] == PROBLEM_TYPE
    document = msgspec.json.decode(response.content, type=ProblemDocument)
    assert document.status == response.status_code
    assert document.title
    assert document.detail
    return response.status_code, document.type.removeprefix("urn:nimburion:problem:"), document


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/nothing", (404, "not-found")),
        ("GET", "/api/v1/queues/", (404, "not-found")),
        ("GET", "/api/v1/jobs/a/b/c", (404, "not-found")),
        ("GET", "/api/v1/jobs/none", (404, "job-not-found")),
        ("POST", "/api/v1/jobs/none/cancel", (404, "job-not-found")),
        ("POST", "/api/v1/schedules/none/pause", (404, "schedule-not-found")),
        ("DELETE", "/api/v1/schedules/none", (404, "schedule-not-found")),
        ("GET", "/api/v1/jobs/%00", (422, "invalid-parameter")),
        ("GET", "/api/v1/queues?limit=x", (422, "invalid-parameter")),
        ("GET", "/api/v1/queues?limit=1001", (422, "invalid-parameter")),
        ("GET", "/api/v1/queues?limit=1&limit=2", (422, "invalid-parameter")),
        ("GET", "/api/v1/jobs?queue=%C3%A4", (422, "invalid-parameter")),
        ("GET", "/api/v1/dead-letters?reason=null", (422, "invalid-parameter")),
        ("GET", "/api/v1/jobs?after=x", (422, "invalid-parameter")),
        ("GET", "/api/v1/jobs?finished_to=253402300800", (422, "invalid-parameter")),
        ("GET", "/api/v1/ticks?when=61+*+*+*+*", (422, "invalid-request")),
        ("GET", "/api/v1/ticks?when=0+0+*+1--100000000+*", (422, "invalid-request")),
        ("GET", "/api/v1/ticks?when=@daily&timezone=Europe/Roma", (422, "invalid-request")),
        ("GET", "/api/v1/ticks", (422, "invalid-parameter")),
    ],
)
async def test_a_wrong_request(api: Api, method: str, path: str, expected: tuple[int, str]) -> None:
    assert (await find_problem(api, method, path))[:2] == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", (422, "invalid-body")),
        (b"{", (400, "malformed-body")),
        (b"\xff", (400, "malformed-body")),
        (b"[" * 100_000, (422, "invalid-body")),
        (b'{"name": ' + b"[" * 100_000, (422, "invalid-body")),
        (b'{"payload": ' + b"[" * 100_000, (400, "malformed-body")),
        (b"[]", (422, "invalid-body")),
        (b'{"name": "send", "queu": "a"}', (422, "invalid-body")),
        (b'{"name": "send", "payload": []}', (422, "invalid-request")),
        (b'{"name": "send", "payload": {"a": NaN}}', (400, "malformed-body")),
        (b'{"name": "send", "at": "2030-01-01T00:00:00"}', (422, "invalid-body")),
        (b'{"name": "send", "at": "2030-01-01T00:00:00Z", "after": 1}', (422, "invalid-request")),
        (b'{"name": "send", "after": 1e300}', (422, "invalid-body")),
        (b'{"name": "send", "unique_key": "k", "unique_for": 1}', (422, "invalid-body")),
        (b'{"name": "send", "unique": {"for": 1}}', (422, "invalid-request")),
        (b'{"name": "send", "unique": {"on_duplicate": "existing"}}', (422, "invalid-request")),
        (b'{"name": "send", "unique_key": "k", "unique": {"fore": 1}}', (422, "invalid-body")),
        (b'{"name": "send", "unique_key": "k", "unique": {"for": 0}}', (422, "invalid-body")),
        (
            b'{"name": "send", "unique_key": "k", "unique": {"for": 1, "throttle": 1}}',
            (422, "invalid-request"),
        ),
        (
            b'{"name": "send", "unique_key": "k", "unique": {"max_wait": 1}}',
            (422, "invalid-request"),
        ),
        (
            b'{"name": "send", "unique_key": "k", "after": 1, "unique": {"debounce": 1}}',
            (422, "invalid-request"),
        ),
        (
            b'{"name": "send", "payload": ' + b'{"a":' * 80 + b"1" + b"}" * 81,
            (422, "invalid-request"),
        ),
    ],
)
async def test_a_wrong_body(api: Api, content: bytes, expected: tuple[int, str]) -> None:
    assert (await find_problem(api, "POST", "/api/v1/jobs", content))[:2] == expected
    assert (await api.get("/jobs"))["jobs"] == []


async def test_a_whole_number_may_have_a_decimal_point(api: Api) -> None:
    content = b'{"name": "send", "payload": {"to": 1.0}, "priority": 7.0}'
    response = await api.client.post("/api/v1/jobs", content=content)
    job_id = response.json()["id"]
    assert (await api.get(f"/jobs/{job_id}"))["priority"] == 7
    assert (await api.processor.backend.reads.get_job(job_id)).payload == b'{"to": 1.0}'


async def test_the_problem_names_the_part_that_is_wrong(api: Api) -> None:
    *_, document = await find_problem(api, "GET", "/api/v1/jobs?limt=3")
    assert document.errors[0].parameter == "limt"
    assert "did you mean 'limit'" in document.detail
    *_, document = await find_problem(api, "POST", "/api/v1/jobs/cancel", b'{"ids": ["a", "b c"]}')
    assert document.errors[0].pointer == "#/ids/1"


async def test_another_method_names_all_methods_of_the_path(api: Api) -> None:
    response = await api.client.put("/api/v1/jobs")
    assert response.status_code == 405
    assert response.headers["Allow"] == "GET, HEAD, POST"
    assert (await find_problem(api, "PUT", "/api/v1/jobs"))[:2] == (405, "method-not-allowed")


async def test_a_path_that_another_one_matches_too_has_methods_of_its_own(api: Api) -> None:
    response = await api.client.put("/api/v1/queues/pause")
    assert response.headers["Allow"] == "POST"


async def test_a_body_that_is_too_large(make_api: MakeApi) -> None:
    api = await make_api(max_body=1024)
    body = b'{"name": "send", "payload": {"a": "' + b"x" * 1024 + b'"}}'
    assert (await find_problem(api, "POST", "/api/v1/jobs", body))[:2] == (413, "body-too-large")

    async def send_in_pieces() -> object:
        for start in range(0, len(body), 100):
            yield body[start : start + 100]

    response = await api.client.post("/api/v1/jobs", content=send_in_pieces())
    assert response.status_code == 413
    assert response.headers["Connection"] == "close"


async def test_a_body_of_another_type(api: Api) -> None:
    headers = {"Content-Type": "text/plain", "Sec-Fetch-Site": "same-origin"}
    found = await find_problem(api, "POST", "/api/v1/jobs", b"{}", headers)
    assert found[:2] == (415, "unsupported-media-type")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (BackendUnavailable("no reply"), (503, "backend-unavailable")),
        (BackendFull("no room"), (507, "backend-full")),
    ],
)
async def test_an_error_of_the_backend(
    api: Api, monkeypatch: pytest.MonkeyPatch, error: Exception, expected: tuple[int, str]
) -> None:
    async def fail(**_: object) -> object:
        raise error

    monkeypatch.setattr(api.processor.backend.reads, "list_queues", fail)
    assert (await find_problem(api, "GET", "/api/v1/queues"))[:2] == expected


async def test_an_answer_that_takes_too_long_is_abandoned(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def wait(**_: object) -> object:
        return await asyncio.Event().wait()

    monkeypatch.setattr(access, "ANSWER_TIMEOUT", 0.0)
    monkeypatch.setattr(api.processor.backend.reads, "list_queues", wait)
    *found, document = await find_problem(api, "GET", "/api/v1/queues")
    assert found == [504, "timeout"]
    assert "Repeat the request" in document.detail
