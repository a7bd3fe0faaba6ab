"""Job declarations, the processor that enqueues and runs jobs, and the worker.

Applications import these names, and all errors, from `nimburion`.
"""

from nimburion.jobs.client.client import Priority
from nimburion.jobs.client.status import Status
from nimburion.jobs.declaration.job import Job, JobId, job
from nimburion.jobs.handling.batch_context import BatchContext
from nimburion.jobs.handling.context import Context, get_current_context
from nimburion.jobs.options.backoff import Backoff
from nimburion.jobs.options.limits import Limit
from nimburion.jobs.options.policy import Batch, ChildProcess
from nimburion.jobs.options.uniqueness import Unique
from nimburion.jobs.processor import Processor
from nimburion.jobs.worker.health import Health

__all__ = [
    "Backoff",
    "Batch",
    "BatchContext",
    "ChildProcess",
    "Context",
    "Health",
    "Job",
    "JobId",
    "Limit",
    "Priority",
    "Processor",
    "Status",
    "Unique",
    "get_current_context",
    "job",
]
