"""Statistics: the counters of each process by interval, queue and name.

The counters are encoded, decoded and added up on the caller's thread, so that the threads of the
file only run statements.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from nimburion.backends.sqlite.connection.database import Database
from nimburion.core.statistics import Counters, Statistics, add_statistics

StatisticsRow = tuple[int, str, str, str]
"""Start, queue, name and counters (JSON) of one process."""

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


def list_statistics(
    db: Database, interval: tuple[float, float, int], queue: str | None, name: str | None
) -> list[StatisticsRow]:
    """Read the rows of all processes. `interval` is `since`, `until` and `step`."""
    since, until, step = interval
    return db.run("list_statistics", step, since, until, queue, name).fetchall()


def add_rows(step: int, rows: list[StatisticsRow]) -> list[Statistics]:
    """Add up the rows of all processes; see `Backend.statistics`."""
    return add_statistics(
        Statistics(
            step=step, start=start, queue=queue, name=name, counters=_decode_counters(counters)
        )
        for start, queue, name, counters in rows
    )
