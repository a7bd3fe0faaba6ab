"""Statistics: the counters of each process by interval, queue and name."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from nimburion.backends.sqlite.connection.database import MICRO, Database
from nimburion.core.statistics import STEPS, Counters, Statistics, add_statistics

_MAX_DELETED = 10_000
"""The maximum number of rows of one step that one call deletes."""

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


def read_statistics(
    db: Database, interval: tuple[float, float, int], queue: str | None, name: str | None
) -> list[Statistics]:
    """See `Backend.statistics`. `interval` is its `since`, `until` and `step`."""
    since, until, step = interval
    rows = db.run("list_statistics", step, since, until, queue, name).fetchall()
    return add_statistics(
        Statistics(
            step=step, start=start, queue=queue, name=name, counters=_decode_counters(counters)
        )
        for start, queue, name, counters in rows
    )


def prune_statistics(db: Database) -> None:
    """Delete the rows that are older than `STEPS` allows, and at most `_MAX_DELETED` of each step.

    The rest is left to later calls, so that no call holds the write lock for long.
    """
    for step, kept in STEPS.items():
        db.run("delete_old_statistics", step, db.now / MICRO - kept, _MAX_DELETED)
