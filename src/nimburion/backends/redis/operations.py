"""Operator calls and schedules: encode script arguments and decode replies."""

from __future__ import annotations

from typing import Any

from nimburion.backends.redis.encoding import (
    encode_lookup_text,
    encode_time,
    reject_unstorable_text,
)
from nimburion.backends.redis.enqueue import encode_batch
from nimburion.backends.redis.record_format import NEVER
from nimburion.backends.server.encoding import decode_id, encode_json, to_micros
from nimburion.core.errors import JobNotFound
from nimburion.core.job import NewJob
from nimburion.core.limits import LimitChange
from nimburion.core.operations import Cancellation, Retention
from nimburion.core.schedules import Fired, Overlap, encode_tick

_ENDED_SESSION_RETENTION = 86_400.0
"""Seconds for which the id of an ended session is kept."""


def decode_cancellation(reply: bytes, job_id: str) -> Cancellation:
    """Decode the reply of `cancel.lua`.

    Raises:
        JobNotFound: there is no such job.
    """
    if reply == b"missing":
        raise JobNotFound(job_id)
    return Cancellation(reply.decode())


@reject_unstorable_text
def encode_pause(queue: str, by: str, reason: str, until: float | None) -> list[bytes]:
    """Return the arguments of `pause_queue.lua` that pause a queue.

    Raises:
        Unstorable: the time or a text cannot be stored.
    """
    end = NEVER if until is None else encode_time(to_micros(until))
    return [queue.encode(), end, encode_json((by, reason))]


def encode_resume(queue: str) -> list[bytes]:
    """Return the arguments of `pause_queue.lua` that resume a queue."""
    return [encode_lookup_text(queue), b"", b""]


@reject_unstorable_text
def encode_limit_change(change: LimitChange) -> list[bytes]:
    """Return the arguments of `change_limit.lua` that change a limit."""
    return [*_encode_limit(change.name, change.key), encode_json(change)]


def encode_limit_reset(name: str, key: str | None) -> list[bytes]:
    """Return the arguments of `change_limit.lua` that reset a limit."""
    return [*_encode_limit(name, key), b""]


def _encode_limit(name: str, key: str | None) -> list[bytes]:
    return [
        encode_lookup_text(name),
        b"0" if key is None else b"1",
        encode_lookup_text(key or ""),
    ]


def encode_retention(keep: Retention) -> list[bytes]:
    """Return the arguments of `prune.lua` that follow its limit."""
    spans = (keep.completed, keep.failed, keep.results)
    most = b"" if keep.completed_max is None else b"%d" % keep.completed_max
    return [*(_encode_span(span) for span in spans), most, _encode_span(_ENDED_SESSION_RETENTION)]


def _encode_span(seconds: float | None) -> bytes:
    return b"" if seconds is None else b"%d" % to_micros(seconds)


def encode_fire(
    name: str, ticks: tuple[float | None, float], job: NewJob, overlap: Overlap
) -> list[bytes]:
    """Return the arguments of `fire.lua`. `ticks` holds the expected last tick and the new tick, in
    seconds.

    Raises:
        Unstorable: a time or a text of the job cannot be stored.
    """
    expected, tick = ticks
    one = encode_batch([job])
    return [
        encode_lookup_text(name),
        b"" if expected is None else encode_tick(expected).encode(),
        encode_tick(tick).encode(),
        overlap.encode(),
        one.positions,
        *one.lanes,
        *one.bodies,
        *one.large_payloads,
    ]


def decode_fired(reply: list[Any]) -> Fired:
    """Decode the reply of `fire.lua`."""
    outcome, job_id = reply
    return Fired(outcome.decode(), decode_id(job_id) if job_id else None)
