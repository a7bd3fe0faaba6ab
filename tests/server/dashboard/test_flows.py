"""The pages of flows: the list, one flow with its graph and its jobs, and its replay."""

from __future__ import annotations

import re
from typing import Any

import pytest

from nimburion import Flow, job
from nimburion.core.audit import list_audit
from nimburion.core.flows import Growth, NewFlow
from nimburion.core.job import JobOptions, NewJob
from nimburion.core.queries import SCAN_BUDGET
from nimburion.server.dashboard.pages.flows.flow import FLOW
from nimburion.server.dashboard.pages.flows.flow_replay import FLOW_REPLAY
from nimburion.server.dashboard.responses import DASHBOARD_PATH
from tests.server.conftest import Api
from tests.server.dashboard.conftest import OWN_PAGE

FLOWS = f"{DASHBOARD_PATH}/flows"


@job(max_retries=0)
async def count_part(path: str, part: int) -> int:
    """Count the rows of one part; the third one is broken."""
    if part == 3:
        raise ValueError(f"part {part}")
    return part


@job
async def fetch(url: str) -> str:
    """Fetch a file."""
    return url


@job
async def report(counts: list[int]) -> str:
    """Make a report."""
    return f"{sum(counts)} rows"


def make_import(parts: int, name: str = "import") -> Flow:
    """Return a flow that fetches a file, counts its parts, and reports."""
    flow = Flow(name, on_failure=fetch.job("alert"))
    file = flow.add(fetch.job("file"))
    counted = flow.add_all((count_part.job(file.result, n) for n in range(parts)), name="parts")
    flow.add(report.job(counted.results))
    return flow


async def read(api: Api, path: str) -> Any:
    """Return the JSON twin of a page."""
    mark = "&" if "?" in path else "?"
    response = await api.client.get(f"{FLOWS}{path}{mark}format=json")
    assert response.status_code == 200, response.text
    return response.json()


@pytest.fixture
async def failed(api: Api) -> Api:
    """A server with the flow `i`, whose part 3 has failed."""
    api.processor.register(fetch, count_part, report)
    await api.processor.enqueue_flow(make_import(5), id="i")
    await api.processor.drain()
    return api


async def test_the_list_has_a_bar_of_states_for_each_flow(failed: Api) -> None:
    await failed.processor.enqueue_flow(make_import(2, name="other"), id="j")
    html = (await failed.client.get(FLOWS)).text
    assert re.findall(r'id="flow-(\w)"', html) == ["j", "i"]
    assert "<title>1 completed, 1 failed, 1 cancelled</title>" in html
    assert "<title>3 not ended</title>" in html
    assert f'href="{FLOWS}" data-key="f" aria-current="page"' in html


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ("", ["j", "i"]),
        ("?state=failed", ["i"]),
        ("?state=running", ["j"]),
        ("?state=completed", []),
        ("?name=other", ["j"]),
        ("?name=i", ["i"]),
        ("?name=nothing", []),
    ],
)
async def test_the_list_by_state_and_name(failed: Api, query: str, ids: list[str]) -> None:
    await failed.processor.enqueue_flow(make_import(2, name="other"), id="j")
    assert [flow["id"] for flow in (await read(failed, query))["flows"]] == ids
    html = (await failed.client.get(f"{FLOWS}{query}")).text
    assert ("No flow matches among the" in html) is (not ids)


async def test_a_search_of_the_list_ends_and_continues(api: Api) -> None:
    flows = [NewFlow(id=f"f{n}", name="many", members=0) for n in range(1_200)]
    await api.services.backend.producing.enqueue([], flows)
    first = await read(api, "?name=f77")
    assert first["examined"] == 1_000
    rest = await read(api, f"?name=f77&after={first['next']}")
    ids = [[flow["id"] for flow in part["flows"]] for part in (first, rest)]
    assert ids == [[f"f{n}" for n in range(779, 769, -1)], ["f77"]]
    assert rest["next"] is None


async def test_a_flow_that_failed(failed: Api) -> None:
    html = (await failed.client.get(f"{FLOWS}/i")).text
    assert html.count('<svg class="box ') == 4
    assert re.findall(r'class="edge on-success( failed)?"', html) == ["", " failed"]
    assert "Replay the failed part" in html
    assert "Cancel this flow" not in html
    shown = await read(failed, "/i")
    assert [box["label"] for box in shown["boxes"]] == ["fetch", "parts", "report", "on_failure"]
    (cancelled,) = [row for row in shown["members"] if row["job"]["state"] == "cancelled"]
    (source,) = cancelled["sources"]
    assert (source["text"], source["is_met"]) == ("i.parts, which has failed", False)
    assert (shown["missing"], shown["flow"]["state"]) == (0, "failed")


