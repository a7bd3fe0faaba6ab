"""The public API for applications: job declarations, the processor that enqueues and runs jobs, and
their errors."""

from nimburion.core.errors import (
    BackendUnavailable,
    Cancel,
    DefinitionError,
    DuplicateJob,
    InvalidJob,
    JobConflict,
    JobNotCompleted,
    JobNotFound,
    LeaseLost,
    NimburionError,
    NothingRegistered,
    PermanentError,
    RateLimitExceeded,
    ResultNotKept,
    Retry,
    Snooze,
    WaitTimeout,
)
from nimburion.core.job import AttemptError, State
from nimburion.jobs.client.client import Priority
from nimburion.jobs.client.status import Status
from nimburion.jobs.declaration.batches import BatchContext
from nimburion.jobs.declaration.context import Context, get_current_context
from nimburion.jobs.declaration.job import Job, job
from nimburion.jobs.declaration.limits import Limit
from nimburion.jobs.processor import Processor
from nimburion.jobs.worker.health import Health

__all__ = [
    "AttemptError",
    "BackendUnavailable",
    "BatchContext",
    "Cancel",
    "Context",
    "DefinitionError",
    "DuplicateJob",
    "Health",
    "InvalidJob",
    "Job",
    "JobConflict",
    "JobNotCompleted",
    "JobNotFound",
    "LeaseLost",
    "Limit",
    "NimburionError",
    "NothingRegistered",
    "PermanentError",
    "Priority",
    "Processor",
    "ResultNotKept",
    "RateLimitExceeded",
    "Retry",
    "Snooze",
    "State",
    "Status",
    "WaitTimeout",
    "get_current_context",
    "job",
]
