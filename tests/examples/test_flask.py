"""The example for Flask, on each durable backend."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from nimburion.integrations.flask import find_processor


def test_the_application_enqueues_and_a_worker_runs(
    backend_url: str, import_example: Callable[[str, str], ModuleType]
) -> None:
    shop: Any = import_example("flask", "flask_shop")
    app = shop.create_app(NIMBURION_URL=backend_url)
    client = app.test_client()
    with find_processor(app).sync as sync:
        answer = client.post("/signups", data={"address": "ann@example.com"})
        assert answer.status_code == 202
        report = client.post("/reports/2026").get_json()["job"]
        assert client.post("/reports/2026").get_json()["job"] == report
        assert client.get("/health").get_json()["state"] == "open"
        assert sync.drain() == 2
        mail = client.get(f"/jobs/{answer.get_json()['job']}").get_json()
        shown = client.get(f"/jobs/{report}").get_json()
        assert client.get("/jobs/unknown").status_code == 404
    assert mail["result"] == "shop@example.com wrote to ann@example.com"
    assert (shown["state"], shown["result"]) == ("completed", {"year": 2026, "pages": 12})
