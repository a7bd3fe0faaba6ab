"""Enqueue: encode the arguments and decode the replies of `enqueue.lua` and `check_enqueue.lua`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from nimburion.backends.redis.encoding import (
    encode_body,
    encode_position,
    encode_unique_key,
    reject_unstorable_text,
)
from nimburion.backends.redis.record_format import (
    CONFLICT,
    CREATED,
    EXISTS,
    FLAG_OPTIONS,
    FLAG_SUSPENDED,
    REFUSED,
    REPLACEABLE,
    REPLACED,
    TAKEN,
)
from nimburion.backends.redis.scripts import Script
from nimburion.backends.redis.url import RedisSettings
from nimburion.backends.server.encoding import decode_id, encode_id
from nimburion.core.errors import BackendUnavailable
from nimburion.core.ids import compute_digest
from nimburion.core.job import Enqueued, NewJob

BATCH_SIZE = 500
"""The number of jobs that one script stores; equal to `Capabilities.atomic_batch`."""

_GENERAL_FLAGS = ~FLAG_OPTIONS
"""The body flags that `enqueue_one.lua` does not support."""
_OUTCOMES = {
    CREATED[0]: "created",
    EXISTS[0]: "exists",
    CONFLICT[0]: "conflict",
    TAKEN[0]: "taken",
    REFUSED[0]: "refused",
    REPLACED[0]: "replaced",
}

EnqueueReply = tuple[bytes, list[bytes | int]]
"""One code per job, then pairs of a job's place in the batch and the id that holds its unique
key.
"""


class EncodedBatch(NamedTuple):
    """Jobs that are stored atomically, encoded for the script."""

    positions: bytes
    lanes: list[bytes]
    bodies: list[bytes]
    large_payloads: list[bytes]
    has_conditions: bool
    """Whether a job has conditions."""

    def make_arguments(self) -> list[bytes]:
        """Return the arguments in the order that the script expects."""
        return [
            self.positions,
            b"%d" % len(self.lanes),
            *self.lanes,
            *self.bodies,
            *self.large_payloads,
        ]


@reject_unstorable_text
def encode_batch(jobs: Sequence[NewJob]) -> EncodedBatch:
    """Encode up to 500 jobs.

    Raises:
        Unstorable: a time or a text cannot be stored.
    """
    lanes: dict[tuple[str, str], int] = {}
    metas, bodies, apart, flags = [], [], [], 0
    for job in jobs:
        lane = lanes.setdefault((job.queue, job.name), len(lanes) + 1)
        metas.append(encode_position(job, lane))
        body, payload = encode_body(job)
        bodies.append(body)
        flags |= body[0]
        if payload is not None:
            apart.append(payload)
    names = [f"{queue}\0{name}".encode() for queue, name in lanes]
    return EncodedBatch(b"".join(metas), names, bodies, apart, bool(flags & FLAG_SUSPENDED))


@reject_unstorable_text
def encode_single(job: NewJob) -> list[bytes] | None:
    """Return the arguments of `enqueue_one.lua`; None if the job needs `enqueue.lua`. If the
    lane of the job is new, the script replies `UNKNOWN_LANE`, and the job needs `enqueue.lua` too.

    Raises:
        Unstorable: a time or a text cannot be stored.
    """
    body, _ = encode_body(job)
    if body[0] & _GENERAL_FLAGS:
        return None
    return [encode_position(job, 0)[2:], f"{job.queue}\0{job.name}".encode(), body]


def make_single_result(job: NewJob, code: bytes) -> list[Enqueued]:
    """Decode the result for one job."""
    return [Enqueued(job.id, _OUTCOMES[code[0]])]  # type: ignore[arg-type]


def encode_batches(jobs: Sequence[NewJob]) -> list[EncodedBatch]:
    """Encode all jobs of a call. All batches are encoded before the first is sent, so invalid data
    rejects the whole call.
    """
    return [
        encode_batch(jobs[at : at + BATCH_SIZE]) for at in range(0, max(1, len(jobs)), BATCH_SIZE)
    ]


def make_results(jobs: Sequence[NewJob], reply: EnqueueReply) -> list[Enqueued]:
    """Decode the results of one batch, one per job."""
    codes, holders = reply
    if codes.count(CREATED) == len(jobs):
        return [Enqueued(job.id, "created") for job in jobs]
    rivals = dict(zip(holders[::2], holders[1::2], strict=True))
    return [
        Enqueued(_decode_holder(rivals.get(place)) or job.id, _OUTCOMES[code])  # type: ignore[arg-type]
        for place, (job, code) in enumerate(zip(jobs, codes, strict=True), start=1)
    ]


def _decode_holder(value: bytes | int | None) -> str | None:
    return decode_id(value) if isinstance(value, bytes) else None


@reject_unstorable_text
def encode_lookups(jobs: Sequence[NewJob]) -> list[bytes]:
    """Return the arguments of `check_enqueue.lua` for a call of more than one batch."""
    lookups: list[bytes] = []
    for job in jobs:
        key = encode_unique_key(job)
        if key:
            key = (b"1" if job.options.on_duplicate == "replace" else b"0") + key
        lookups += (encode_id(job.id), compute_digest(job.name, job.payload), key)
    return lookups


def predict_refusal(jobs: Sequence[NewJob], reply: EnqueueReply) -> list[Enqueued] | None:
    """Return the results of the whole call if one of its jobs is already rejected, else None. None
    means that the jobs can be stored.
    """
    codes, holders = reply
    rivals = dict(zip(holders[::2], holders[1::2], strict=True))
    bodies: dict[str, bytes] = {}
    keys: dict[bytes, str] = {}
    results = []
    for place, (job, code) in enumerate(zip(jobs, codes, strict=True), start=1):
        results.append(_predict_outcome(job, code, _decode_holder(rivals.get(place)), bodies, keys))
    if all(result.outcome not in {"conflict", "taken"} for result in results):
        return None
    return [
        result if result.outcome in {"conflict", "taken"} else Enqueued(job.id, "refused")
        for job, result in zip(jobs, results, strict=True)
    ]


def _predict_outcome(
    job: NewJob, code: int, holder: str | None, bodies: dict[str, bytes], keys: dict[bytes, str]
) -> Enqueued:
    """Predict the result for one job. Earlier jobs of the same call are taken into account."""
    if code in {EXISTS[0], CONFLICT[0]}:
        return Enqueued(job.id, _OUTCOMES[code])  # type: ignore[arg-type]
    known = bodies.get(job.id)
    if known is not None:
        return Enqueued(
            job.id, "exists" if known == compute_digest(job.name, job.payload) else "conflict"
        )
    if holder is not None and code == REPLACED[0]:
        return Enqueued(holder, "replaced")
    field = encode_unique_key(job)
    earlier = keys.get(field) if field else None
    holder = earlier or holder
    if holder is not None:
        if job.options.on_duplicate == "existing":
            return Enqueued(holder, "exists")
        can_replace = earlier is not None or code == REPLACEABLE[0]
        replaces = job.options.on_duplicate == "replace" and can_replace
        return Enqueued(holder, "replaced" if replaces else "taken")
    bodies[job.id] = compute_digest(job.name, job.payload)
    if field:
        keys[field] = job.id
    return Enqueued(job.id, "created")


_FLUSH_TIMEOUT_SHARE = 0.8
"""The share of the reply timeout that WAITAOF may use; the rest is for the network."""

FlushCommand = tuple[bytes | int, ...]


def make_flush_commands(
    touch: Script, keys: Sequence[bytes], settings: RedisSettings
) -> list[FlushCommand]:
    """Return the commands that follow an enqueue in the same request and wait for the disk. They
    return when the append-only file holds all earlier writes and is synced (fsync). The first
    command performs a write (see `flush.lua`).
    """
    write: FlushCommand = (b"EVAL", touch.text, len(keys), *keys)
    return [write, (b"WAITAOF", 1, 0, int(settings.timeout * 1000 * _FLUSH_TIMEOUT_SHARE))]


def check_flushed(replies: Sequence[Any], settings: RedisSettings) -> None:
    """Raise `BackendUnavailable` (outcome `applied`) if the fsync did not finish in time."""
    _, (local, _) = replies
    if local < 1:
        raise BackendUnavailable(
            f"{settings.describe()}: stored, but not on the server's disk within "
            f"{settings.timeout * _FLUSH_TIMEOUT_SHARE:g} s; check for a slow disk or a running "
            "rewrite",
            outcome="applied",
        )
