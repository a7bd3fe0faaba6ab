"""Operator calls and schedules: encode the arguments and decode the rows of the functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from nimburion.backends.postgres.encoding import (
    encode_lookup_text,
    encode_text,
    reject_unstorable_text,
)
from nimburion.backends.server.encoding import decode_id, encode_json, to_micros
from nimburion.core.errors import JobNotFound
from nimburion.core.limits import LimitChange
from nimburion.core.metrics.statistics import STEPS, Counters, Statistics, add_statistics
from nimburion.core.operations import Cancellation, Retention
from nimburion.core.schedules import Fired

_decode_counters = msgspec.json.Decoder(Counters).decode


def decode_cancellation(reply: str, job_id: str) -> Cancellation:
    """Decode the result of `cancel_job_1`.

    Raises:
        JobNotFound: there is no such job.
    """
    if reply == "missing":
        raise JobNotFound(job_id)
    return Cancellation(reply)


def encode_retention(keep: Retention) -> list[Any]:
    """Return the arguments of `prune_jobs_1` that precede its limit."""
    spans = (keep.completed, keep.failed, keep.results)
    return [
        *(None if span is None else to_micros(span) for span in spans),
        keep.completed_max,
        list(STEPS),
        [round(seconds) for seconds in STEPS.values()],
    ]


@reject_unstorable_text
def encode_pause(
    queue: str, *, paused: bool, by: str, reason: str, until: float | None
) -> list[Any]:
    """Return the arguments of `pause_queue_1` after the time."""
    ends_at = None if until is None else to_micros(until)
    return [encode_text(queue), paused, encode_text(by), encode_text(reason), ends_at]


@reject_unstorable_text
def encode_limit_change(change: LimitChange) -> list[Any]:
    """Return the arguments of `change_limit_1` after the time."""
    rate = change.rate
    return [
        encode_text(change.name),
        change.key is not None,
        encode_text(change.key or ""),
        change.concurrency,
        *((None,) * 3 if rate is None else (encode_text(rate.rate), rate.interval, rate.burst)),
        encode_text(change.by),
        encode_text(change.reason),
    ]


def encode_limit_reset(name: str, key: str | None) -> list[Any]:
    """Return the arguments of `reset_limit_1` after the time."""
    return [encode_lookup_text(name), key is not None, encode_lookup_text(key or "")]


@reject_unstorable_text
def encode_statistics(source: str, rows: Sequence[Statistics]) -> list[Any]:
    """Return the arguments of `put_statistics_1`. Of several rows with one key, the last counts."""
    latest = {(row.step, row.start, row.queue, row.name): row.counters for row in rows}
    steps, starts, queues, names = zip(*latest, strict=True)
    return [
        encode_text(source),
        steps,
        starts,
        [encode_text(queue) for queue in queues],
        [encode_text(name) for name in names],
        [encode_json(counters).decode() for counters in latest.values()],
    ]


def merge_statistics(rows: list[Any]) -> list[Any]:
    """Return the arguments of `merge_statistics_1` for the rows of `list_unmerged_statistics_1`."""
    old = [
        (*key, source, counters)
        for *key, sources, all_counters in rows
        for source, counters in zip(sources, all_counters, strict=True)
    ]
    merged = add_statistics(
        Statistics(
            step=step, start=start, queue=queue, name=name, counters=_decode_counters(counters)
        )
        for step, start, queue, name, _, counters in old
    )
    return [
        *(list(column) for column in zip(*old, strict=True)),
        [row.step for row in merged],
        [row.start for row in merged],
        [row.queue for row in merged],
        [row.name for row in merged],
        [encode_json(row.counters).decode() for row in merged],
    ]


def decode_fired(row: Any) -> Fired:  # noqa: ANN401 - a row
    """Decode the row of `fire_schedule_1`."""
    outcome, job_id = row
    return Fired(outcome, None if job_id is None else decode_id(job_id))
