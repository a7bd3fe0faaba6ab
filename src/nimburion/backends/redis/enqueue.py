"""The way in: what `enqueue.lua` and `look.lua` are asked, and what they answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from nimburion.backends.redis.encoding import OPTIONS, body_of, key_field, meta_of, refusing
from nimburion.backends.redis.scripts import Script
from nimburion.backends.redis.url import Address
from nimburion.backends.server.encoding import pack_id, unpack_id
from nimburion.core.errors import BackendUnavailable
from nimburion.core.job import Enqueued, NewJob

SLICE = 500
"""Jobs that one script stores: what `Capabilities.atomic_batch` says."""

_PLAIN = ~OPTIONS
"""Flags of a body that `enqueue_one.lua` does not take."""
_OUTCOMES = {"c": "created", "e": "exists", "x": "conflict", "t": "taken", "r": "refused"}

Answer = tuple[bytes, list[bytes | int]]
"""A letter for each job; and by place who holds its unique key."""


class Slice(NamedTuple):
    """Jobs that are stored in one step, as the script takes them."""

    metas: bytes
    lanes: list[bytes]
    bodies: list[bytes]
    apart: list[bytes]

    def arguments(self) -> list[bytes]:
        """In their order."""
        return [self.metas, b"%d" % len(self.lanes), *self.lanes, *self.bodies, *self.apart]


@refusing
def slice_of(jobs: Sequence[NewJob]) -> Slice:
    """Pack up to 500 jobs.

    Raises:
        Unstorable: a time or a text that cannot be.
    """
    lanes: dict[tuple[str, str], int] = {}
    metas, bodies, apart = [], [], []
    for job in jobs:
        lane = lanes.setdefault((job.queue, job.name), len(lanes) + 1)
        metas.append(meta_of(job, lane))
        body, payload = body_of(job)
        bodies.append(body)
        if payload is not None:
            apart.append(payload)
    names = [f"{queue}\0{name}".encode() for queue, name in lanes]
    return Slice(b"".join(metas), names, bodies, apart)


@refusing
def alone(job: NewJob) -> list[bytes] | None:
    """What `enqueue_one.lua` takes; None for a job that needs more than that.

    Raises:
        Unstorable: a time or a text that cannot be.
    """
    body, _ = body_of(job)
    if body[0] & _PLAIN:
        return None
    lane, queue = f"{job.queue}\0{job.name}".encode(), job.queue.encode()
    return [meta_of(job, 0)[2:], lane, queue, pack_id(job.id), body]


def result_of(job: NewJob, letter: bytes) -> list[Enqueued]:
    """What became of one."""
    return [Enqueued(job.id, _OUTCOMES[letter.decode()])]  # type: ignore[arg-type]


def slices_of(jobs: Sequence[NewJob]) -> list[Slice]:
    """All of a call, each slice packed before the first is sent: bad data refuses the call."""
    return [slice_of(jobs[at : at + SLICE]) for at in range(0, len(jobs), SLICE)]


def results_of(jobs: Sequence[NewJob], answer: Answer) -> list[Enqueued]:
    """What became of each."""
    letters, told = answer
    if letters.count(b"c") == len(jobs):
        return [Enqueued(job.id, "created") for job in jobs]
    rivals = dict(zip(told[::2], told[1::2], strict=True))
    return [
        Enqueued(_holder(rivals.get(place)) or job.id, _OUTCOMES[chr(letter)])  # type: ignore[arg-type]
        for place, (job, letter) in enumerate(zip(jobs, letters, strict=True), start=1)
    ]


def _holder(value: bytes | int | None) -> str | None:
    return unpack_id(value) if isinstance(value, bytes) else None


@refusing
def questions_of(jobs: Sequence[NewJob]) -> list[bytes]:
    """What `look.lua` is asked of a call that has more than one slice."""
    asked: list[bytes] = []
    for job in jobs:
        asked += (pack_id(job.id), job.digest(), key_field(job))
    return asked


def foreseen(jobs: Sequence[NewJob], answer: Answer) -> list[Enqueued] | None:
    """The answer to the whole call, if one of it is refused already; None: go on and store it."""
    letters, told = answer
    rivals = dict(zip(told[::2], told[1::2], strict=True))
    bodies: dict[str, bytes] = {}
    keys: dict[bytes, str] = {}
    results = []
    for place, (job, letter) in enumerate(zip(jobs, letters, strict=True), start=1):
        results.append(_foresee(job, chr(letter), _holder(rivals.get(place)), bodies, keys))
    if all(result.outcome not in {"conflict", "taken"} for result in results):
        return None
    return [
        result if result.outcome in {"conflict", "taken"} else Enqueued(job.id, "refused")
        for job, result in zip(jobs, results, strict=True)
    ]


def _foresee(
    job: NewJob, letter: str, rival: str | None, bodies: dict[str, bytes], keys: dict[bytes, str]
) -> Enqueued:
    """One job, also in the light of earlier ones of its call."""
    if letter in "ex":
        return Enqueued(job.id, "exists" if letter == "e" else "conflict")
    known = bodies.get(job.id)
    if known is not None:
        return Enqueued(job.id, "exists" if known == job.digest() else "conflict")
    field = key_field(job)
    rival = keys.get(field) or rival if field else None
    if rival is not None:
        lenient = job.options.on_duplicate == "existing"
        return Enqueued(rival, "exists" if lenient else "taken")
    bodies[job.id] = job.digest()
    if field:
        keys[field] = job.id
    return Enqueued(job.id, "created")


_SHARE = 0.8
"""Of the time for an answer: what is left is for the way."""

Command = tuple[bytes | int, ...]


def flush_by(touch: Script, keys: Sequence[bytes], address: Address) -> list[Command]:
    """The commands, behind an enqueue in its trip, that wait until the append-only file holds all
    that was written before them, fsync done. The first writes something (see `flush.lua`)."""
    write: Command = (b"EVAL", touch.text, len(keys), *keys)
    return [write, (b"WAITAOF", 1, 0, int(address.timeout * 1000 * _SHARE))]


def check_flushed(replies: Sequence[Any], address: Address) -> None:
    """Raise `BackendUnavailable` (outcome `applied`) where the fsync did not come in time."""
    _, (local, _) = replies
    if local < 1:
        raise BackendUnavailable(
            f"{address.describe()}: stored, but not on the server's disk within "
            f"{address.timeout * _SHARE:g} s; is its disk slow, or a rewrite under way?",
            outcome="applied",
        )
