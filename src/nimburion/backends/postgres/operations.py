"""What operators do: what the functions are asked, and what they answer."""

from __future__ import annotations

from typing import Any

from nimburion.backends.postgres.encoding import encode_text, reject_unstorable_text
from nimburion.backends.server.encoding import decode_id, encode_id, to_micros
from nimburion.core.errors import JobNotFound
from nimburion.core.operations import Cancellation, Replayed, Retention
from nimburion.core.schedules import Fired, ScheduleRecord


def decode_cancellation(reply: str, job_id: str) -> Cancellation:
    """What `cancel_1` answered.

    Raises:
        JobNotFound: there is no such job.
    """
    if reply == "missing":
        raise JobNotFound(job_id)
    return Cancellation(reply)


def decode_replayed(rows: list[Any]) -> Replayed:
    """What `replay_1` answered; its last row says whether there are more."""
    ids = [decode_id(job_id) for _, job_id, replayed, _ in rows if job_id and replayed]
    held = [decode_id(job_id) for _, job_id, replayed, _ in rows if job_id and not replayed]
    more = len(rows) > 1 and rows[-1][1] is None
    return Replayed(ids, held, str(rows[-2][0]) if more else None)


def encode_retention(keep: Retention) -> list[Any]:
    """What `prune_1` takes before its bound."""
    spans = (keep.completed, keep.failed, keep.results)
    return [*(None if one is None else to_micros(one) for one in spans), keep.completed_max]


@reject_unstorable_text
def encode_schedule(schedule: ScheduleRecord) -> list[Any]:
    """What `put_schedule_1` takes."""
    return [
        encode_text(schedule.name),
        schedule.spec,
        encode_text(schedule.owner),
        schedule.paused,
        schedule.last_tick,
        None if schedule.last_job is None else encode_id(schedule.last_job),
    ]


def decode_schedules(rows: list[Any]) -> list[ScheduleRecord]:
    """All schedules, by name."""
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
    """What `fire_1` answered."""
    outcome, job_id = row
    return Fired(outcome, None if job_id is None else decode_id(job_id))
