"""What operators do: what the scripts are asked, and what they answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nimburion.backends.packing import micros, unpack_id
from nimburion.backends.redis.seeking import cursor_of
from nimburion.core.errors import JobNotFound
from nimburion.core.reading import Cancellation, Replayed, Retention

_TOMBSTONE = 86_400.0
"""Seconds for which the id of a session that is over is remembered."""


def cancellation_of(answer: bytes, job_id: str) -> Cancellation:
    """What `cancel.lua` answered.

    Raises:
        JobNotFound: there is no such job.
    """
    if answer == b"missing":
        raise JobNotFound(job_id)
    return Cancellation(answer.decode())


def replayed_of(answers: Sequence[list[Any]]) -> Replayed:
    """What calls of `replay.lua` answered together; the last says whether more are meant."""
    ids = [unpack_id(packed) for answer in answers for packed in answer[2]]
    held = [unpack_id(packed) for answer in answers for packed in answer[3]]
    last = next((answer[4] for answer in reversed(answers) if answer[4]), b"")
    more = bool(answers) and answers[-1][5] and last
    return Replayed(ids, held, cursor_of(last) if more else None)


def pruning_of(keep: Retention) -> list[bytes]:
    """What `prune.lua` takes behind its bound."""
    spans = (keep.completed, keep.failed, keep.results)
    most = b"" if keep.completed_max is None else b"%d" % keep.completed_max
    return [*(_span(one) for one in spans), most, _span(_TOMBSTONE)]


def _span(seconds: float | None) -> bytes:
    return b"" if seconds is None else b"%d" % micros(seconds)
