"""Enqueue: encode the arguments and decode the results of `enqueue_1` and its fast paths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from nimburion.backends.postgres.encoding import (
    MIN_INT8,
    NeedsGeneralPath,
    compute_earliest_end,
    encode_options,
    encode_text,
    encode_uuids,
    reject_unstorable_text,
)
from nimburion.backends.server.encoding import decode_id, encode_id
from nimburion.core.ids import compute_digest, compute_digests
from nimburion.core.job import NO_JOB_OPTIONS, Enqueued, NewJob
from nimburion.core.timing.clock import to_micros

MAX_SINGLE_STATEMENT = 500
"""The largest number of jobs in a single statement. A larger call uses several statements; each
batch is encoded while the server runs the previous one.
"""

_FIRST_BATCH = 125
_GROWTH = 2.5
"""The growth factor of the batch size. Encoding takes less than half as long as storing, so a batch
can be 2.5 times as large as the one before.
"""
_MAX_BATCH = 2_000

_OUTCOMES = {
    "c": "created",
    "e": "exists",
    "p": "replaced",
    "x": "conflict",
    "t": "taken",
    "r": "refused",
}
_NO_UNIQUE_KEYS: tuple[None, ...] = (None,) * 5
"""The arguments about unique keys when no job has one."""


@reject_unstorable_text
def encode_arguments(jobs: Sequence[NewJob]) -> list[Any]:
    """Return the arguments of the function after the time, in order.

    Raises:
        Unstorable: a time or a text cannot be stored.
    """
    if not jobs:
        return [[], [], [], [], [], [], [], None, None, None, *_NO_UNIQUE_KEYS, MIN_INT8]
    named, places = _encode_lanes(jobs)
    ids = [encode_id(job.id) for job in jobs]
    plain = all(job.options is NO_JOB_OPTIONS or job.options == NO_JOB_OPTIONS for job in jobs)
    return [
        *named,
        places,
        ids,
        compute_digests(jobs),
        [job.payload for job in jobs],
        None if plain else [encode_options(job.options) for job in jobs],
        *_encode_times(jobs),
        *(_NO_UNIQUE_KEYS if plain else _encode_unique_keys(jobs)),
        compute_earliest_end(ids),
    ]


def is_plain(job: NewJob) -> bool:
    """Whether the job has neither options nor a due time."""
    return job.options is NO_JOB_OPTIONS and job.at is None and not job.after


def encode_batches(jobs: Sequence[NewJob]) -> Iterator[list[Any]]:
    """Yield the arguments of `enqueue_plain_1` after the time, batch by batch. Each batch is
    encoded on demand.

    Raises:
        Unstorable: a text cannot be stored.
        NeedsGeneralPath: the jobs need `enqueue_1`.
    """
    start, size = 0, len(jobs) if len(jobs) <= MAX_SINGLE_STATEMENT else _FIRST_BATCH
    while start < len(jobs):
        yield _encode_batch(jobs[start : start + size])
        start, size = start + size, min(int(size * _GROWTH), _MAX_BATCH)


@reject_unstorable_text
def _encode_batch(jobs: Sequence[NewJob]) -> list[Any]:
    if not all(map(is_plain, jobs)):
        raise NeedsGeneralPath
    named, places = _encode_lanes(jobs)
    ids = [job.id for job in jobs]
    least, greatest = encode_id(min(ids)), encode_id(max(ids))
    payloads = [job.payload for job in jobs]
    return [
        *named,
        None if len(named[0]) == 1 else places,
        encode_uuids(ids),
        b"".join(compute_digests(jobs)),
        least,
        greatest,
        b"".join(payloads),
        [0, *accumulate(map(len, payloads))],
        compute_earliest_end([least]),
    ]


def _encode_lanes(
    jobs: Sequence[NewJob],
) -> tuple[tuple[list[str], list[str], list[int]], list[int]]:
    """Return the lanes (queues, names, ranks), and for each job the index of its lane, from 1."""
    lanes: dict[tuple[str, str, int], int] = {}
    places = [
        lanes.setdefault((_name_queue(job), job.name, 9 - job.priority), len(lanes) + 1)
        for job in jobs
    ]
    queues, names, ranks = zip(*lanes, strict=True)
    return ([*map(encode_text, queues)], [*map(encode_text, names)], [*ranks]), places


def _name_queue(job: NewJob) -> str:
    """Return the queue, with a newline and the tenant if the job waits for its turn."""
    tenant = None if job.options is NO_JOB_OPTIONS else job.options.fair_tenant
    return f"{job.queue}\n{tenant}" if tenant else job.queue


@reject_unstorable_text
def encode_single(job: NewJob) -> list[Any] | None:
    """Return the arguments of `enqueue_one_1` after the time; None if the job needs `enqueue_1`."""
    queue, options = job.queue, None
    if job.options is not NO_JOB_OPTIONS:
        queue, options = _name_queue(job), encode_options(job.options)
    if job.at is not None or job.after or job.options.unique_key is not None:
        return None
    packed = encode_id(job.id)
    return [
        encode_text(queue),
        encode_text(job.name),
        9 - job.priority,
        packed,
        compute_digest(job.name, job.payload),
        job.payload,
        options,
        compute_earliest_end([packed]),
    ]


def _encode_times(jobs: Sequence[NewJob]) -> tuple[list[int | None] | None, list[int] | None]:
    """Return the due times and the delays of the jobs; None in place of a list without values."""
    ats = afters = None
    if any(job.at is not None for job in jobs):
        ats = [None if job.at is None else to_micros(job.at) for job in jobs]
    if any(job.after for job in jobs):
        afters = [0 if job.at is not None else max(0, to_micros(job.after)) for job in jobs]
    return ats, afters


def _encode_unique_keys(jobs: Sequence[NewJob]) -> tuple[list[Any] | None, ...]:
    """Return unique keys, spans, states, what happens on a duplicate, and the longest waits."""
    if all(job.options.unique_key is None for job in jobs):
        return _NO_UNIQUE_KEYS
    options = [job.options for job in jobs]
    return (
        [o.unique_key and encode_text(o.unique_key) for o in options],
        [_encode_span(o.unique_for) for o in options],
        [None if o.unique_while is None else ",".join(o.unique_while) for o in options],
        [o.on_duplicate for o in options],
        [_encode_span(o.max_wait) for o in options],
    )


def _encode_span(seconds: float | None) -> int | None:
    return None if seconds is None else max(0, to_micros(seconds))


def make_results(jobs: Sequence[NewJob], outcomes: str | None, holders: Any) -> list[Enqueued]:  # noqa: ANN401 - a row
    """Decode the results, one per job."""
    if outcomes is None:
        return [Enqueued(job.id, "created") for job in jobs]
    return [
        Enqueued(decode_id(holder) if holder else job.id, _OUTCOMES[letter])  # type: ignore[arg-type]
        for job, letter, holder in zip(jobs, outcomes, holders, strict=True)
    ]
