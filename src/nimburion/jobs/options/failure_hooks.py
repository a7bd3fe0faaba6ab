"""Hooks that the worker calls when an attempt has failed: `on_failure` and `on_dead`.

```python
@processor.on_dead
async def alert(ctx: Context, error: AttemptError) -> None:
    await pager.send(f"{ctx.name} {ctx.job_id} failed for good: {error.message}")
```
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nimburion.core.errors import DefinitionError
from nimburion.core.job import AttemptError
from nimburion.core.settlement import Failed, Retried, Settlement

if TYPE_CHECKING:
    from nimburion.jobs.handling.context import Context
    from nimburion.jobs.options.policy import Policy

FailureHook = Callable[["Context[Any]", AttemptError], object]
"""A function, `def` or `async def`, that is called with the context and the error of an attempt."""


class FailureHooks:
    """The hooks of one processor for the failed attempts of all its jobs."""

    def __init__(self) -> None:
        self.on_failure: list[FailureHook] = []
        """Called when an attempt has failed and the job is retried."""
        self.on_dead: list[FailureHook] = []
        """Called when a job becomes a dead letter."""

    def select(self, settlement: Settlement | None, policy: Policy | None) -> list[FailureHook]:
        """Return the hooks to call for this settlement: the hook of the job, then those of all."""
        if isinstance(settlement, Retried):
            return _put_first(policy.on_failure if policy else None, self.on_failure)
        if isinstance(settlement, Failed):
            return self.select_for_dead(policy)
        return []

    def select_for_dead(self, policy: Policy | None) -> list[FailureHook]:
        """Return the hooks to call for a dead letter of a job with this policy."""
        return _put_first(policy.on_dead if policy else None, self.on_dead)


def check_failure_hook(what: str, hook: object) -> None:
    """Raise `DefinitionError` unless `hook` is a function that can be called with two arguments."""
    if not callable(hook):
        raise DefinitionError(f"{what} must be a function of (ctx, error), not {hook!r}")
    if inspect.isgeneratorfunction(hook) or inspect.isasyncgenfunction(hook):
        raise DefinitionError(f"{what} is called once; remove the `yield` of {hook!r}")
    try:
        inspect.signature(hook).bind(None, None)
    except ValueError:  # a built-in without a signature
        return
    except TypeError as error:
        raise DefinitionError(f"{what} is called with (ctx, error): {error}") from None


def _put_first(own: FailureHook | None, others: list[FailureHook]) -> list[FailureHook]:
    return others if own is None else [own, *others]
