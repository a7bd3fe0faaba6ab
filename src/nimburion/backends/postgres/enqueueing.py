"""The way in: what `enqueue_1` is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nimburion.backends.postgres.records import (
    ended_since,
    micros,
    options_text,
    pack_id,
    refusing,
    text_of,
    unpack_id,
)
from nimburion.core.job import NO_OPTIONS, Enqueued, NewJob

_OUTCOMES = {"c": "created", "e": "exists", "x": "conflict", "t": "taken", "r": "refused"}


@refusing
def arguments_of(jobs: Sequence[NewJob]) -> list[Any]:
    """What the function takes behind the time, in its order.

    Raises:
        Unstorable: a time or a text that cannot be.
    """
    lanes: dict[tuple[str, str, int], int] = {}
    places = [
        lanes.setdefault((job.queue, job.name, 9 - job.priority), len(lanes) + 1) for job in jobs
    ]
    ids = [pack_id(job.id) for job in jobs]
    plain = all(job.options is NO_OPTIONS or job.options == NO_OPTIONS for job in jobs)
    return [
        [text_of(queue) for queue, _, _ in lanes],
        [text_of(name) for _, name, _ in lanes],
        [rank for _, _, rank in lanes],
        places,
        ids,
        [job.digest() for job in jobs],
        [job.payload for job in jobs],
        None if plain else [options_text(job.options) for job in jobs],
        *_times_of(jobs),
        *((None, None, None) if plain else _keys_of(jobs)),
        ended_since(ids),
    ]


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
