"""Flows over the API."""

from __future__ import annotations

from nimburion.core.flows import NewFlow
from nimburion.server.openapi import API_PATH
from tests.server.conftest import Api


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
