"""Delete the jobs that earlier tests left."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from nimburion.core.bulk_operations import BulkAction
from nimburion.core.errors import ConfigurationError
from nimburion.core.paging import change_matching
from nimburion.core.queries import EVERY_JOB

if TYPE_CHECKING:
    from nimburion.jobs.client.client import Client


async def clear_jobs(processor: Client) -> None:
    """Delete every job of a processor in memory, finished or not, and resume every queue.

    `ConfigurationError` is raised for another backend, because other programs may use its jobs. In
    tests that are not async, call it through the processor:

        processor.sync.call(clear_jobs)
    """
    if processor.backend.capabilities.shared:
        raise ConfigurationError(
            f"the jobs are in {processor.backend.describe()}, which other programs may use, so "
            "they are not deleted; in tests, use memory://"
        )
    await delete_all_jobs(processor)


async def delete_all_jobs(client: Client) -> None:
    """Delete every job of a backend, and resume every queue."""
    backend = client.backend
    for action in (BulkAction.CANCEL, BulkAction.DELETE):
        await change_matching(backend, action, EVERY_JOB, sys.maxsize)
    for queue in await backend.reads.list_queues():
        if queue.paused:
            await backend.maintenance.pause_queue(queue.name, paused=False)
