"""What applications import: jobs, the processor that enqueues and runs them, and their errors."""

from nimburion.core.errors import (
    Cancel,
    JobNotFound,
    PermanentError,
    Retry,
    Snooze,
)
from nimburion.core.job import State
from nimburion.jobs.client import Priority
from nimburion.jobs.context import Context
from nimburion.jobs.job import Job, job
from nimburion.jobs.processor import Processor

__all__ = [
    "Cancel",
    "Context",
    "Job",
    "JobNotFound",
    "PermanentError",
    "Priority",
    "Processor",
    "Retry",
    "Snooze",
    "State",
    "job",
]
