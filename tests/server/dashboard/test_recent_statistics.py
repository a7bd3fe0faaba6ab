"""The statistics of the last hour: only new minutes are read, and the sums stay right."""

from __future__ import annotations

from typing import Any

from nimburion.core.metrics.statistics import Counters, Statistics
from nimburion.server.dashboard.recent_statistics import RecentStatistics
from nimburion.testing.clock import FakeClock
from tests.server.conftest import Api


def count(minute: float, queue: str, name: str, completed: int) -> Statistics:
    counters = Counters(enqueued=completed, completed=completed)
    start = int(minute // 60) * 60
    return Statistics(step=60, start=start, queue=queue, name=name, counters=counters)


async def test_the_hour_is_read_once_and_its_end_again(api: Api, monkeypatch: Any) -> None:
    backend, clock = api.processor.backend, FakeClock()
    clock.advance_to(clock.now() // 60 * 60 + 150)
    now = clock.now() // 60 * 60 - 60
    starts = []
    original = backend.reads.list_statistics

    async def list_statistics(since: float, until: float, step: int, **filters: Any) -> Any:
        starts.append(int(now - since) // 60)
        return await original(since, until, step, **filters)

    monkeypatch.setattr(backend.reads, "list_statistics", list_statistics)
    recent = RecentStatistics(backend, clock)
    await backend.consuming.put_statistics(
        "a", [count(now, "mail", "x", 2), count(now, "mail", "y", 3)]
    )
    await backend.consuming.put_statistics("a", [count(now - 3000, "web", "x", 7)])
    hour = await recent.read()
    assert (hour.queues["mail"].counters.completed, hour.total.counters.completed) == (5, 12)
    assert hour.queues["mail"].completed[-2:] == [5.0, 0.0]
    await backend.consuming.put_statistics("b", [count(now - 120, "mail", "x", 100)])  # late
    clock.advance(60)
    hour = await recent.read()
    assert hour.queues["mail"].completed[-5:] == [100.0, 0.0, 5.0, 0.0, 0.0]
    assert hour.total.counters.completed == 112
    assert starts == [58, 50, 42, 34, 26, 18, 10, 2, 4]  # in parts, then the end only
    clock.advance(700)
    assert "web" not in (await recent.read()).queues
    clock.advance(7200)
    assert (await recent.read()).total.counters.completed == 0


async def test_a_rate_is_a_mean_of_five_minutes(api: Api) -> None:
    clock = FakeClock()
    clock.advance_to(clock.now() // 60 * 60 + 90)
    await api.processor.backend.consuming.put_statistics("a", [count(clock.now(), "mail", "x", 9)])
    hour = await RecentStatistics(api.processor.backend, clock).read()
    assert hour.compute_rate(hour.get_queue("mail").completed) == 2.0
    assert hour.compute_rate(hour.get_queue("none").completed) == 0.0
