"""The way in: what `enqueue_1` is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from nimburion.backends.postgres.encoding import (
    NotPlain,
    ended_since,
    options_text,
    pack_uuids,
    refusing,
    text_of,
)
from nimburion.backends.server.encoding import micros, pack_id, unpack_id
from nimburion.core.job import NO_OPTIONS, Enqueued, NewJob, digests

ALONE = 500
"""Jobs of a call that is one statement. A larger one is several, packed while the last runs."""

_FIRST = 125
_GROWTH = 2.5
"""To pack takes less than half as long as to store."""
_MOST = 2_000

_OUTCOMES = {"c": "created", "e": "exists", "x": "conflict", "t": "taken", "r": "refused"}


@refusing
def arguments_of(jobs: Sequence[NewJob]) -> list[Any]:
    """What the function takes behind the time, in its order.

    Raises:
        Unstorable: a time or a text that cannot be.
    """
    named, places = _lanes_of(jobs)
    ids = [pack_id(job.id) for job in jobs]
    plain = all(job.options is NO_OPTIONS or job.options == NO_OPTIONS for job in jobs)
    return [
        *named,
        places,
        ids,
        digests(jobs),
        [job.payload for job in jobs],
        None if plain else [options_text(job.options) for job in jobs],
        *_times_of(jobs),
        *((None, None, None) if plain else _keys_of(jobs)),
        ended_since(ids),
    ]


def is_plain(job: NewJob) -> bool:
    """Whether it says no more than what it is."""
    return job.options is NO_OPTIONS and job.at is None and not job.after


def parts_of(jobs: Sequence[NewJob]) -> Iterator[list[Any]]:
    """What `enqueue_plain_1` takes behind the time, part by part, each packed when it is asked for.

    Raises:
        Unstorable: a text that cannot be.
        NotPlain: `enqueue_1` is to be asked.
    """
    start, size = 0, len(jobs) if len(jobs) <= ALONE else _FIRST
    while start < len(jobs):
        yield _part_of(jobs[start : start + size])
        start, size = start + size, min(int(size * _GROWTH), _MOST)


@refusing
def _part_of(jobs: Sequence[NewJob]) -> list[Any]:
    if not all(map(is_plain, jobs)):
        raise NotPlain
    named, places = _lanes_of(jobs)
    ids = [job.id for job in jobs]
    least, greatest = pack_id(min(ids)), pack_id(max(ids))
    payloads = [job.payload for job in jobs]
    return [
        *named,
        None if len(named[0]) == 1 else places,
        pack_uuids(ids),
        b"".join(digests(jobs)),
        least,
        greatest,
        b"".join(payloads),
        [0, *accumulate(map(len, payloads))],
        ended_since([least]),
    ]


def _lanes_of(jobs: Sequence[NewJob]) -> tuple[tuple[list[str], list[str], list[int]], list[int]]:
    """The lanes (queues, names, ranks), and by job in which of them it stands, from 1."""
    lanes: dict[tuple[str, str, int], int] = {}
    places = [
        lanes.setdefault((job.queue, job.name, 9 - job.priority), len(lanes) + 1) for job in jobs
    ]
    queues, names, ranks = zip(*lanes, strict=True)
    return ([*map(text_of, queues)], [*map(text_of, names)], [*ranks]), places


@refusing
def alone(job: NewJob) -> list[Any] | None:
    """What `enqueue_one_1` takes behind the time; None for a job that needs more than that."""
    options = None if job.options is NO_OPTIONS else options_text(job.options)
    if job.at is not None or job.after or job.options.unique_key is not None:
        return None
    packed = pack_id(job.id)
    return [
        text_of(job.queue),
        text_of(job.name),
        9 - job.priority,
        packed,
        job.digest(),
        job.payload,
        options,
        ended_since([packed]),
    ]


def _times_of(jobs: Sequence[NewJob]) -> tuple[list[int | None] | None, list[int] | None]:
    """When each is due, and after how long; None where none says so."""
    ats = afters = None
    if any(job.at is not None for job in jobs):
        ats = [None if job.at is None else micros(job.at) for job in jobs]
    if any(job.after for job in jobs):
        afters = [0 if job.at is not None else max(0, micros(job.after)) for job in jobs]
    return ats, afters


def _keys_of(
    jobs: Sequence[NewJob],
) -> tuple[list[str | None] | None, list[int | None] | None, list[bool] | None]:
    """The unique keys, how long they are held, and whether a holder will do."""
    if all(job.options.unique_key is None for job in jobs):
        return None, None, None
    keys = [job.options.unique_key and text_of(job.options.unique_key) for job in jobs]
    spans = [
        None if job.options.unique_for is None else max(0, micros(job.options.unique_for))
        for job in jobs
    ]
    return keys, spans, [job.options.on_duplicate == "existing" for job in jobs]


def results_of(jobs: Sequence[NewJob], letters: str | None, holders: Any) -> list[Enqueued]:  # noqa: ANN401 - a row
    """What became of each."""
    if letters is None:
        return [Enqueued(job.id, "created") for job in jobs]
    return [
        Enqueued(unpack_id(holder) if holder else job.id, _OUTCOMES[letter])  # type: ignore[arg-type]
        for job, letter, holder in zip(jobs, letters, holders, strict=True)
    ]
