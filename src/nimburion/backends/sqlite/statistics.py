"""Statistics: delete what is old, and merge the counters of different processes."""

from __future__ import annotations

import msgspec

from nimburion.backends.sqlite.connection.database import Database
from nimburion.core.metrics.statistics import (
    MERGE_AFTER,
    MERGED_SOURCE,
    STEPS,
    Counters,
)
from nimburion.core.timing.clock import MICRO

_MAX_DELETED = 10_000
"""The maximum number of rows of one step that one call deletes."""
_MAX_MERGED = 2_000
"""The maximum number of rows of one step that one call merges."""

_encode = msgspec.json.Encoder().encode
_decode_counters = msgspec.json.Decoder(Counters).decode


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
