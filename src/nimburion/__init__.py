"""nimburion: background jobs for Python, on four backends with one contract.

```python
from nimburion import Job, Processor, open_backend


class SendEmail(Job):
    to: str

    async def process(self, ctx): ...


processor = Processor(open_backend("sqlite:///jobs.db"))
```

Importing this package loads nothing else: each name below is imported when it is first used. The
errors that nimburion raises are in `nimburion.errors`.
"""

from __future__ import annotations

from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nimburion import config, errors, server
    from nimburion.actions import Operator
    from nimburion.backends import open_backend
    from nimburion.core import events
    from nimburion.core.errors import (
        Cancel,
        PermanentError,
        RateLimitExceeded,
        Retry,
        Snooze,
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
        JobId,
        Limit,
        Priority,
        Processor,
        Status,
        Unique,
        get_current_context,
        job,
    )
    from nimburion.jobs.durable import DurableContext, Signal
    from nimburion.jobs.flows import Flow, chain
    from nimburion.jobs.outbox.outbox import Outbox
    from nimburion.scheduler import Scheduler

__all__ = [
    "Job",
    "job",
    "JobId",
    "Processor",
    "Outbox",
    "Flow",
    "chain",
    "Context",
    "BatchContext",
    "DurableContext",
    "Signal",
    "get_current_context",
    "Limit",
    "Unique",
    "Backoff",
    "Batch",
    "ChildProcess",
    "PermanentError",
    "Retry",
    "Snooze",
    "RateLimitExceeded",
    "Cancel",
    "Priority",
    "State",
    "Status",
    "AttemptError",
    "Health",
    "Scheduler",
    "Operator",
    "config",
    "errors",
    "events",
    "server",
    "open_backend",
]

_HOMES = MappingProxyType(
    {
        "config": "nimburion.config",
        "errors": "nimburion.errors",
        "events": "nimburion.core.events",
        "server": "nimburion.server",
        "open_backend": "nimburion.backends",
        "Outbox": "nimburion.jobs.outbox.outbox",
        **dict.fromkeys(("DurableContext", "Signal"), "nimburion.jobs.durable"),
        **dict.fromkeys(("Flow", "chain"), "nimburion.jobs.flows"),
        "Scheduler": "nimburion.scheduler",
        "Operator": "nimburion.actions",
        **dict.fromkeys(
            ("PermanentError", "Retry", "Snooze", "RateLimitExceeded", "Cancel"),
            "nimburion.core.errors",
        ),
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
                "JobId",
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
"""Where each name of `__all__` is defined."""


def __getattr__(name: str) -> object:
    if name == "__version__":
        return import_module("nimburion.core.version").__version__
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(_HOMES[name])
    return module if _HOMES[name].endswith(f".{name}") else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
