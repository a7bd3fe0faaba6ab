"""Flows on the memory backend: what a step reads of the conditions on one source."""

from __future__ import annotations

import pytest

from nimburion.backends.memory import MemoryBackend, flows
from nimburion.backends.planning.flows import Waiter
from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.flows import MAX_RESOLVED, NewFlow, On, SourceKind, WaitCondition, WaitSource
from nimburion.core.job import JobOptions, NewJob, State
from nimburion.core.session import Session
from nimburion.core.settlement import Completed

WORKER = "6" * 32
NOTHING = ReserveRequest(0, ())


async def test_a_step_reads_as_many_conditions_as_it_applies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A release of many jobs would take quadratic time otherwise, and each step too long."""
    count = 4 * MAX_RESOLVED
    read: list[str] = []

    def make_waiter(source: WaitSource, job_id: str, on: On | None, seq: int = 0) -> Waiter:
        read.append(job_id)
        return Waiter(source, job_id, on, seq)

    backend = MemoryBackend()
    await backend.open()
    first = NewJob("first", "n", "q", b"{}", options=JobOptions(flow="f"))
    options = JobOptions(
        conditions=(WaitCondition(WaitSource(SourceKind.JOB, "first"), On.SUCCESS),)
    )
    later = [NewJob(f"later-{n}", "n", "other", b"{}", options=options) for n in range(count)]
    await backend.producing.enqueue([first, *later], [NewFlow(id="f", members=1 + count)])
    await backend.consuming.open_session(Session(id=WORKER, ttl=60.0, names=("n",)))
    request = ReserveRequest(1, (Lane("q", "n"),))
    (held,) = (await backend.consuming.exchange(WORKER, 1, [], request)).deliveries
    monkeypatch.setattr(flows, "Waiter", make_waiter)
    await backend.consuming.exchange(WORKER, 2, [Completed(held.lease)], NOTHING)
    for number in range(3, 7):
        await backend.consuming.exchange(WORKER, number, [], NOTHING)
    counts = await backend.reads.count_jobs(budget=None)
    assert counts[State.PENDING] == count, counts
    assert len(read) <= count + 10
    await backend.close()
