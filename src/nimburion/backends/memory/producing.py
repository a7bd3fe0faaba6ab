"""`MemoryProducing`: enqueue and cancel jobs."""

from __future__ import annotations

from collections.abc import Sequence

from nimburion.backends.memory.data import MemoryData
from nimburion.backends.memory.transitions import AtomicStep
from nimburion.core.backend import BlockingProducing, Producing
from nimburion.core.flows import NewFlow
from nimburion.core.job import Enqueued, NewJob
from nimburion.core.maintenance import Cancellation
from nimburion.core.runs import NewSignal, SignalOutcome


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
