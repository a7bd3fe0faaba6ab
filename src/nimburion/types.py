"""The types of options, middleware and functions, for annotations.

```python
from nimburion.types import PolicyOptions

NETWORK: PolicyOptions = {"retry_on": (ConnectionError,), "max_retries": 5}


@processor.job(**NETWORK)
async def charge(order: int) -> None: ...
```

What an application uses at run time is in `nimburion` itself.
"""

from nimburion.jobs.client.registered_job import RegisteredJob
from nimburion.jobs.declaration.job import JobCall
from nimburion.jobs.handling.middleware import Enqueueing, Next
from nimburion.jobs.options.enqueue_options import EnqueueOptions
from nimburion.jobs.options.policy import PolicyOptions
from nimburion.scheduler.declarations import ScheduleOptions

__all__ = [
    "EnqueueOptions",
    "Enqueueing",
    "JobCall",
    "Next",
    "PolicyOptions",
    "RegisteredJob",
    "ScheduleOptions",
]
