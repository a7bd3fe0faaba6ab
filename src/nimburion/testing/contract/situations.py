"""Situations of a settlement: the state of the job, and the token that the caller sends.

They are the rows of the token table. Each one sets up its situation on an empty backend.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Literal

import msgspec
from msgspec.structs import replace

from nimburion.core.job import State
from nimburion.core.lease import Lease, Token
from nimburion.core.queries import JobFilter
from nimburion.core.settlement import Cancelled, Completed, Failed, Released, Retried
from nimburion.testing.contract.harness import OOPS, HandDrivenWorker, Harness

Answer = Literal["done", "already", "stale", "SessionLost"]

JOB = "the-job"


class Speaker(msgspec.Struct, frozen=True):
    """The worker that sends a settlement, and the lease that it uses."""

    worker: HandDrivenWorker
    lease: Lease


Builder = Callable[[Harness], Awaitable[Speaker]]


class Situation(msgspec.Struct, frozen=True):
    """One row: the state of the job, the token that is sent, and the answer to every settlement."""

    state: str
    token: str
    answer: Answer
    build: Builder

    @property
    def name(self) -> str:
        """The name of the row in the name of a case."""
        return f"{self.state}, {self.token}"


async def _held(stage: Harness) -> Speaker:
    await stage.add(JOB)
    worker = await stage.worker()
    return Speaker(worker, (await worker.take_one()).lease)


async def _wanted_cancelled(stage: Harness) -> Speaker:
    said = await _held(stage)
    await stage.store.cancel(JOB)
    return said


async def _overdue(stage: Harness) -> Speaker:
    said = await _held(stage)
    stage.clock.advance(said.worker.session.ttl + 1.0)
    return said


def _other_half(lease: Lease) -> Lease:
    turned = bytes(255 - byte for byte in lease.token.nonce)
    return replace(lease, token=Token(lease.token.fence, turned))


def _other_count(lease: Lease) -> Lease:
    return replace(lease, token=Token(lease.token.fence + 1, lease.token.nonce))


async def _held_other_half(stage: Harness) -> Speaker:
    said = await _held(stage)
    return Speaker(said.worker, _other_half(said.lease))


async def _held_other_count(stage: Harness) -> Speaker:
    said = await _held(stage)
    return Speaker(said.worker, _other_count(said.lease))


async def _held_by_another(stage: Harness) -> Speaker:
    said = await _held(stage)
    return Speaker(await stage.worker(), said.lease)


async def _held_again(stage: Harness) -> Speaker:
    said = await _retried(stage, delay=0.0)
    await said.worker.take_one()
    return said


async def _held_again_by_another(stage: Harness) -> Speaker:
    said = await _retried(stage, delay=0.0)
    await (await stage.worker()).take_one()
    return said


async def _held_a_third_time(stage: Harness) -> Speaker:
    said = await _held_again_settled(stage)
    await said.worker.take_one()
    return said


async def _rescued(stage: Harness) -> Speaker:
    said = await _held(stage)
    await stage.lose(said.worker)
    return said


async def _rescued_and_held(stage: Harness) -> Speaker:
    said = await _rescued(stage)
    await (await stage.worker()).take_one()
    return said


async def _rescued_other_session(stage: Harness) -> Speaker:
    """The worker has a new session and still uses its old lease."""
    said = await _rescued(stage)
    return Speaker(await stage.worker(), said.lease)


async def _left(stage: Harness) -> Speaker:
    said = await _held(stage)
    await said.worker.close(said.lease)
    return said


async def _closed(stage: Harness) -> Speaker:
    said = await _held(stage)
    await said.worker.close()
    return said


async def _released(stage: Harness) -> Speaker:
    said = await _held(stage)
    await said.worker.settle(Released(said.lease))
    return said


async def _snoozed(stage: Harness) -> Speaker:
    said = await _held(stage)
    await said.worker.settle(Released(said.lease, 60.0))
    return said


async def _retried(stage: Harness, delay: float = 60.0) -> Speaker:
    said = await _held(stage)
    await said.worker.settle(Retried(said.lease, delay, OOPS))
    return said


async def _held_again_settled(stage: Harness) -> Speaker:
    """Two deliveries, both settled; the worker uses the first lease."""
    said = await _retried(stage, delay=0.0)
    await said.worker.settle(Retried((await said.worker.take_one()).lease, 0.0, OOPS))
    return said


async def _retried_other_half(stage: Harness) -> Speaker:
    said = await _retried(stage)
    return Speaker(said.worker, _other_half(said.lease))


async def _completed(stage: Harness) -> Speaker:
    said = await _held(stage)
    await said.worker.settle(Completed(said.lease, b"1"))
    return said


async def _completed_other_half(stage: Harness) -> Speaker:
    said = await _completed(stage)
    return Speaker(said.worker, _other_half(said.lease))


async def _completed_older(stage: Harness) -> Speaker:
    said = await _retried(stage, delay=0.0)
    await said.worker.settle(Completed((await said.worker.take_one()).lease))
    return said


async def _failed(stage: Harness) -> Speaker:
    said = await _held(stage)
    await said.worker.settle(Failed(said.lease, "permanent", OOPS))
    return said


async def _failed_other_count(stage: Harness) -> Speaker:
    said = await _failed(stage)
    return Speaker(said.worker, _other_count(said.lease))


async def _replayed_and_held(stage: Harness) -> Speaker:
    said = await _failed(stage)
    await stage.store.replay(JobFilter(ids=(JOB,)), 10)
    await said.worker.take_one()
    await said.worker.settle()
    return said


async def _cancelled(stage: Harness) -> Speaker:
    said = await _held(stage)
    await said.worker.settle(Cancelled(said.lease, "why not"))
    return said


async def _cancelled_waiting(stage: Harness) -> Speaker:
    said = await _released(stage)
    await stage.store.cancel(JOB)
    return said


async def _forgotten(stage: Harness) -> Speaker:
    said = await _completed(stage)
    await stage.store.delete(JobFilter(ids=(JOB,)), 10)
    return said


async def _made_anew(stage: Harness) -> Speaker:
    """A new job under the id of a deleted one; the worker uses the lease of the deleted job."""
    said = await _forgotten(stage)
    await stage.add(JOB)
    return said


async def _made_anew_and_held(stage: Harness) -> Speaker:
    said = await _made_anew(stage)
    await said.worker.take_one()
    return said


SITUATIONS = (
    Situation("processing", "its own", "done", _held),
    Situation("processing, cancel requested", "its own", "done", _wanted_cancelled),
    Situation("processing, session overdue", "its own", "done", _overdue),
    Situation("processing", "other random half", "stale", _held_other_half),
    Situation("processing", "other counter", "stale", _held_other_count),
    Situation("processing", "right, from another session", "stale", _held_by_another),
    Situation("processing again", "the one that settled it", "already", _held_again),
    Situation(
        "processing at another", "the one that settled it", "already", _held_again_by_another
    ),
    Situation("processing again", "older than that", "stale", _held_a_third_time),
    Situation("retrying", "the one that settled it", "already", _retried),
    Situation("retrying", "older than that", "stale", _held_again_settled),
    Situation("retrying", "other random half", "stale", _retried_other_half),
    Situation("pending, released", "the one that settled it", "already", _released),
    Situation("scheduled, snoozed", "the one that settled it", "already", _snoozed),
    Situation("pending, rescued", "of the lost session", "SessionLost", _rescued),
    Situation("pending, rescued", "lost, from a new session", "stale", _rescued_other_session),
    Situation(
        "processing at another, rescued", "of the lost session", "SessionLost", _rescued_and_held
    ),
    Situation("processing, session left", "its own", "SessionLost", _left),
    Situation("pending, session closed", "of the closed session", "SessionLost", _closed),
    Situation("completed", "the one that settled it", "already", _completed),
    Situation("completed", "other random half", "stale", _completed_other_half),
    Situation("completed", "older than that", "stale", _completed_older),
    Situation("failed", "the one that settled it", "already", _failed),
    Situation("failed", "other counter", "stale", _failed_other_count),
    Situation("processing, replayed", "the one that failed it", "already", _replayed_and_held),
    Situation("cancelled by its worker", "the one that settled it", "already", _cancelled),
    Situation("cancelled while waiting", "the one that released it", "already", _cancelled_waiting),
    Situation("forgotten", "the one that settled it", "stale", _forgotten),
    Situation("new under an old id", "of the forgotten job", "stale", _made_anew),
    Situation("new and processing", "of the forgotten job", "stale", _made_anew_and_held),
)

AFTER: dict[str, State] = {
    "Completed": State.COMPLETED,
    "Retried": State.RETRYING,
    "Failed": State.FAILED,
    "Released": State.PENDING,
    "Cancelled": State.CANCELLED,
    "Progressed": State.PROCESSING,
}
"""State of the job after a settlement with the answer `done`."""
AFTER_REQUEST = AFTER | {"Retried": State.CANCELLED, "Released": State.CANCELLED}
"""The same for a job whose cancel was requested."""
