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
    from nimburion.core.version import __version__ as __version__
    from nimburion.jobs import (
        Context,
        Health,
        Job,
        Limit,
        Priority,
        Processor,
        State,
        Status,
        job,
    )
    from nimburion.jobs.errors import (
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
    from nimburion.scheduler import Scheduler

__all__ = [
    "Job",
    "job",
    "Processor",
    "Context",
    "Limit",
    "Priority",
    "State",
    "Status",
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
        **dict.fromkeys(
            (
                "Job",
                "job",
                "Processor",
                "Context",
                "Limit",
                "Priority",
                "State",
                "Status",
                "Health",
            ),
            "nimburion.jobs",
        ),
    }
)
"""Where the names of `__all__` are defined; all others are errors, in `nimburion.jobs.errors`."""


def __getattr__(name: str) -> object:
    if name == "__version__":
        return import_module("nimburion.core.version").__version__
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(_HOMES.get(name, "nimburion.jobs.errors"))
    return module if module.__name__ == f"{__name__}.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
