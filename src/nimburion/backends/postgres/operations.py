"""Operator calls and schedules: encode the arguments and decode the rows of the functions."""

from __future__ import annotations

from typing import Any

from nimburion.backends.postgres.encoding import encode_text, reject_unstorable_text
from nimburion.backends.server.encoding import decode_id, encode_id, to_micros
from nimburion.core.errors import JobNotFound
from nimburion.core.operations import Cancellation, Replayed, Retention
from nimburion.core.schedules import Fired, ScheduleRecord


def decode_cancellation(reply: str, job_id: str) -> Cancellation:
    """Decode the result of `cancel_job_1`.

    Raises:
        JobNotFound: there is no such job.
    """
    if reply == "missing":
        raise JobNotFound(job_id)
    return Cancellation(reply)


def decode_replayed(rows: list[Any]) -> Replayed:
    """Decode the rows of `replay_jobs_1`. The last row says whether more jobs match."""
    ids = [decode_id(job_id) for _, job_id, replayed, _ in rows if job_id and replayed]
    still_held = [decode_id(job_id) for _, job_id, replayed, _ in rows if job_id and not replayed]
    more = len(rows) > 1 and rows[-1][1] is None
    return Replayed(ids, still_held, str(rows[-2][0]) if more else None)


def encode_retention(keep: Retention) -> list[Any]:
    """Return the arguments of `prune_jobs_1` that precede its limit."""
    spans = (keep.completed, keep.failed, keep.results)
    return [*(None if span is None else to_micros(span) for span in spans), keep.completed_max]


@reject_unstorable_text
def encode_schedule(schedule: ScheduleRecord) -> list[Any]:
    """Return the arguments of `put_schedule_1`."""
    return [
        encode_text(schedule.name),
        schedule.spec,
        encode_text(schedule.owner),
        schedule.paused,
        schedule.last_tick,
        None if schedule.last_job is None else encode_id(schedule.last_job),
    ]


def decode_schedules(rows: list[Any]) -> list[ScheduleRecord]:
    """Decode the rows of all schedules, sorted by name."""
    records = [
        ScheduleRecord(
            name=name,
            spec=spec,
            owner=owner,
            paused=paused,
            last_tick=last_tick,
            last_job=None if last_job is None else decode_id(last_job),
        )
        for name, spec, owner, paused, last_tick, last_job in rows
    ]
    return sorted(records, key=lambda record: record.name)


def decode_fired(row: Any) -> Fired:  # noqa: ANN401 - a row
    """Decode the row of `fire_schedule_1`."""
    outcome, job_id = row
    return Fired(outcome, None if job_id is None else decode_id(job_id))
