"""Flows over the API."""

from __future__ import annotations

import pytest

from nimburion import Flow
from nimburion.core.audit import list_audit
from nimburion.core.flows import NewFlow
from nimburion.server.api import flows as flow_operations
from nimburion.server.openapi import API_PATH
from tests.server.conftest import Api, send


async def test_flows_are_listed_and_shown(api: Api) -> None:
    flows = [
        NewFlow(id="i", name="import", members=1),
        NewFlow(id="i.parts", name="parts", members=0, parent="i"),
        NewFlow(id="j", name="import", members=0),
    ]
    await api.services.backend.producing.enqueue([], flows)
    listed = await api.get("/flows")
    assert [flow["id"] for flow in listed["flows"]] == ["j", "i"]
    assert (listed["flows"][1]["groups"], listed["next"]) == ([], None)
    shown = await api.get("/flows/i")
    assert (shown["state"], shown["members"], shown["completed"]) == ("completed", 1, 1)
    (group,) = shown["groups"]
    assert (group["id"], group["parent"], group["state"]) == ("i.parts", "i", "completed")


async def test_only_flows_that_run_are_listed(api: Api) -> None:
    flows = [NewFlow(id=f"f{members}", name="one", members=members) for members in (0, 1)]
    await api.services.backend.producing.enqueue([], flows)
    listed = await api.get("/flows?running=true&limit=1")
    assert [(flow["id"], flow["state"]) for flow in listed["flows"]] == [("f1", "running")]


async def test_an_unknown_flow(api: Api) -> None:
    answer = await api.client.get(f"{API_PATH}/flows/other")
    assert (answer.status_code, answer.json()["type"]) == (
        404,
        "urn:nimburion:problem:flow-not-found",
    )


async def test_replay_the_failed_part_of_a_flow(api: Api) -> None:
    flow = Flow("import")
    first = flow.add(send.job("a"), name="first")
    flow.add(send.job("b"), name="second", depends_on=first)
    await api.processor.enqueue_flow(flow, id="i")
    await api.fail_waiting()
    preview = await api.get("/flows/i/replay")
    assert [job["id"] for job in preview["failed"]["first"]] == ["i.first"]
    assert [job["id"] for job in preview["cancelled"]["first"]] == ["i.second"]
    assert (await api.get("/flows/i"))["state"] == "failed"
    report = await api.post("/flows/i/replay", {"reason": "mended"})
    assert (report["changed"], report["ids"]) == (1, ["i.first"])
    assert (report["flow"]["state"], report["flow"]["unfinished"]) == ("running", 2)
    again = await api.post("/flows/i/replay")
    assert (again["changed"], again["ids"]) == (0, [])


async def test_cancel_a_flow(api: Api) -> None:
    flow = Flow("import")
    flow.add_all([send.job("a"), send.job("b")], name="parts")
    await api.processor.enqueue_flow(flow, id="i")
    report = await api.post("/flows/i/cancel", {"reason": "wrong file"})
    assert (report["flow"]["state"], report["changed"]) == ("cancelled", 2)
    (record, *_) = (await list_audit(api.services.backend)).records
    assert (record.action, record.details) == ("flows.cancel", {"reason": "wrong file"})


@pytest.mark.parametrize("action", ["cancel", "replay"])
async def test_a_flow_with_too_many_jobs_is_left_to_a_bulk_operation(
    api: Api, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    monkeypatch.setattr(flow_operations, "MAX_AT_ONCE", 2)
    flow = Flow("import")
    flow.add_all([send.job("a"), send.job("b")], name="parts")
    flow.add(send.job("c"), name="last")
    await api.processor.enqueue_flow(flow, id="i")
    if action == "replay":
        await api.fail_waiting(3)
    answer = await api.client.post(f"{API_PATH}/flows/i/{action}", json={})
    assert (answer.status_code, answer.json()["type"]) == (
        409,
        "urn:nimburion:problem:flow-too-large",
    )
    assert answer.json()["detail"].startswith("3 jobs of the flow")
    assert f"POST /api/v1/operations/{action}" in answer.json()["detail"]
    preview = await api.get(f"/operations/preview?action={action}&flow=i")
    assert (preview["count"], preview["complete"]) == (3, True)
    if action == "cancel":
        await api.processor.cancel("i.last")
    else:
        await api.post("/dead-letters/replay", {"ids": ["i.last"]})
    assert (await api.post(f"/flows/i/{action}"))["changed"] == 2


async def test_an_open_flow_with_too_many_jobs_is_to_be_closed_first(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow_operations, "MAX_AT_ONCE", 1)
    flow = Flow("import", open=True)
    flow.add_all([send.job("a"), send.job("b")])
    await api.processor.enqueue_flow(flow, id="i")
    refused = await api.client.post(f"{API_PATH}/flows/i/cancel", json={})
    assert "POST /api/v1/flows/i/close" in refused.json()["detail"]
    await api.post("/flows/i/close")
    refused = await api.client.post(f"{API_PATH}/flows/i/cancel", json={})
    assert "/close" not in refused.json()["detail"]


async def test_a_change_of_an_unknown_flow(api: Api) -> None:
    for change in ("replay", "cancel"):
        answer = await api.client.post(f"{API_PATH}/flows/other/{change}", json={})
        assert answer.status_code == 404
    assert (await api.client.post(f"{API_PATH}/flows/other/close")).status_code == 404
