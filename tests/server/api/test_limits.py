"""Limits over the API."""

from __future__ import annotations

import pytest

from nimburion.core.audit import list_audit
from nimburion.core.limits import LimitRule
from nimburion.core.session import Session
from nimburion.testing.contract.harness import make_limits
from tests.server.conftest import Api


async def test_limits_are_listed_in_pages_with_their_holders(api: Api) -> None:
    await api.processor.backend.consuming.open_session(
        Session(
            id="w",
            queues=("q",),
            names=("a", "b", "c"),
            limits=make_limits({"a": 1, "b": 2, "c": 3}),
        )
    )
    first = await api.get("/limits?limit=2")
    second = await api.get("/limits", params={"limit": 2, "after": first["next"]})
    found = [limit for page in (first, second) for limit in page["limits"]]
    assert [(limit["name"], limit["rules"]) for limit in found] == [
        (f"job:{name}", {name: {"concurrency": most, "rate": None}})
        for name, most in (("a", 1), ("b", 2), ("c", 3))
    ]
    assert (found[0]["in_use"], found[0]["holders"], second["next"]) == (0, [], None)


async def test_a_limit_is_changed_and_reset(api: Api) -> None:
    backend = api.processor.backend
    keyed = {"a": {"a:customer": LimitRule(concurrency=1)}}
    await backend.consuming.open_session(
        Session(id="w", queues=("q",), names=("a",), limits=make_limits({"a": 1}, keyed=keyed))
    )
    changed = await api.post("/limits/job:a/change", {"concurrency": 4, "reason": "sale"})
    (change,) = changed["changes"]
    assert (change["concurrency"], change["reason"]) == (4, "sale")
    await api.post("/limits/a:customer/change", {"concurrency": 2, "key": "acme"})
    listed = await api.get("/limits")
    by_key, own = listed["limits"]
    assert (own["name"], own["rules"]["a"]["concurrency"]) == ("job:a", 4)
    assert [change["by"] for change in own["changes"]] == ["local"]
    assert (by_key["name"], by_key["changes"][0]["key"]) == ("a:customer", "acme")
    assert (await api.post("/limits/queue:q/change", {"concurrency": 3}))["changes"] != []
    names = [limit["name"] for limit in (await api.get("/limits"))["limits"]]
    assert names == ["a:customer", "job:a", "queue:q"]
    assert (await api.post("/limits/queue:q/reset", {}))["changes"] == []
    assert (await api.post("/limits/job:a/reset", {}))["changes"] == []
    (own,) = await backend.reads.list_limits(name="job:a")
    assert own.concurrency == 1
    records = (await list_audit(backend)).records
    assert [record.action for record in records] == ["limit.reset"] * 2 + ["limit.change"] * 3


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("other/change", {"concurrency": 1}, 404, "limit-not-found"),
        ("a/change", {"concurrency": 1}, 404, "limit-not-found"),
        ("job:a/change", {}, 422, "invalid-request"),
        ("job:a/change", {"rate": "fast"}, 422, "invalid-request"),
        ("job:a/change", {"concurrency": -1}, 422, "invalid-body"),
        ("job:a/change", {"concurrency": 1, "key": "acme\n"}, 422, "invalid-body"),
        ("job:a/reset", {}, 404, "limit-not-found"),
    ],
)
async def test_wrong_changes_are_refused(
    api: Api, path: str, body: dict[str, object], status: int, code: str
) -> None:
    session = Session(id="w", queues=("q",), names=("a",), limits=make_limits({"a": 1}))
    await api.processor.backend.consuming.open_session(session)
    response = await api.client.post(f"/api/v1/limits/{path}", json=body)
    assert (response.status_code, response.json()["type"].rpartition(":")[2]) == (status, code)
