"""Every operation on a job, for every state that the job can have."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import product

import pytest
from msgspec.structs import replace

from nimburion.core.errors import JobNotFound
from nimburion.core.job import NewJob
from nimburion.core.operations import Retention
from nimburion.core.queries import JobFilter
from nimburion.testing.contract.harness import TTL, Harness
from nimburion.testing.contract.standing import STANDING

Operation = Callable[[Harness, str], Awaitable[str]]

KEEP_NOTHING = Retention(completed=0.0, failed=0.0, results=0.0)


async def _reserve(harness: Harness, job_id: str) -> str:
    taken = await (await harness.worker()).take(10)
    return "handed out" if [delivery.lease.job_id for delivery in taken] == [job_id] else "nothing"


async def _cancel(harness: Harness, job_id: str) -> str:
    return await harness.backend.cancel(job_id)


async def _rescue(harness: Harness, job_id: str) -> str:
    """Rescue after the session of the job, if any, has expired."""
    harness.clock.advance(TTL)
    rescued = await harness.backend.rescue(10, max_lost=3)
    for answer in ("returned", "cancelled", "failed"):
        if job_id in getattr(rescued, answer):
            return answer
    return "nothing"


async def _replay(harness: Harness, job_id: str) -> str:
    replayed = await harness.backend.replay(JobFilter(ids=(job_id,)), 10)
    return "replayed" if replayed.ids == [job_id] else "nothing"


async def _delete(harness: Harness, job_id: str) -> str:
    deleted = await harness.backend.delete(JobFilter(ids=(job_id,)), 10)
    return "deleted" if deleted == [job_id] else "nothing"


async def _prune(harness: Harness, _job_id: str) -> str:
    harness.clock.advance(1.0)
    return "pruned" if await harness.backend.prune(KEEP_NOTHING, 10) else "nothing"


def _same(job_id: str) -> NewJob:
    return NewJob(job_id, "mail", "default", b"{}")


async def _enqueue_same(harness: Harness, job_id: str) -> str:
    (result,) = await harness.enqueue(_same(job_id))
    return result.outcome


async def _enqueue_other(harness: Harness, job_id: str) -> str:
    (result,) = await harness.enqueue(replace(_same(job_id), payload=b"[]"))
    return result.outcome


OPERATIONS: dict[str, Operation] = {
    "reserve": _reserve,
    "cancel": _cancel,
    "rescue": _rescue,
    "replay": _replay,
    "delete": _delete,
    "prune": _prune,
    "enqueue": _enqueue_same,
    "enqueue another body": _enqueue_other,
}

_ENDED = ("completed", "failed", "cancelled")

EXPECTED: dict[str, dict[str, tuple[str, str]]] = {
    "reserve": {
        "pending": ("handed out", "processing"),
        "retrying, due": ("handed out", "processing"),
    },
    "cancel": {
        "pending": ("cancelled", "cancelled"),
        "scheduled": ("cancelled", "cancelled"),
        "retrying": ("cancelled", "cancelled"),
        "processing": ("requested", "processing"),
    }
    | {state: ("finished", state) for state in _ENDED},
    "rescue": {
        "processing": ("returned", "pending"),
        "processing, cancel requested": ("cancelled", "cancelled"),
    },
    "replay": {"failed": ("replayed", "pending")},
    "delete": dict.fromkeys(_ENDED, ("deleted", "forgotten")),
    "prune": dict.fromkeys(_ENDED, ("pruned", "forgotten")),
    "enqueue": {},
    "enqueue another body": {},
}
"""Answer and following state, by place or by state. Other jobs answer `OTHERWISE` and keep the
whole record unchanged."""
OTHERWISE = {"enqueue": "exists", "enqueue another body": "conflict"}


def expected(operation: str, place: str) -> tuple[str, str]:
    """Return the answer of an operation on a job in `place`, and the state of the job
    afterwards."""
    state = place.replace(",", "").split(maxsplit=1)[0]
    table = EXPECTED[operation]
    unchanged = (OTHERWISE.get(operation, "nothing"), state)
    return table.get(place) or table.get(state) or unchanged


class Operators:
    """Operations by place."""

    @pytest.mark.parametrize(("operation", "place"), list(product(OPERATIONS, STANDING)))
    async def test_an_operation_does_what_the_place_allows(
        self, harness: Harness, operation: str, place: str
    ) -> None:
        """Where it is not for such a job, the whole record stays as it was."""
        job_id = await STANDING[place](harness)
        before = await harness.backend.get(job_id)
        answer = await OPERATIONS[operation](harness, job_id)
        try:
            after = await harness.backend.get(job_id)
        except JobNotFound:
            assert (answer, "forgotten") == expected(operation, place)
            return
        assert (answer, after.state) == expected(operation, place)
        if answer in {"nothing", "exists", "conflict", "finished"}:
            assert after == before

    @pytest.mark.parametrize("operation", ["rescue", "replay", "delete", "prune"])
    async def test_an_operation_on_a_job_that_is_not_there_does_nothing(
        self, harness: Harness, operation: str
    ) -> None:
        assert await OPERATIONS[operation](harness, "nobody") == "nothing"