async def test_a_tolerated_failure_stops_nothing(api: Api) -> None:
    api.processor.register(count_part, report)
    flow = Flow("import")
    counted = flow.add_all((count_part.job("file", n) for n in range(5)), max_failed=1)
    flow.add(report.job(counted.results))
    await api.processor.enqueue_flow(flow, id="t")
    await api.processor.drain()
    html = (await api.client.get(f"{FLOWS}/t")).text
    assert re.findall(r'class="edge on-success( failed)?"', html) == [""]


async def test_what_a_suspended_job_waits_for(api: Api) -> None:
    api.processor.register(fetch, count_part, report)
    await api.processor.enqueue_flow(make_import(5), id="i")
    for _ in range(3):
        await api.processor.process_one()
    shown = await read(api, "/i?state=suspended")
    (row,) = shown["members"]
    assert row["job"]["id"] == "i.report"
    assert [one["text"] for one in row["sources"]] == ["3 of 5 members of i.parts"]
    html = (await api.client.get(f"{FLOWS}/i")).text
    assert f'3 of 5 members of <a href="{FLOWS}/i?group=i.parts">i.parts</a>' in html
    assert "Cancel this flow" in html


async def test_the_jobs_of_a_group_are_in_their_order(api: Api) -> None:
    api.processor.register(fetch, count_part, report)
    await api.processor.enqueue_flow(make_import(120), id="i")
    await api.processor.drain()
    first = await read(api, "/i?group=i.parts")
    assert [row["job"]["id"] for row in first["members"]] == [f"i.parts.{n}" for n in range(50)]
    last = await read(api, "/i?group=i.parts&start=100")
    assert (len(last["members"]), last["next_start"]) == (20, None)
    assert (first["next_start"], last["group"]["failed"]) == (50, 1)
    broken = await read(api, "/i?group=i.parts&state=failed")
    assert [row["job"]["id"] for row in broken["members"]] == ["i.parts.3"]
    completed = await read(api, "/i?group=i.parts&state=completed")
    assert completed["next_start"] == 51
    unknown = await api.client.get(f"{FLOWS}/i?group=i.other")
    assert unknown.status_code == 404


@pytest.mark.parametrize("parts", [0, 1])
async def test_flows_with_few_jobs(api: Api, parts: int) -> None:
    flow = Flow("small")
    if parts:
        flow.add(fetch.job("a"))
    await api.processor.enqueue_flow(flow, id="small")
    html = (await api.client.get(f"{FLOWS}/small")).text
    assert html.count('<svg class="box ') == parts
    assert ("The flow has no members" in html) is (parts == 0)


async def test_members_that_were_not_found_are_counted(api: Api) -> None:
    options = JobOptions(flow="i")
    flow = NewFlow(id="i", name="import", members=3)
    jobs = [NewJob("i.a", "send", "default", b"{}", options=options)]
    await api.services.backend.producing.enqueue(jobs, [flow])
    html = (await api.client.get(f"{FLOWS}/i")).text
    assert "2 members are not shown" in html


async def test_a_flow_that_fails_fast_says_so(api: Api) -> None:
    flows = [
        NewFlow(id="i", name="import", members=0, fail_fast=True),
        NewFlow(id="j", name="import", members=0),
    ]
    await api.services.backend.producing.enqueue([], flows)
    assert ">fail fast</span>" in (await api.client.get(f"{FLOWS}/i")).text
    assert ">fail fast</span>" not in (await api.client.get(f"{FLOWS}/j")).text


async def test_an_open_flow_says_so_and_misses_no_member(api: Api) -> None:
    flow = NewFlow(id="i", name="import", members=1, growth=Growth.OPEN)
    jobs = [NewJob("i.a", "send", "default", b"{}", options=JobOptions(flow="i"))]
    await api.services.backend.producing.enqueue(jobs, [flow])
    shown = await read(api, "/i")
    assert (shown["flow"]["is_open"], shown["missing"]) == (True, 0)
    assert ">open</span>" in (await api.client.get(f"{FLOWS}/i")).text
    assert ">open</span>" in (await api.client.get(FLOWS)).text
    await api.client.post(f"{FLOWS}/i/close", headers=OWN_PAGE)
    assert (await read(api, "/i"))["flow"]["is_open"] is False
    assert "Close this flow" not in (await api.client.get(f"{FLOWS}/i")).text


