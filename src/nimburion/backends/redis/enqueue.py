"""The way in: what `enqueue.lua` and `look.lua` are asked, and what they answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from nimburion.backends.redis.encoding import (
    FLAG_OPTIONS,
    encode_body,
    encode_position,
    encode_unique_key,
    reject_unstorable_text,
)
from nimburion.backends.redis.scripts import Script
from nimburion.backends.redis.url import RedisSettings
from nimburion.backends.server.encoding import decode_id, encode_id
from nimburion.core.errors import BackendUnavailable
from nimburion.core.job import Enqueued, NewJob

BATCH_SIZE = 500
"""Jobs that one script stores: what `Capabilities.atomic_batch` says."""

_GENERAL_FLAGS = ~FLAG_OPTIONS
"""Flags of a body that `enqueue_one.lua` does not take."""
_OUTCOMES = {"c": "created", "e": "exists", "x": "conflict", "t": "taken", "r": "refused"}

EnqueueReply = tuple[bytes, list[bytes | int]]
"""A letter for each job; and by place who holds its unique key."""


class EncodedBatch(NamedTuple):
    """Jobs that are stored in one step, as the script takes them."""

    positions: bytes
    lanes: list[bytes]
    bodies: list[bytes]
    large_payloads: list[bytes]

    def make_arguments(self) -> list[bytes]:
        """In their order."""
        return [
            self.positions,
            b"%d" % len(self.lanes),
            *self.lanes,
            *self.bodies,
            *self.large_payloads,
        ]


@reject_unstorable_text
def encode_batch(jobs: Sequence[NewJob]) -> EncodedBatch:
    """Pack up to 500 jobs.

    Raises:
        Unstorable: a time or a text that cannot be.
    """
    lanes: dict[tuple[str, str], int] = {}
    metas, bodies, apart = [], [], []
    for job in jobs:
        lane = lanes.setdefault((job.queue, job.name), len(lanes) + 1)
        metas.append(encode_position(job, lane))
        body, payload = encode_body(job)
        bodies.append(body)
        if payload is not None:
            apart.append(payload)
    names = [f"{queue}\0{name}".encode() for queue, name in lanes]
    return EncodedBatch(b"".join(metas), names, bodies, apart)


@reject_unstorable_text
def encode_single(job: NewJob) -> list[bytes] | None:
    """What `enqueue_one.lua` takes; None for a job that needs more than that.

    Raises:
        Unstorable: a time or a text that cannot be.
    """
    body, _ = encode_body(job)
    if body[0] & _GENERAL_FLAGS:
        return None
    lane, queue = f"{job.queue}\0{job.name}".encode(), job.queue.encode()
    return [encode_position(job, 0)[2:], lane, queue, encode_id(job.id), body]


def make_single_result(job: NewJob, letter: bytes) -> list[Enqueued]:
    """What became of one."""
    return [Enqueued(job.id, _OUTCOMES[letter.decode()])]  # type: ignore[arg-type]


def encode_batches(jobs: Sequence[NewJob]) -> list[EncodedBatch]:
    """All of a call, each slice packed before the first is sent: bad data refuses the call."""
    return [encode_batch(jobs[at : at + BATCH_SIZE]) for at in range(0, len(jobs), BATCH_SIZE)]


def make_results(jobs: Sequence[NewJob], reply: EnqueueReply) -> list[Enqueued]:
    """What became of each."""
    letters, told = reply
    if letters.count(b"c") == len(jobs):
        return [Enqueued(job.id, "created") for job in jobs]
    rivals = dict(zip(told[::2], told[1::2], strict=True))
    return [
        Enqueued(_decode_holder(rivals.get(place)) or job.id, _OUTCOMES[chr(letter)])  # type: ignore[arg-type]
        for place, (job, letter) in enumerate(zip(jobs, letters, strict=True), start=1)
    ]


def _decode_holder(value: bytes | int | None) -> str | None:
    return decode_id(value) if isinstance(value, bytes) else None


@reject_unstorable_text
def encode_lookups(jobs: Sequence[NewJob]) -> list[bytes]:
    """What `look.lua` is asked of a call that has more than one slice."""
    asked: list[bytes] = []
    for job in jobs:
        asked += (encode_id(job.id), job.compute_digest(), encode_unique_key(job))
    return asked


def predict_refusal(jobs: Sequence[NewJob], reply: EnqueueReply) -> list[Enqueued] | None:
    """The answer to the whole call, if one of it is refused already; None: go on and store it."""
    letters, told = reply
    rivals = dict(zip(told[::2], told[1::2], strict=True))
    bodies: dict[str, bytes] = {}
    keys: dict[bytes, str] = {}
    results = []
    for place, (job, letter) in enumerate(zip(jobs, letters, strict=True), start=1):
        results.append(
            _predict_outcome(job, chr(letter), _decode_holder(rivals.get(place)), bodies, keys)
        )
    if all(result.outcome not in {"conflict", "taken"} for result in results):
        return None
    return [
        result if result.outcome in {"conflict", "taken"} else Enqueued(job.id, "refused")
        for job, result in zip(jobs, results, strict=True)
    ]


def _predict_outcome(
    job: NewJob, letter: str, holder: str | None, bodies: dict[str, bytes], keys: dict[bytes, str]
) -> Enqueued:
    """One job, also in the light of earlier ones of its call."""
    if letter in "ex":
        return Enqueued(job.id, "exists" if letter == "e" else "conflict")
    known = bodies.get(job.id)
    if known is not None:
        return Enqueued(job.id, "exists" if known == job.compute_digest() else "conflict")
    field = encode_unique_key(job)
    holder = keys.get(field) or holder if field else None
    if holder is not None:
        lenient = job.options.on_duplicate == "existing"
        return Enqueued(holder, "exists" if lenient else "taken")
    bodies[job.id] = job.compute_digest()
    if field:
        keys[field] = job.id
    return Enqueued(job.id, "created")


_FLUSH_TIMEOUT_SHARE = 0.8
"""Of the time for an answer: what is left is for the way."""

FlushCommand = tuple[bytes | int, ...]


def make_flush_commands(
    touch: Script, keys: Sequence[bytes], settings: RedisSettings
) -> list[FlushCommand]:
    """The commands, behind an enqueue in its trip, that wait until the append-only file holds all
    that was written before them, fsync done. The first writes something (see `flush.lua`)."""
    write: FlushCommand = (b"EVAL", touch.text, len(keys), *keys)
    return [write, (b"WAITAOF", 1, 0, int(settings.timeout * 1000 * _FLUSH_TIMEOUT_SHARE))]


def check_flushed(replies: Sequence[Any], settings: RedisSettings) -> None:
    """Raise `BackendUnavailable` (outcome `applied`) where the fsync did not come in time."""
    _, (local, _) = replies
    if local < 1:
        raise BackendUnavailable(
            f"{settings.describe()}: stored, but not on the server's disk within "
            f"{settings.timeout * _FLUSH_TIMEOUT_SHARE:g} s; is its disk slow, or a rewrite under "
            "way?",
            outcome="applied",
        )
