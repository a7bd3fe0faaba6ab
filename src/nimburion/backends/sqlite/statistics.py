"""Statistics: the counters of each process by interval, queue and name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from nimburion.backends.sqlite.connection.database import MICRO, Database
from nimburion.core.job import Enqueued, NewJob
from nimburion.core.metrics.statistics import (
    MERGE_AFTER,
    MERGED_SOURCE,
    STEPS,
    Counters,
    Statistics,
    add_statistics,
)
from nimburion.core.transactions import MAX_ENQUEUE_COUNTS, EnqueueCount, sum_enqueue_counts

_MAX_DELETED = 10_000
"""The maximum number of rows of one step that one call deletes."""
_MAX_MERGED = 2_000
"""The maximum number of rows of one step that one call merges."""

_encode = msgspec.json.Encoder().encode
_decode_counters = msgspec.json.Decoder(Counters).decode


def encode_rows(source: str, rows: Sequence[Statistics]) -> list[tuple[object, ...]]:
    """Return the inputs of the statement `put_statistics` for each row."""
    return [
        (row.step, row.start, row.queue, row.name, source, _encode(row.counters).decode())
        for row in rows
    ]


def put_statistics(db: Database, values: list[tuple[object, ...]]) -> None:
    """Store the rows that `encode_rows` returned."""
    db.connection.executemany(db.statements["put_statistics"], values)


def count_enqueued(db: Database, jobs: Sequence[NewJob], results: Sequence[Enqueued]) -> None:
    """Store how many jobs the caller's transaction created; see `take_enqueue_counts`."""
    created = Counter(
        (job.queue, job.name)
        for job, result in zip(jobs, results, strict=True)
        if result.outcome == "created"
    )
    for (queue, name), count in created.items():
        db.run("put_enqueue_count", db.now // MICRO, queue, name, count)


def take_enqueue_counts(db: Database, min_age: float) -> list[EnqueueCount]:
    """See `Transactional.take_enqueue_counts`."""
    latest = db.now / MICRO - min_age
    rows = db.run("take_enqueue_counts", latest, MAX_ENQUEUE_COUNTS).fetchall()
    return sum_enqueue_counts(rows)


def read_statistics(
    db: Database, interval: tuple[float, float, int], queue: str | None, name: str | None
) -> list[Statistics]:
    """See `Inspecting.list_statistics`. `interval` is its `since`, `until` and `step`."""
    since, until, step = interval
    rows = db.run("list_statistics", step, since, until, queue, name).fetchall()
    return add_statistics(
        Statistics(
            step=step, start=start, queue=queue, name=name, counters=_decode_counters(counters)
        )
        for start, queue, name, counters in rows
    )


def prune_statistics(db: Database) -> None:
    """Delete the rows that are older than `STEPS` allows, and merge the sources of others.

    Each call deletes at most `_MAX_DELETED` rows of each step and merges at most `_MAX_MERGED`. The
    rest is left to later calls, so that no call holds the write lock for long.
    """
    now = db.now / MICRO
    for step, kept in STEPS.items():
        db.run("delete_old_statistics", step, now - kept, _MAX_DELETED)
        merge_sources(db, step, now - step - MERGE_AFTER)


def merge_sources(db: Database, step: int, before: float) -> None:
    """Merge the rows of different sources for the intervals that started before a time."""
    sums: dict[tuple[int, str, str], Counters] = {}
    rows = db.run("list_unmerged_statistics", step, before, _MAX_MERGED).fetchall()
    for start, queue, name, source, counters in rows:
        interval = (start, queue, name)
        if interval not in sums:
            merged = db.fetch_one("get_statistics", step, *interval, MERGED_SOURCE)
            sums[interval] = Counters() if merged is None else _decode_counters(merged[0])
        sums[interval].add(_decode_counters(counters))
        db.run("delete_statistics", step, *interval, source)
    for interval, total in sums.items():
        db.run("put_statistics", step, *interval, MERGED_SOURCE, _encode(total).decode())
