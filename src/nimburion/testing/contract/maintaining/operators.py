"""Every operation on a job, for every state that the job can have."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence

import pytest
from msgspec.structs import replace

from nimburion.core.errors import JobNotFound
from nimburion.core.job import NewJob
from nimburion.core.maintenance import Retention
from nimburion.core.queries import JobFilter
from nimburion.testing.contract.changing import delete, replay
from nimburion.testing.contract.harness import TTL, Harness
from nimburion.testing.contract.job_states import JOB_STATES

Operation = Callable[[Harness, str], Awaitable[str]]

KEEP_NOTHING = Retention(completed=0.0, failed=0.0, results=0.0)


async def _reserve(harness: Harness, job_id: str) -> str:
    taken = await (await harness.worker()).take(10)
    return "reserved" if [delivery.lease.job_id for delivery in taken] == [job_id] else "nothing"


async def _cancel(harness: Harness, job_id: str) -> str:
    return await harness.backend.producing.cancel(job_id)


async def _rescue(harness: Harness, job_id: str) -> str:
    """Rescue after the session of the job, if any, has expired."""
    harness.clock.advance(TTL)
    rescued = await harness.backend.consuming.rescue(10, max_lost=3)
    for answer in ("returned", "cancelled", "failed"):
        if job_id in getattr(rescued, answer):
            return answer
    return "nothing"


async def _replay(harness: Harness, job_id: str) -> str:
    replayed = await replay(harness.backend, JobFilter(ids=(job_id,)), 10)
    return "replayed" if replayed.ids == [job_id] else "nothing"


async def _delete(harness: Harness, job_id: str) -> str:
    deleted = await delete(harness.backend, JobFilter(ids=(job_id,)), 10)
    return "deleted" if deleted == [job_id] else "nothing"


async def _prune(harness: Harness, _job_id: str) -> str:
    harness.clock.advance(1.0)
    return "pruned" if await harness.backend.maintenance.prune(KEEP_NOTHING, 10) else "nothing"


def _make_job(job_id: str) -> NewJob:
    return NewJob(job_id, "mail", "default", b"{}")


async def _enqueue_same(harness: Harness, job_id: str) -> str:
    (result,) = await harness.enqueue(_make_job(job_id))
    return result.outcome


async def _enqueue_other(harness: Harness, job_id: str) -> str:
    (result,) = await harness.enqueue(replace(_make_job(job_id), payload=b"[]"))
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
        "pending": ("reserved", "processing"),
        "retrying, due": ("reserved", "processing"),
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
"""Answer and following state, by the name of the state or by its first word. All other jobs answer
`OTHERWISE`, and their whole record stays unchanged."""
OTHERWISE = {"enqueue": "exists", "enqueue another body": "conflict"}


def expected(operation: str, state: str) -> tuple[str, str]:
    """Return the answer of an operation on a job in the state, and the state of the job
    afterwards."""
    first_word = state.replace(",", "").split(maxsplit=1)[0]
    table = EXPECTED[operation]
    unchanged = (OTHERWISE.get(operation, "nothing"), first_word)
    return table.get(state) or table.get(first_word) or unchanged


UNCHANGED = {"nothing", "exists", "conflict", "finished"}
"""The answers of operations that do not apply to the state."""


def list_variants() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield states of a job, with the operations that are tried on it one after another: one that
    changes the job or lets time pass, or all others."""
    for state in JOB_STATES:
        alone = [
            operation
            for operation in OPERATIONS
            if operation in {"reserve", "rescue", "prune"}
            or expected(operation, state)[0] not in UNCHANGED
        ]
        yield from ((state, (operation,)) for operation in alone)
        yield state, tuple(operation for operation in OPERATIONS if operation not in alone)


class Operators:
    """Operations by state of the job."""

    @pytest.mark.parametrize(
        ("state", "operations"),
        [pytest.param(*each, id=f"{each[0]}: {', '.join(each[1])}") for each in list_variants()],
    )
    async def test_an_operation_does_what_the_state_allows(
        self, harness: Harness, state: str, operations: Sequence[str]
    ) -> None:
        """If it does not apply to the state, the whole record stays unchanged."""
        job_id = await JOB_STATES[state](harness)
        before = await harness.backend.reads.get_job(job_id)
        for operation in operations:
            answer = await OPERATIONS[operation](harness, job_id)
            try:
                after = await harness.backend.reads.get_job(job_id)
            except JobNotFound:
                assert (operation, answer, "forgotten") == (operation, *expected(operation, state))
                return
            assert (operation, answer, after.state) == (operation, *expected(operation, state))
            if answer in UNCHANGED:
                assert (operation, after) == (operation, before)

    @pytest.mark.parametrize("operation", ["rescue", "replay", "delete", "prune"])
    async def test_an_operation_on_a_job_that_is_not_there_does_nothing(
        self, harness: Harness, operation: str
    ) -> None:
        assert await OPERATIONS[operation](harness, "unknown") == "nothing"
