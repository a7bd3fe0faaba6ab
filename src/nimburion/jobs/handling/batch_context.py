"""Batch handlers: one call for several jobs, and an outcome for each of them.

```python
@processor.job(batch=Batch(100, wait=0.5))
async def index(documents: list[Document]) -> None:
    await search.index_all(documents)


await index.enqueue(Document(...))
```
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Generic

from nimburion.jobs.handling.context import Context

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    StateT_co = TypeVar("StateT_co", covariant=True, default=object)
else:  # Python 3.11 has no defaults of type variables
    from typing import TypeVar

    StateT_co = TypeVar("StateT_co", covariant=True)


class BatchContext(Generic[StateT_co]):
    """The jobs of one call of a batch handler, in the order of its list.

    ```python
    @processor.job(batch=100)
    async def index(ctx: BatchContext, documents: list[Document]) -> None:
        for n, answer in enumerate(await search.index_all(documents)):
            if answer.busy:
                ctx.set_outcome(n, Retry(after=10))
    ```
    """

    __slots__ = ("jobs", "outcomes")

    def __init__(self, jobs: Sequence[Context[StateT_co]]) -> None:
        self.jobs: tuple[Context[StateT_co], ...] = tuple(jobs)
        """The context of each job: its id, its attempt, its log, whether it was cancelled."""
        self.outcomes: dict[int, object] = {}
        """What `set_outcome` was given, by the place of the job."""

    @property
    def state(self) -> StateT_co:
        """What the lifespan of this worker yielded; see `Processor.lifespan`."""
        return self.jobs[0].state

    def set_outcome(self, place: int, outcome: object) -> None:
        """Set the outcome of the job at this place of the list, which takes precedence over what
        the handler returns or raises.

        An exception, or its class, ends the attempt of this job as if raised: an error fails
        it, and `Retry`, `Snooze` and `Cancel` mean what they mean in other handlers. Any other
        value is its result. Raises `IndexError` if there is no such job.
        """
        if not 0 <= place < len(self.jobs):
            raise IndexError(f"the batch has {len(self.jobs)} jobs, so there is no job {place}")
        self.outcomes[place] = _make_exception(outcome)


def read_outcomes(returned: object, context: BatchContext[Any]) -> list[object]:
    """Return one outcome for each job of a batch whose handler returned this value.

    `TypeError` is raised when it returned neither None nor one outcome for each job.
    """
    count = len(context.jobs)
    if returned is None:
        outcomes: list[object] = [None] * count
    elif isinstance(returned, list | tuple) and len(returned) == count:
        outcomes = [_make_exception(outcome) for outcome in returned]
    else:
        found = (
            f"{len(returned)} outcomes" if isinstance(returned, list | tuple) else repr(returned)
        )
        raise TypeError(
            f"the batch handler returned {found} for {count} jobs; return None, or a list with one "
            "result or exception for each job"
        )
    for place, outcome in context.outcomes.items():
        outcomes[place] = outcome
    return outcomes


def spread_error(error: BaseException, context: BatchContext[Any]) -> list[object]:
    """Return one outcome for each job of a batch whose handler raised this error."""
    return [context.outcomes.get(place, error) for place in range(len(context.jobs))]


def _make_exception(outcome: object) -> object:
    """Return an instance of an exception class, as `raise` makes it; any other outcome as it is."""
    if not (isinstance(outcome, type) and issubclass(outcome, BaseException)):
        return outcome
    try:
        return outcome()
    except BaseException as error:  # noqa: BLE001 - a class that needs arguments raises TypeError
        return error
