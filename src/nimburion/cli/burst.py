"""What a worker logs when `--burst` ends it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from nimburion.cli.output import format_duration, format_time

if TYPE_CHECKING:
    from nimburion.jobs import Processor

_log = logging.getLogger("nimburion.worker")


async def log_end_of_burst(processor: Processor) -> None:
    """Log how many attempts this process has made, and which jobs are left."""
    _log_attempts(processor)
    await _log_waiting_jobs(processor)
    await _log_unserved_jobs(processor)
    await _log_outbox(processor)


def _log_attempts(processor: Processor) -> None:
    """Log how many attempts the worker has made."""
    ended = next(one for one in processor.metrics.collect() if one.name == "jobs_processed")
    count = round(sum(sample.value for sample in ended.samples))
    _log.info("ends after %d %s", count, "attempt" if count == 1 else "attempts")


async def _log_waiting_jobs(processor: Processor) -> None:
    """Log how many jobs are not due yet, which `--burst` leaves, and when the next one is due."""
    from nimburion.core.job import State

    backend = processor.backend
    counts = await backend.reads.count_jobs(budget=None)
    retries, scheduled = counts.get(State.RETRYING, 0), counts.get(State.SCHEDULED, 0)
    parts = [
        f"{count} {'job waits' if count == 1 else 'jobs wait'} for {what}"
        for count, what in ((retries, "a retry"), (scheduled, "a later time"))
        if count
    ]
    if not parts:
        return
    next_due, now = (await backend.consuming.promote(1)).next_due, await backend.now()
    when = (
        "now"
        if next_due is None or next_due <= now
        else f"in {format_duration(next_due - now)}, at {format_time(next_due)}"
    )
    _log.info(
        "%s; the next one is due %s. A worker without --burst runs it", " and ".join(parts), when
    )


async def _log_unserved_jobs(processor: Processor) -> None:
    """Log the jobs that neither this worker nor a live one takes."""
    from nimburion.core.diagnosis.unserved import find_unserved
    from nimburion.core.session import Session

    reads, settings, registry = processor.backend.reads, processor.settings, processor.registry
    served = tuple(queue.name for queue in settings.queues) or registry.queues
    own = Session(id="", queues=served, names=registry.names).to_info(
        opened_at=0.0, expires_in=1.0, left=False, running=0
    )
    sessions = [own, *await reads.list_sessions()]
    for unserved in find_unserved(await reads.list_queues(), sessions):
        _log.warning("%s", unserved.describe())


async def _log_outbox(processor: Processor) -> None:
    """Log how many jobs wait in the outbox, such as those that the last jobs have enqueued."""
    if processor.outbox is None:
        return
    try:
        lag = await processor.outbox.read_lag()
    except Exception:  # noqa: BLE001 (of any driver; the relay has logged why)
        return
    if lag.jobs:
        waiting = "1 job waits" if lag.jobs == 1 else f"{lag.jobs} jobs wait"
        _log.info("%s in the outbox; the next worker relays it", waiting)
