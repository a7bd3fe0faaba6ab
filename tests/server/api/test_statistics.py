"""Statistics over the API."""

from __future__ import annotations

import pytest

from nimburion.core.metrics.histogram import Histogram
from nimburion.core.metrics.statistics import Counters, Statistics
from tests.server.conftest import Api

_MINUTE = 60


async def put(api: Api, *lanes: tuple[str, str]) -> int:
    """Store one completed job of each queue and name, two minutes ago. Return that minute."""
    start = int(await api.processor.backend.now()) // _MINUTE * _MINUTE - 2 * _MINUTE
    rows = [
        Statistics(
            step=_MINUTE,
            start=start,
            queue=queue,
            name=name,
            counters=Counters(completed=1, run=Histogram(2.0, 2.0, {8: 1})),
        )
        for queue, name in lanes
    ]
    await api.processor.backend.consuming.put_statistics("test", rows)
    return start


async def test_the_last_hour_is_listed_by_minute(api: Api) -> None:
    start = await put(api, ("mail", "send"))
    found = await api.get("/statistics")
    (row,) = found["intervals"]
    assert (found["step"], row["start"], row["queue"], row["name"]) == (60, start, "mail", "send")
    assert row["counters"]["completed"] == 1
    assert row["counters"]["run"] == {"sum": 2.0, "max": 2.0, "buckets": {"8": 1}}
    assert found["buckets_per_decade"] == 24


async def test_statistics_are_listed_in_pages(api: Api) -> None:
    lanes = [("a", "x"), ("a", "y"), ("b", "x")]
    start = await put(api, *lanes)
    seen, after = [], None
    while True:
        query = {"limit": 1, "since": start, **({"after": after} if after else {})}
        page = await api.get("/statistics", params=query)
        seen += [(row["queue"], row["name"]) for row in page["intervals"]]
        after = page["next"]
        if after is None:
            break
    assert seen == lanes


async def test_statistics_are_filtered(api: Api) -> None:
    start = await put(api, ("a", "x"), ("b", "y"))
    for query, expected in (
        ("queue=a", ["a"]),
        ("name=y", ["b"]),
        (f"until={start}", []),
        (f"since={start + 60}", []),
        (f"since={start}&until={start + 60}", ["a", "b"]),
    ):
        rows = (await api.get(f"/statistics?{query}"))["intervals"]
        assert [row["queue"] for row in rows] == expected, query


async def test_a_long_range_has_long_intervals(api: Api) -> None:
    now = await api.processor.backend.now()
    for hours, step in ((2, 60), (24, 600), (24 * 20, 3600), (24 * 40, 3600)):
        since = now - hours * 3600
        assert (await api.get(f"/statistics?since={since}"))["step"] == step


async def test_a_wrong_cursor_or_step_is_an_error(api: Api) -> None:
    for query in ("after=x", "after=1/2", "after=a/b/c", "step=5"):
        response = await api.client.get(f"/api/v1/statistics?{query}")
        assert response.status_code == 422, query


async def test_a_range_begins_with_the_oldest_interval_that_is_kept(api: Api) -> None:
    backend = api.processor.backend
    start = int(await backend.now()) // _MINUTE * _MINUTE - _MINUTE
    row = Statistics(step=_MINUTE, start=start, queue="q", name="n", counters=Counters(started=1))
    await backend.consuming.put_statistics("test", [row])
    page = await api.get("/statistics?since=0&until=253402300799&step=60")
    assert [found["start"] for found in page["intervals"]] == [start]


async def test_a_page_reads_only_the_intervals_that_it_returns(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = api.processor.backend
    last = int(await backend.now()) // _MINUTE * _MINUTE
    starts = [last - _MINUTE * minute for minute in range(100, 0, -1)]
    rows = [
        Statistics(step=_MINUTE, start=start, queue="q", name=name, counters=Counters(started=1))
        for start in starts
        for name in ("a", "b", "c")
    ]
    await backend.consuming.put_statistics("test", rows)
    read, list_statistics = 0, backend.reads.list_statistics

    async def count_rows(*place: float, **which: str | None) -> list[Statistics]:
        nonlocal read
        since, until, step = place
        found = await list_statistics(since, until, int(step), **which)
        read += len(found)
        return found

    monkeypatch.setattr(backend.reads, "list_statistics", count_rows)
    query = {"since": starts[0] - 30 * _MINUTE, "until": last, "limit": 40}
    page = await api.get("/statistics", params=query)
    seen = page["intervals"]
    assert read <= 100  # of 300
    while page["next"] is not None:
        read = 0
        page = await api.get("/statistics", params={**query, "after": page["next"]})
        assert read <= 100
        seen += page["intervals"]
    assert [(one["start"], one["name"]) for one in seen] == [(row.start, row.name) for row in rows]
