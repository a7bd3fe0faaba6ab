"""What an operator trips over: colours, empty pages, sentences."""

from __future__ import annotations

import re

import pytest

from nimburion.server.dashboard.charts import draw_runs
from nimburion.server.dashboard.pages.jobs.job import PastRun
from nimburion.server.dashboard.responses import DASHBOARD_PATH
from tests.server.conftest import Api


async def test_no_worker_is_a_warning_even_without_jobs(api: Api) -> None:
    html = (await api.client.get(DASHBOARD_PATH)).text
    assert re.search(r'Workers</a></dt><dd><span class="warn">0<', html)
    await api.enqueue("a")
    api.services.readings.expire()
    html = (await api.client.get(DASHBOARD_PATH)).text
    assert re.search(r'Workers</a></dt><dd><span class="bad">0<', html)


async def test_schedules_name_their_next_tick_in_their_own_zone(api: Api) -> None:
    await api.services.schedules.add("report", "0 2 * * *", "send", timezone="Asia/Kathmandu")
    html = (await api.client.get(f"{DASHBOARD_PATH}/schedules")).text
    assert re.search(r"\d{4}-\d\d-\d\d 02:00 Asia/Kathmandu", html)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/jobs", "nimburion enqueue NAME"),
        ("/jobs?q=queue:none", "Show all jobs"),
        ("/running", "Which jobs wait"),
        ("/metrics", "The last 30 days"),
        ("/queues/none", "nimburion worker MODULE:NAME"),
    ],
)
async def test_an_empty_page_says_what_to_do_next(api: Api, path: str, words: str) -> None:
    assert words in (await api.client.get(f"{DASHBOARD_PATH}{path}")).text


async def test_a_stopped_worker_may_be_started_again(site: Api) -> None:
    html = (await site.client.get(f"{DASHBOARD_PATH}/workers")).text
    assert "starts a new one" in html


def test_one_run_is_as_wide_as_each_of_many() -> None:
    run = PastRun(id="a", state="completed", seconds=1.0)
    one, many = draw_runs([run]), draw_runs([run] * 60)
    assert 'viewBox="0 0 600 40"' in one
    assert 'viewBox="0 0 600 40"' in many
    assert 'x="590"' in one
