"""Cases of a settlement: the state of the job, and the token that the caller sends.

They are the rows of the token table. The builder of a case sets up its state on an empty backend.
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
from nimburion.testing.contract.changing import delete, replay
from nimburion.testing.contract.harness import FAILURE, HandDrivenWorker, Harness

Answer = Literal["done", "already", "stale", "SessionLost"]

JOB = "the-job"


class Settler(msgspec.Struct, frozen=True):
    """The worker that sends a settlement, and the lease that it uses."""

    worker: HandDrivenWorker
    lease: Lease


Builder = Callable[[Harness], Awaitable[Settler]]


class TokenCase(msgspec.Struct, frozen=True):
    """One row: the state of the job, the token that is sent, and the answer to every settlement."""

    state: str
    token: str
    answer: Answer
    build: Builder

    @property
    def name(self) -> str:
        """The name of the row in the name of a case."""
        return f"{self.state}, {self.token}"


async def _held(harness: Harness) -> Settler:
    await harness.add(JOB)
    worker = await harness.worker()
    return Settler(worker, (await worker.take_one()).lease)


async def _wanted_cancelled(harness: Harness) -> Settler:
    settler = await _held(harness)
    await harness.backend.producing.cancel(JOB)
    return settler


async def _overdue(harness: Harness) -> Settler:
    settler = await _held(harness)
    harness.clock.advance(settler.worker.session.ttl + 1.0)
    return settler


def _other_half(lease: Lease) -> Lease:
    turned = bytes(255 - byte for byte in lease.token.nonce)
    return replace(lease, token=Token(lease.token.fence, turned))


def _other_count(lease: Lease) -> Lease:
    return replace(lease, token=Token(lease.token.fence + 1, lease.token.nonce))


async def _held_other_half(harness: Harness) -> Settler:
    settler = await _held(harness)
    return Settler(settler.worker, _other_half(settler.lease))


async def _held_other_count(harness: Harness) -> Settler:
    settler = await _held(harness)
    return Settler(settler.worker, _other_count(settler.lease))


async def _held_by_another(harness: Harness) -> Settler:
    settler = await _held(harness)
    return Settler(await harness.worker(), settler.lease)


async def _held_again(harness: Harness) -> Settler:
    settler = await _retried(harness, delay=0.0)
    await settler.worker.take_one()
    return settler


async def _held_again_by_another(harness: Harness) -> Settler:
    settler = await _retried(harness, delay=0.0)
    await (await harness.worker()).take_one()
    return settler


async def _held_a_third_time(harness: Harness) -> Settler:
    settler = await _held_again_settled(harness)
    await settler.worker.take_one()
    return settler


async def _rescued(harness: Harness) -> Settler:
    settler = await _held(harness)
    await harness.lose(settler.worker)
    return settler


async def _rescued_and_held(harness: Harness) -> Settler:
    settler = await _rescued(harness)
    await (await harness.worker()).take_one()
    return settler


async def _rescued_other_session(harness: Harness) -> Settler:
    """The worker has a new session and still uses its old lease."""
    settler = await _rescued(harness)
    return Settler(await harness.worker(), settler.lease)


async def _left(harness: Harness) -> Settler:
    settler = await _held(harness)
    await settler.worker.close(settler.lease)
    return settler


async def _closed(harness: Harness) -> Settler:
    settler = await _held(harness)
    await settler.worker.close()
    return settler


async def _released(harness: Harness) -> Settler:
    settler = await _held(harness)
    await settler.worker.settle(Released(settler.lease))
    return settler


async def _snoozed(harness: Harness) -> Settler:
    settler = await _held(harness)
    await settler.worker.settle(Released(settler.lease, 60.0))
    return settler


async def _retried(harness: Harness, delay: float = 60.0) -> Settler:
    settler = await _held(harness)
    await settler.worker.settle(Retried(settler.lease, delay, FAILURE))
    return settler


async def _held_again_settled(harness: Harness) -> Settler:
    """Two deliveries, both settled; the worker uses the first lease."""
    settler = await _retried(harness, delay=0.0)
    await settler.worker.settle(Retried((await settler.worker.take_one()).lease, 0.0, FAILURE))
    return settler


async def _retried_other_half(harness: Harness) -> Settler:
    settler = await _retried(harness)
    return Settler(settler.worker, _other_half(settler.lease))


async def _completed(harness: Harness) -> Settler:
    settler = await _held(harness)
    await settler.worker.settle(Completed(settler.lease, b"1"))
    return settler


async def _completed_other_half(harness: Harness) -> Settler:
    settler = await _completed(harness)
    return Settler(settler.worker, _other_half(settler.lease))


async def _completed_older(harness: Harness) -> Settler:
    settler = await _retried(harness, delay=0.0)
    await settler.worker.settle(Completed((await settler.worker.take_one()).lease))
    return settler


async def _failed(harness: Harness) -> Settler:
    settler = await _held(harness)
    await settler.worker.settle(Failed(settler.lease, "permanent", FAILURE))
    return settler


async def _failed_other_count(harness: Harness) -> Settler:
    settler = await _failed(harness)
    return Settler(settler.worker, _other_count(settler.lease))


async def _replayed_and_held(harness: Harness) -> Settler:
    settler = await _failed(harness)
    await replay(harness.backend, JobFilter(ids=(JOB,)), 10)
    await settler.worker.take_one()
    await settler.worker.settle()
    return settler


async def _cancelled(harness: Harness) -> Settler:
    settler = await _held(harness)
    await settler.worker.settle(Cancelled(settler.lease, "why not"))
    return settler


async def _cancelled_waiting(harness: Harness) -> Settler:
    settler = await _released(harness)
    await harness.backend.producing.cancel(JOB)
    return settler


async def _forgotten(harness: Harness) -> Settler:
    settler = await _completed(harness)
    await delete(harness.backend, JobFilter(ids=(JOB,)), 10)
    return settler


async def _made_anew(harness: Harness) -> Settler:
    """A new job under the id of a deleted one; the worker uses the lease of the deleted job."""
    settler = await _forgotten(harness)
    await harness.add(JOB)
    return settler


async def _made_anew_and_held(harness: Harness) -> Settler:
    settler = await _made_anew(harness)
    await settler.worker.take_one()
    return settler


TOKEN_CASES = (
    TokenCase("processing", "its own", "done", _held),
    TokenCase("processing, cancel requested", "its own", "done", _wanted_cancelled),
    TokenCase("processing, session overdue", "its own", "done", _overdue),
    TokenCase("processing", "other random half", "stale", _held_other_half),
    TokenCase("processing", "other counter", "stale", _held_other_count),
    TokenCase("processing", "right, from another session", "stale", _held_by_another),
    TokenCase("processing again", "the one that settled it", "already", _held_again),
    TokenCase(
        "processing at another", "the one that settled it", "already", _held_again_by_another
    ),
    TokenCase("processing again", "older than that", "stale", _held_a_third_time),
    TokenCase("retrying", "the one that settled it", "already", _retried),
    TokenCase("retrying", "older than that", "stale", _held_again_settled),
    TokenCase("retrying", "other random half", "stale", _retried_other_half),
    TokenCase("pending, released", "the one that settled it", "already", _released),
    TokenCase("scheduled, snoozed", "the one that settled it", "already", _snoozed),
    TokenCase("pending, rescued", "of the lost session", "SessionLost", _rescued),
    TokenCase("pending, rescued", "lost, from a new session", "stale", _rescued_other_session),
    TokenCase(
        "processing at another, rescued", "of the lost session", "SessionLost", _rescued_and_held
    ),
    TokenCase("processing, session left", "its own", "SessionLost", _left),
    TokenCase("pending, session closed", "of the closed session", "SessionLost", _closed),
    TokenCase("completed", "the one that settled it", "already", _completed),
    TokenCase("completed", "other random half", "stale", _completed_other_half),
    TokenCase("completed", "older than that", "stale", _completed_older),
    TokenCase("failed", "the one that settled it", "already", _failed),
    TokenCase("failed", "other counter", "stale", _failed_other_count),
    TokenCase("processing, replayed", "the one that failed it", "already", _replayed_and_held),
    TokenCase("cancelled by its worker", "the one that settled it", "already", _cancelled),
    TokenCase("cancelled while waiting", "the one that released it", "already", _cancelled_waiting),
    TokenCase("forgotten", "the one that settled it", "stale", _forgotten),
    TokenCase("new under an old id", "of the forgotten job", "stale", _made_anew),
    TokenCase("new and processing", "of the forgotten job", "stale", _made_anew_and_held),
)

AFTER: dict[str, State] = {
    "Completed": State.COMPLETED,
    "Completed without result": State.COMPLETED,
    "Completed with payload": State.COMPLETED,
    "Retried": State.RETRYING,
    "Failed": State.FAILED,
    "Released": State.PENDING,
    "Cancelled": State.CANCELLED,
    "Progressed": State.PROCESSING,
    "Recorded": State.PROCESSING,
    "Suspended": State.SUSPENDED,
}
"""State of the job after a settlement with the answer `done`."""
AFTER_REQUEST = AFTER | dict.fromkeys(("Retried", "Released", "Suspended"), State.CANCELLED)
"""The same for a job whose cancel was requested."""
