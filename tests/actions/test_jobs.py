"""Cancel jobs by id and by filter."""

from __future__ import annotations

import sys

import pytest

from nimburion.actions import Actions, Operator
from nimburion.backends.memory import MemoryBackend
from nimburion.core.audit import list_audit
from nimburion.core.errors import JobNotFound, MissingRight
from nimburion.core.job import NewJob, State
from nimburion.core.queries import JobFilter
from nimburion.core.runs import SignalOutcome


async def count_calls(jobs: int) -> int:
    """Return how many Python functions are called when so many jobs are cancelled."""
    backend = MemoryBackend()
    await backend.open()
    await backend.producing.enqueue([NewJob(f"{n:04d}", "n", "q", b"{}") for n in range(jobs)])
    actions = Actions(backend, Operator("ann"))
    calls = 0

    def note(_: object, event: str, __: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(note)
    done = await actions.jobs.cancel(JobFilter(queue="q"))
    sys.setprofile(None)
    assert len(done.outcomes) == jobs
    (record,) = (await list_audit(backend, limit=9)).records
    assert (record.outcome, record.changed) == ("done", jobs)
    await backend.close()
    return calls


async def test_the_cost_of_a_cancelled_job_does_not_grow_with_their_number() -> None:
    assert await count_calls(400) < 2.5 * await count_calls(200)


async def test_a_job_is_cancelled_if_it_has_the_id_and_matches_the_other_fields() -> None:
    backend = MemoryBackend()
    await backend.open()
    await backend.producing.enqueue(
        [NewJob("a", "n", "q", b"{}"), NewJob("b", "n", "other", b"{}")]
    )
    actions = Actions(backend, Operator("ann"))
    done = await actions.jobs.cancel(JobFilter(ids=("a", "b", "c"), queue="q"))
    assert done.outcomes == {"a": "cancelled"}
    assert (await backend.reads.get_job("b")).state is State.PENDING
    (record,) = (await list_audit(backend, limit=9)).records
    assert record.details == {"ids": "a b c", "queue": "q"}
    done = await actions.jobs.cancel(JobFilter(ids=("a", "b", "c")))
    assert done.outcomes == {"a": "finished", "b": "cancelled", "c": "not found"}
    await backend.close()


async def test_a_signal_needs_the_right_operate_and_a_job() -> None:
    backend = MemoryBackend()
    await backend.open()
    reader = Actions(backend, Operator("ann", rights=frozenset({"read", "payloads"})))
    with pytest.raises(MissingRight):
        await reader.jobs.signal("a", "paid", b"1")
    actions = Actions(backend, Operator("ann", rights=frozenset({"operate"})))
    with pytest.raises(JobNotFound):
        await actions.jobs.signal("a", "paid", b"1")
    (record,) = (await list_audit(backend, limit=9)).records
    assert (record.action, record.outcome) == ("jobs.signal", "failed")
    await backend.producing.enqueue([NewJob("a", "n", "q", b"{}")])
    first = await actions.jobs.signal("a", "paid", b"1")
    second = await actions.jobs.signal("a", "paid", b"1")
    assert (first.outcome, second.outcome) == (SignalOutcome.STORED, SignalOutcome.STORED)
    assert first.id != second.id
    await backend.close()
