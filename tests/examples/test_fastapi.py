"""The example for FastAPI, on each durable backend."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from starlette.testclient import TestClient


def test_the_application_enqueues_and_a_worker_runs(
    backend_url: str,
    import_example: Callable[[str, str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NIMBURION_JOBS__URL", backend_url)
    shop: Any = import_example("fastapi", "fastapi_shop")
    with TestClient(shop.app) as client:
        mail = client.post("/signups", params={"address": "ann@example.com"}).json()["job"]
        report = client.post("/reports/2026").json()["job"]
        assert client.post("/reports/2026").json()["job"] == report
        assert client.get("/health").json()["state"] == "open"
        assert client.portal is not None
        assert client.portal.call(shop.processor.drain) == 2
        assert client.get(f"/jobs/{mail}").json()["result"] == "mail to ann@example.com"
        shown = client.get(f"/jobs/{report}").json()
        assert client.get("/jobs/unknown").status_code == 404
    assert shown["state"] == "completed"
    assert shown["result"] == {"year": 2026, "pages": 12}
    assert shown["progress"]["message"] == "2026-12"
