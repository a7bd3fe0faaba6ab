"""The page of schedules: ticks to come, and what came of the last ones."""

from __future__ import annotations

import pytest

from nimburion.core.audit import list_audit
from nimburion.core.job import NewJob
from nimburion.scheduler.spec import make_job_id
from nimburion.server.dashboard.responses import DASHBOARD_PATH
from tests.server.conftest import Api
from tests.server.dashboard.conftest import OWN_PAGE

PATH = f"{DASHBOARD_PATH}/schedules"


async def fire(api: Api, name: str, ticks: list[int]) -> None:
    """Fire ticks of a schedule, as a scheduler does."""
    last = None
    for tick in ticks:
        job = NewJob(make_job_id(name, tick), "send", "mail", b"{}")
        await api.processor.backend.producing.fire(name, last, tick, job, "allow")
        last = tick


async def test_the_last_ticks_have_their_outcomes(
    site: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = int(await site.processor.backend.now()) // 60 * 60
    with monkeypatch.context() as earlier:  # ticks before it was added are none of its ticks
        earlier.setattr(site.services.schedules, "_read_now", lambda: now - 270.0)
        await site.services.schedules.add("often", "@every 1m", "send")
    await fire(site, "often", [now - 240, now - 180, now - 60])
    await site.processor.backend.producing.cancel(make_job_id("often", now - 180))
    twin = (await site.client.get(PATH, params={"format": "json"})).json()
    row = next(row for row in twin["schedules"] if row["history"]["schedule"]["name"] == "often")
    outcomes = [(one["tick"], one["state"]) for one in row["history"]["outcomes"]]
    assert outcomes == [
        (now - 240, "pending"),
        (now - 180, "cancelled"),
        (now - 120, None),
        (now - 60, "pending"),
    ]
    assert row["without_job"] == 1
    assert len(row["history"]["schedule"]["next_ticks"]) == 5
    html = (await site.client.get(PATH)).text
    assert "0 failed, 1 without a job" in html


async def test_the_reason_of_a_pause_is_recorded_and_shown(site: Api) -> None:
    await site.client.post(f"{PATH}/daily/pause", content="reason=holiday", headers=OWN_PAGE)
    record = (await list_audit(site.processor.backend)).records[0]
    assert (record.action, record.target) == ("schedule.pause", "daily")
    assert record.details == {"reason": "holiday"}
    html = (await site.client.get(PATH)).text
    assert f'action="{PATH}/daily/resume"' in html
    assert "by local, " in html
    assert "<small>holiday</small>" in html
    await site.client.post(f"{PATH}/daily/resume", headers=OWN_PAGE)
    assert "holiday" not in (await site.client.get(PATH)).text
    await site.services.schedules.pause("daily")  # by code, which records nothing
    site.services.readings.expire()
    html = (await site.client.get(PATH)).text
    assert f'action="{PATH}/daily/resume"' in html
    assert "holiday" not in html


async def test_a_run_by_hand_names_its_job(site: Api) -> None:
    headers = {**OWN_PAGE, "HX-Request": "true"}
    response = await site.client.post(f"{PATH}/daily/run", headers=headers)
    jobs = (await site.processor.backend.reads.list_jobs()).jobs
    assert f"Job {jobs[0].id} is enqueued." in response.text


async def test_pages_of_schedules_follow_each_other(site: Api) -> None:
    for number in range(30):
        await site.services.schedules.add(f"s{number:02}", "@daily", "send")
    names: list[str] = []
    after = None
    for _ in range(2):
        query = {"format": "json", **({"after": after} if after else {})}
        twin = (await site.client.get(PATH, params=query)).json()
        names += [row["history"]["schedule"]["name"] for row in twin["schedules"]]
        after = twin["next"]
    assert names == ["daily", *(f"s{number:02}" for number in range(30))]
    assert after is None
