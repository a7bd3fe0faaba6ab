"""nimburion: background jobs for Python, on four backends with one contract.

```python
from nimburion import Job, Processor, open_backend


class SendEmail(Job):
    to: str

    async def process(self, ctx): ...


processor = Processor(open_backend("sqlite:///jobs.db"))
```

Importing this package loads nothing else: each name below is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nimburion import config, server
    from nimburion.backends import open_backend
    from nimburion.core.errors import (
        BackendCorrupt,
        BackendError,
        BackendFull,
        BackendReadOnly,
        BackendReplaced,
        BackendUnavailable,
        BulkOperationNotFound,
        Cancel,
        ConfigurationError,
        DefinitionError,
        DuplicateJob,
        FormatMismatch,
        InvalidJob,
        JobConflict,
        JobNotCompleted,
        JobNotFound,
        JobSignal,
        LeaseLost,
        LifespanError,
        LimitNotFound,
        NimburionError,
        NothingRegistered,
        NotOpen,
        NotSupported,
        OutOfOrder,
        PermanentError,
        RateLimitExceeded,
        RemoteError,
        ResultNotKept,
        Retry,
        ScheduleNotFound,
        SessionLost,
        Snooze,
        StepLost,
        TooManyBulkOperations,
        TransactionExpired,
        Unstorable,
        UnusableConnection,
        UseAwait,
        WaitTimeout,
    )
    from nimburion.core.job import AttemptError, State
    from nimburion.core.version import __version__ as __version__
    from nimburion.jobs import (
        Backoff,
        Batch,
        BatchContext,
        ChildProcess,
        Context,
        Health,
        Job,
        Limit,
        Priority,
        Processor,
        Status,
        Unique,
        get_current_context,
        job,
    )
    from nimburion.scheduler import Scheduler

__all__ = [
    "Job",
    "job",
    "Processor",
    "Context",
    "BatchContext",
    "get_current_context",
    "Limit",
    "Unique",
    "Backoff",
    "Batch",
    "ChildProcess",
    "Priority",
    "State",
    "Status",
    "AttemptError",
    "Health",
    "Scheduler",
    "config",
    "server",
    "open_backend",
    "NimburionError",
    "ConfigurationError",
    "DefinitionError",
    "InvalidJob",
    "JobConflict",
    "DuplicateJob",
    "JobNotFound",
    "ScheduleNotFound",
    "BulkOperationNotFound",
    "LimitNotFound",
    "TooManyBulkOperations",
    "JobNotCompleted",
    "WaitTimeout",
    "ResultNotKept",
    "NothingRegistered",
    "UseAwait",
    "NotOpen",
    "RemoteError",
    "LeaseLost",
    "LifespanError",
    "UnusableConnection",
    "BackendError",
    "BackendReplaced",
    "BackendUnavailable",
    "BackendFull",
    "BackendReadOnly",
    "BackendCorrupt",
    "FormatMismatch",
    "Unstorable",
    "SessionLost",
    "TransactionExpired",
    "OutOfOrder",
    "StepLost",
    "NotSupported",
    "PermanentError",
    "JobSignal",
    "RateLimitExceeded",
    "Retry",
    "Snooze",
    "Cancel",
]

_HOMES = MappingProxyType(
    {
        "config": "nimburion.config",
        "server": "nimburion.server",
        "open_backend": "nimburion.backends",
        "Scheduler": "nimburion.scheduler",
        "State": "nimburion.core.job",
        "AttemptError": "nimburion.core.job",
        **dict.fromkeys(
            (
                "Backoff",
                "Batch",
                "BatchContext",
                "ChildProcess",
                "Context",
                "Health",
                "Job",
                "Limit",
                "Priority",
                "Processor",
                "Status",
                "Unique",
                "get_current_context",
                "job",
            ),
            "nimburion.jobs",
        ),
    }
)
"""Where the names of `__all__` are defined; all others are errors, in `nimburion.core.errors`."""


def __getattr__(name: str) -> object:
    if name == "__version__":
        return import_module("nimburion.core.version").__version__
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(_HOMES.get(name, "nimburion.core.errors"))
    return module if module.__name__ == f"{__name__}.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
