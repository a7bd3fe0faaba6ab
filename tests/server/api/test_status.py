"""What the server says of itself."""

from __future__ import annotations

import nimburion
from nimburion.core.errors import BackendUnavailable
from tests.server.conftest import Api


async def test_the_status_names_version_backend_and_rights(api: Api) -> None:
    status = await api.get("/status")
    assert status["version"] == nimburion.__version__
    assert status["backend"] == api.processor.backend.describe()
    assert (status["caller"], status["rights"]) == (
        "local",
        ["admin", "operate", "payloads", "read", "stacks"],
    )
    assert status["worker"]["state"] == "open"


async def test_the_checks_are_those_of_doctor(api: Api) -> None:
    report = await api.get("/checks")
    subjects = [check["subject"] for check in report["checks"]]
    assert subjects[:3] == ["nimburion", "configuration", "event loop"]
    assert {"backend", "workers"} <= set(subjects)


async def test_many_requests_cause_one_run_of_the_checks(api: Api, monkeypatch: object) -> None:
    calls = []

    async def check() -> list[object]:
        calls.append(1)
        raise BackendUnavailable("no reply")

    api.processor.backend.check = check  # type: ignore[assignment, method-assign]
    reports = [await api.get("/checks") for _ in range(3)]
    assert len(calls) == 1
    assert reports[0]["verdict"] == "error"
