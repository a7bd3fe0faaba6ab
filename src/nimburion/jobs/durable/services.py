"""What the durable runs of a worker use of its processor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import TYPE_CHECKING, Any, cast

from nimburion.core.bulk_operations import BulkAction
from nimburion.core.errors import FlowNotFound
from nimburion.core.events import Event
from nimburion.core.flows import NewFlow
from nimburion.core.job import JobRecord
from nimburion.core.runs import RunPage
from nimburion.core.size_limits import SizeLimits
from nimburion.jobs.client.client import enqueue_members, read_records
from nimburion.jobs.flows.plan import GraphPlace, PlannedJob
from nimburion.jobs.handling.attempt_record import RecordStep

if TYPE_CHECKING:
    from nimburion.jobs.client.client import Client
    from nimburion.jobs.declaration.job import AnyJob, JobReturning
    from nimburion.jobs.worker.attempt.reporter import AttemptReporter
    from nimburion.jobs.worker.attempt.threads import ThreadCall


class RunServices:
    """What all durable runs of one worker use of it."""

    def __init__(
        self,
        client: Client,
        record: RecordStep,
        start_call: Callable[..., ThreadCall],
        reporter: AttemptReporter,
        random: Random,
        *,
        hold: float,
    ) -> None:
        self._client = client
        self._clock = client.clock
        self._reporter = reporter
        self.record: RecordStep = record
        """Sends a step with the next exchange."""
        self.start_call: Callable[..., ThreadCall] = start_call
        """Calls a function in a thread of the worker."""
        self.random: Random = random
        self.sizes: SizeLimits = client.settings.sizes
        self.hold: float = hold
        """The longest sleep for which a run keeps its slot, in seconds."""

    def now(self) -> float:
        """Return the time of the backend's clock, as the worker knows it."""
        return self._clock.monotonic() + self._reporter.backend_time_offset

    def emit(self, event: Event) -> None:
        """Tell the subscribers of the processor what happened."""
        self._client.events.emit(event)

    async def sleep(self, seconds: float) -> None:
        """Wait, on the clock of the worker."""
        await self._clock.sleep(seconds)

    async def read_run(self, job_id: str, after: str | None) -> RunPage:
        """Return a page of the steps and the unread signals of a job. `after` is the `next` of the
        previous page.
        """
        return await self._client.backend.reads.read_run(job_id, after=after)

    async def enqueue_children(
        self, flow_id: str, name: str, jobs: Sequence[JobReturning[Any]]
    ) -> list[str]:
        """Store child jobs as the members of a flow of their own, and return their ids.

        The call is safe to repeat. `JobConflict` is raised after it if some were stored before with
        other arguments, which they keep.
        """
        place = GraphPlace(flow_id, None)
        planned = [
            PlannedJob(f"{flow_id}.{number}", str(number), cast("AnyJob", job), place)
            for number, job in enumerate(jobs)
        ]
        flow = NewFlow(id=flow_id, name=name, members=len(planned))
        return await enqueue_members(self._client, planned, [flow])

    async def cancel_jobs(self, job_ids: Sequence[str]) -> None:
        """Cancel jobs, or ask the workers that run them to end them."""
        await self._client.backend.maintenance.change_jobs(BulkAction.CANCEL, job_ids)

    async def read_records(self, job_ids: Sequence[str]) -> dict[str, JobRecord]:
        """Return the records of those jobs that exist, by id, with their results."""
        return await read_records(self._client, job_ids)

    async def count_unfinished(self, flow_id: str) -> int:
        """Return how many members of a flow have not ended; 0 if the flow is not kept."""
        try:
            return (await self._client.backend.reads.get_flow(flow_id))[0].unfinished
        except FlowNotFound:
            return 0