async def test_the_page_of_a_job_has_its_place_in_the_flow(failed: Api) -> None:
    path = f"{DASHBOARD_PATH}/jobs"
    part = (await failed.client.get(f"{path}/i.parts.3?format=json")).json()["flow"]
    assert (part["flow"]["state"], part["group"]) == ("failed", "i.parts")
    assert [one["id"] for one in part["sources"]] == ["i.fetch"]
    assert [one["id"] for one in part["waiters"]] == ["i.report"]
    callback = (await failed.client.get(f"{path}/i.on_failure?format=json")).json()["flow"]
    assert (callback["is_callback"], callback["group"]) == (True, None)
    html = (await failed.client.get(f"{path}/i.parts.3")).text
    assert f'in the group <a href="{FLOWS}/i?group=i.parts">i.parts</a>' in html
    await failed.enqueue("alone")
    assert (await failed.client.get(f"{path}/alone?format=json")).json()["flow"] is None


async def test_the_replay_is_shown_before_it_happens(failed: Api) -> None:
    shown = await read(failed, "/i/replay")
    assert [one["id"] for one in shown["failed"]["first"]] == ["i.parts.3"]
    assert [one["id"] for one in shown["cancelled"]["first"]] == ["i.report"]
    html = (await failed.client.get(f"{FLOWS}/i/replay")).text
    assert "1 job will run again" in html
    assert "1 job will wait again" in html
    response = await failed.client.post(
        f"{FLOWS}/i/replay", data={"reason": "mended"}, headers=OWN_PAGE
    )
    assert response.headers["Location"] == f"{FLOWS}/i?notice=flows.flow.replay"
    assert (await read(failed, "/i"))["flow"]["state"] == "running"
    (record, *_) = (await list_audit(failed.services.backend)).records
    assert (record.action, record.target, record.changed) == ("flows.replay", "i", 1)
    assert (record.origin, record.details) == ("dashboard", {"reason": "mended"})


async def test_nothing_to_replay(api: Api) -> None:
    await api.processor.enqueue_flow(make_import(2), id="i")
    html = (await api.client.get(f"{FLOWS}/i/replay")).text
    assert "A replay changes nothing" in html
    assert "<button" not in html.partition('id="live"')[2].partition("data-links")[0]


async def test_a_flow_is_cancelled_from_its_page(api: Api) -> None:
    await api.processor.enqueue_flow(make_import(2), id="i")
    headers = {**OWN_PAGE, "HX-Request": "true"}
    response = await api.client.post(f"{FLOWS}/i/cancel", data={"reason": "wrong"}, headers=headers)
    assert "4 jobs cancelled" in response.text or "1 job cancelled" in response.text
    assert (await read(api, "/i"))["flow"]["state"] == "cancelled"


async def test_a_large_flow_is_changed_in_the_background(
    failed: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that changes it would last for long."""
    await failed.processor.enqueue_flow(make_import(4), id="large")
    target = f"{DASHBOARD_PATH}/operations/new?action="
    cancel, replay = f"{target}cancel&amp;q=flow%3Alarge", f"{target}replay&amp;q=flow%3Ai"
    pages = {f"{FLOWS}/large": cancel, f"{FLOWS}/i/replay": replay}
    forms = {f"{FLOWS}/large": "/large/cancel", f"{FLOWS}/i/replay": "/i/replay"}
    for page, form in forms.items():
        assert f'action="{FLOWS}{form}"' in (await failed.client.get(page)).text
    for shown in (FLOW, FLOW_REPLAY):
        monkeypatch.setitem(shown.constants, "max_at_once", 0)
    for page, link in pages.items():
        html = (await failed.client.get(page)).text
        assert f'href="{link}"' in html
        assert f'action="{FLOWS}{forms[page]}"' not in html
    assert "flow:large" in (await failed.client.get(cancel.replace("&amp;", "&"))).text


async def test_the_id_of_a_group_names_its_flow(failed: Api) -> None:
    for path in ("i.parts", "i.parts/replay"):
        response = await failed.client.get(f"{FLOWS}/{path}")
        assert response.status_code == 422
        assert "is a group: pass the id of its flow" in response.text


async def test_failed_members_are_listed_from_the_newest_job(failed: Api) -> None:
    """A member that was added later is newer than those near which the others are searched."""
    backend = failed.services.backend
    others = [NewJob(f"o{n}", "send", "other", b"{}", after=60.0) for n in range(SCAN_BUDGET)]
    await backend.producing.enqueue(others)
    await failed.processor.flows.replay("i")
    await failed.processor.flows.add("i", count_part.job("late", 3), name="late")
    await failed.processor.drain()
    shown = await read(failed, "/i?state=failed")
    assert [row["job"]["id"] for row in shown["members"]] == ["i.late.0", "i.parts.3"]


async def test_an_unknown_flow(api: Api) -> None:
    for path in ("none", "none/replay"):
        response = await api.client.get(f"{FLOWS}/{path}")
        assert response.status_code == 404
        assert "none" in response.text
