"""The page of metrics: sums and percentiles of the statistics, as charts and as numbers."""

from __future__ import annotations

import math

from nimburion.core.metrics.statistics import Counters, Statistics
from nimburion.core.session import Session, SessionInfo, Vitals
from nimburion.server.dashboard.charts import Series, draw_chart, find_top
from nimburion.server.dashboard.pages.metrics import WEEK, find_deployments, find_past_hours
from nimburion.server.dashboard.responses import DASHBOARD_PATH
from tests.server.conftest import Api

PATH = f"{DASHBOARD_PATH}/metrics"


async def put_minute(api: Api, queue: str, name: str, *, ago: int, completed: int) -> None:
    """Store what happened in one minute."""
    now = await api.processor.backend.now()
    counters = Counters(enqueued=completed + 2, completed=completed, failed=1, retried=1)
    for _ in range(completed):
        counters.wait.observe(0.05)
        counters.run.observe(2.0)
    start = int(now) // 60 * 60 - 60 * ago
    row = Statistics(step=60, start=start, queue=queue, name=name, counters=counters)
    await api.processor.backend.consuming.put_statistics(f"{queue}{name}{ago}", [row])


async def test_sums_are_those_of_the_statistics(site: Api) -> None:
    await put_minute(site, "mail", "send", ago=2, completed=8)
    await put_minute(site, "mail", "bill", ago=2, completed=3)
    await put_minute(site, "bank", "send", ago=5, completed=1)
    for query, expected in (
        ("by=queue", [("mail", 11), ("bank", 1)]),
        ("by=name", [("send", 9), ("bill", 3)]),
        ("by=name&queue=mail", [("send", 8), ("bill", 3)]),
        ("by=queue&name=send", [("mail", 8), ("bank", 1)]),
    ):
        twin = (await site.client.get(f"{PATH}?format=json&range=1h&{query}")).json()
        assert [(row["key"], row["completed"]) for row in twin["rows"]] == expected
    twin = (await site.client.get(f"{PATH}?format=json&range=1h")).json()
    assert len(twin["intervals"]) == 60
    minute = twin["intervals"][-3]
    assert (minute["completed"], minute["failed"], minute["enqueued"]) == (11, 4, 15)
    assert 0.03 < minute["wait_p95"] <= 0.1
    assert 1.0 < minute["run_p50"] <= 3.0
    assert twin["intervals"][-2]["run_p50"] is None


async def test_each_range_has_its_numbers_as_a_table(site: Api) -> None:
    await put_minute(site, "mail", "send", ago=2, completed=8)
    for name, count in (("1h", 60), ("3h", 180), ("3d", 72), ("30d", 240)):
        html = (await site.client.get(f"{PATH}?range={name}")).text
        numbers = html[html.index('<details id="numbers">') :]
        assert numbers.count('<tr><th scope="row">') == count
        assert html.count('<svg class="chart"') == 4
        assert html.count("<desc>") == 4


def test_a_gap_interrupts_a_line() -> None:
    line = Series("wait", "wait", [1.0, math.nan, 3.0, 2.0])
    drawn = str(draw_chart([line], "Wait"))
    assert drawn.count("M") == 2
    assert "nan" not in drawn
    assert "latest 2, highest 3" in drawn
    assert find_top([line]) == 3
    assert find_top([Series("wait", "wait", [math.nan])]) == 1


def test_the_hours_of_a_week_before_are_the_same_for_each_minute_of_an_hour() -> None:
    hour = 3600
    ranges = {
        find_past_hours(WEEK + 60 * minute, WEEK + 60 * minute + hour) for minute in range(1, 60)
    }
    assert ranges == {(0, 2 * hour)}
    assert find_past_hours(WEEK, WEEK + hour) == (0, hour)


async def put_hour_before(api: Api, *, weeks: int, completed: int) -> int:
    """Store what happened in this hour some weeks ago; return its start."""
    now = await api.processor.backend.now()
    start = int(now) // 3600 * 3600 - weeks * 7 * 86_400
    counters = Counters(completed=completed, failed=completed // 3)
    row = Statistics(step=3600, start=start, queue="mail", name="send", counters=counters)
    await api.processor.backend.consuming.put_statistics(f"week {weeks}", [row])
    return start


async def test_the_same_time_last_week_is_beside_it(site: Api) -> None:
    without = (await site.client.get(f"{PATH}?format=json&range=3h")).json()
    assert without["week_before"] == []
    start = await put_hour_before(site, weeks=1, completed=120)
    await put_hour_before(site, weeks=2, completed=999)
    site.services.readings.expire()
    twin = (await site.client.get(f"{PATH}?format=json&range=3h")).json()
    week = 7 * 86_400
    seen = {
        minute["start"] - week: past
        for minute, past in zip(twin["intervals"], twin["week_before"], strict=True)
    }
    assert seen[start] == {
        "completed": 2.0,
        "failed_share": 0.25,
        "wait_p95": None,
        "run_p95": None,
    }
    assert seen[start - 60] is None
    longer = (await site.client.get(f"{PATH}?format=json&range=3d")).json()["week_before"]
    assert [past["completed"] for past in longer if past] == [120.0]
    html = (await site.client.get(f"{PATH}?range=3h")).text
    assert html.count('class="line past"') == 4
    assert "completed a week before: latest 2, highest 2" in html


async def test_versions_that_started_are_marked(site: Api) -> None:
    backend = site.processor.backend
    for name, version in (("v", "1.0"), ("w", "<b>2"), ("x", "<b>2"), ("y", "")):
        session = Session(id=name.ljust(32, "0"), queues=("mail",), names=("send",))
        await backend.consuming.open_session(session)
        await backend.consuming.heartbeat(session.id, Vitals(code_version=version))
    twin = (await site.client.get(f"{PATH}?format=json")).json()
    assert sorted(one["version"] for one in twin["deployments"]) == ["1.0", "<b>2"]
    html = (await site.client.get(PATH)).text
    assert html.count('<line class="moment"') == 8
    assert "<title>version &lt;b&gt;2</title>" in html
    assert "<b>2" not in html


def test_only_versions_of_the_time_are_marked() -> None:
    session = SessionInfo(
        id="a",
        host="",
        pid=1,
        owner="",
        queues=(),
        names=(),
        opened_at=50.0,
        expires_in=9.0,
        left=False,
        running=0,
        vitals=Vitals(code_version="1.0"),
    )
    assert [one.since for one in find_deployments([session], 0.0, 60.0)] == [50.0]
    assert find_deployments([session], 51.0, 60.0) == []
