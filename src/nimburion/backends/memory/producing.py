"""`MemoryProducing`: enqueue and cancel jobs."""

from __future__ import annotations

from collections.abc import Sequence

from nimburion.backends.memory.data import MemoryData
from nimburion.backends.memory.records import get_record, put_record
from nimburion.backends.memory.transitions import AtomicStep, check_job_times
from nimburion.core.backend import BlockingProducing, Producing
from nimburion.core.flows import NewFlow
from nimburion.core.job import Enqueued, NewJob
from nimburion.core.maintenance import Cancellation
from nimburion.core.runs import NewSignal, SignalOutcome
from nimburion.core.schedules import Fired, Overlap, check_tick, end_tick


class MemoryProducing(Producing, BlockingProducing):
    """The operations of `Producing` for the memory backend. No operation waits."""

    def __init__(self, data: MemoryData) -> None:
        self._data = data

    async def enqueue(
        self, jobs: Sequence[NewJob], flows: Sequence[NewFlow] = ()
    ) -> list[Enqueued]:
        with AtomicStep(self._data) as step:
            return step.enqueue(jobs, flows)

    def enqueue_blocking(self, jobs: Sequence[NewJob], timeout: float) -> list[Enqueued]:  # noqa: ARG002
        with AtomicStep(self._data) as step:
            return step.enqueue(jobs)

    async def cancel(self, job_id: str) -> Cancellation:
        with AtomicStep(self._data) as step:
            return step.cancel(job_id)

    async def send_signals(self, signals: Sequence[NewSignal]) -> list[SignalOutcome]:
        with AtomicStep(self._data) as step:
            outcomes = [step.send_signal(signal) for signal in signals]
            for job_id in {signal.job_id for signal in signals}:
                step.state.run_tables.forget_taken(job_id)
            return outcomes

    async def fire(
        self, name: str, expected_last: float | None, tick: float, job: NewJob, overlap: Overlap
    ) -> Fired:
        check_job_times([job])
        with AtomicStep(self._data) as step:
            schedule = check_tick(get_record(step, "schedule", name), expected_last)
            if isinstance(schedule, Fired):
                return schedule
            result: Enqueued | None = None
            if schedule.last_job is None or allows_next_job(step, schedule.last_job, overlap):
                (result,) = step.enqueue([job])
            record, fired = end_tick(schedule, tick, result)
            put_record(step, record)
            return fired


def allows_next_job(step: AtomicStep, last_job: str, overlap: Overlap) -> bool:
    """Return whether the overlap policy allows a new job while the previous job may be unfinished.

    `cancel_previous` cancels the previous job.
    """
    entry = step.state.jobs.get(last_job)
    if entry is None or entry.final_state is not None or overlap == "allow":
        return True
    if overlap == "cancel_previous":
        step.cancel(last_job)
        return True
    started = entry.leased is not None or entry.failures > 0
    return overlap == "queue_one" and started
