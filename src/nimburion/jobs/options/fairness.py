"""Whether the tenants of a queue take turns, as the settings say."""

from __future__ import annotations

import msgspec

from nimburion.core.job import NewJob
from nimburion.core.settings import Settings


class QueueFairness:
    """The setting `fairness` of each queue. It is applied when a job is enqueued."""

    __slots__ = ("_by_queue", "_default", "has_exceptions")

    def __init__(self, settings: Settings) -> None:
        self._default = settings.fairness == "tenants"
        self._by_queue = {
            queue.name: queue.fairness == "tenants"
            for queue in settings.queues
            if queue.fairness != "auto"
        }
        self.has_exceptions: bool = not (self._default and all(self._by_queue.values()))
        """Whether `apply` may change something."""

    def apply(self, job: NewJob) -> NewJob:
        """Return a job as the setting of its queue wants it."""
        options = job.options
        fair = self._by_queue.get(job.queue, self._default)
        if options.tenant is None or options.fair == fair:
            return job
        return msgspec.structs.replace(job, options=msgspec.structs.replace(options, fair=fair))
