"""Numbers of waiting jobs where more wait than a page counts."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from nimburion.core.queries import QueueInfo
from nimburion.server.dashboard import readings
from nimburion.server.dashboard.queue_counts import fill_up_counts
from tests.server.conftest import MakeApi
from tests.waiting import wait_until

MANY = QueueInfo(
    name="many",
    size=10,
    scheduled=10,
    processing=3,
    oldest_age=5.0,
    paused=False,
    names={"send": 20},
    size_complete=False,
    scheduled_complete=False,
)
FEW = QueueInfo(
    name="few", size=2, scheduled=0, processing=0, oldest_age=1.0, paused=False,
    names={"send": 2}, scheduled_complete=False,
)  # fmt: skip


def test_only_numbers_that_are_too_small_come_from_the_last_full_count() -> None:
    last = [
        msgspec.structs.replace(FEW, size=9, names={"send": 9, "post": 1}, oldest_age=90.0),
        msgspec.structs.replace(MANY, size=4_000, scheduled=7, processing=0, names={"send": 4_007}),
    ]
    few, many = fill_up_counts([MANY, FEW], last)
    assert (few.size, few.oldest_age) == (2, 1.0)
    assert (many.size, many.scheduled, many.processing) == (4_000, 10, 3)
    assert (many.names, many.size_complete) == ({"send": 4_007}, False)


def test_a_queue_that_was_not_reached_is_kept_with_its_scheduled_jobs() -> None:
    last = [msgspec.structs.replace(MANY, name="later", size=6, scheduled=8, pause=None)]
    found = {queue.name: queue for queue in fill_up_counts([FEW], last)}
    assert list(found) == ["few", "later"]
    assert (found["later"].size, found["later"].scheduled) == (0, 8)
    whole = msgspec.structs.replace(FEW, scheduled_complete=True)
    assert [queue.name for queue in fill_up_counts([whole], last)] == ["few"]


async def test_a_page_says_at_least_until_all_jobs_are_counted(
    make_api: MakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readings, "LIVE_COUNT_BUDGET", 12)
    api = await make_api(f"sqlite:///{tmp_path}/jobs.db")
    await api.enqueue(*"abcdefg", queue="mail")

    async def read_size() -> str:
        page = (await api.client.get("/dashboard/queues?format=fragment")).text
        found = re.search('data-label="Due">([^<]+)<', page)
        assert found is not None
        return found[1]

    assert await read_size() == "at least 3"

    async def is_counted() -> bool:
        return await read_size() == "about 7"

    await wait_until(is_counted, "all jobs are counted")
    overview = (await api.client.get("/dashboard?format=fragment")).text
    assert overview.count("about 7") == 1
    assert re.search(r">Due</a>, about</dt><dd><span[^>]*>7<", overview)
    shown = (await api.client.get("/dashboard/queues?format=json")).json()["queues"][0]
    assert (shown["size"], shown["size_complete"], shown["scheduled_complete"]) == (7, False, True)
