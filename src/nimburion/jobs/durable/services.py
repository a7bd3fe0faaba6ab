"""What the durable runs of a worker use of its processor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import TYPE_CHECKING

from nimburion.core.bulk_operations import BulkAction
from nimburion.core.errors import FlowNotFound
from nimburion.core.runs import RunPage
from nimburion.jobs.client.client import enqueue_children, read_records
from nimburion.jobs.declaration.attempt_record import RecordStep, RunServices

if TYPE_CHECKING:
    from nimburion.jobs.client.client import Client
    from nimburion.jobs.worker.attempt.reporter import AttemptReporter
    from nimburion.jobs.worker.attempt.threads import ThreadCall


def make_run_services(
    client: Client,
    record: RecordStep,
    start_call: Callable[..., ThreadCall],
    reporter: AttemptReporter,
    random: Random,
    *,
    hold: float,
) -> RunServices:
    """Return the services of the runs of a worker.

    `record` stores steps, `start_call` calls functions in threads, and `hold` is the longest sleep
    for which a run keeps its slot.
    """
    backend, clock = client.backend, client.clock

    async def read_run(job_id: str, after: str | None) -> RunPage:
        return await backend.reads.read_run(job_id, after=after)

    async def cancel_jobs(job_ids: Sequence[str]) -> None:
        await backend.maintenance.change_jobs(BulkAction.CANCEL, job_ids)

    async def count_unfinished(flow_id: str) -> int:
        try:
            return (await backend.reads.get_flow(flow_id))[0].unfinished
        except FlowNotFound:
            return 0

    return RunServices(
        record,
        read_run,
        start_call,
        lambda: clock.monotonic() + reporter.backend_time_offset,
        clock.sleep,
        hold,
        random,
        client.settings.sizes,
        partial(enqueue_children, client),
        cancel_jobs,
        partial(read_records, client),
        count_unfinished,
    )
