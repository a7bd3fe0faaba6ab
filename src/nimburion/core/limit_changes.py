"""Changes of limits at run time: an operator's number wins over what workers declare."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from nimburion.core.errors import InvalidJob
from nimburion.core.keyed_limits import KeyedLimit, get_limited_queue
from nimburion.core.rate_limits import MAX_UNITS, RateLimit

MAX_CONCURRENCY = 1_000_000
"""The largest maximum that a change may set."""


class LimitChange(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A change of a limit, which wins over what workers declare until it is reset.

    `name` is the name of a limit by key or the name of a job. For a job name, and for a queue
    (`queue=mail`), the change also makes a limit that no worker declares.
    """

    name: str
    key: str | None = None
    """The one key of a limit by key that is changed; None: the limit itself."""
    concurrency: int | None = None
    """How many jobs may run at once, 0 for none; None: not changed."""
    rate: RateLimit | None = None
    """How many units may start in a time; None: not changed. Its `cost` is not used: a change
    keeps the cost that the job declares.
    """
    by: str = ""
    """Who changed it."""
    reason: str = ""
    at: float = 0.0
    """When it was last changed, in epoch seconds; set by the backend."""

    def check(self) -> None:
        """Raise `InvalidJob` unless the change sets something, within bounds."""
        if self.concurrency is None and self.rate is None:
            raise InvalidJob("a change of a limit needs a maximum or a rate")
        if self.concurrency is not None and not 0 <= self.concurrency <= MAX_CONCURRENCY:
            raise InvalidJob(
                f"the maximum of a limit is 0 to {MAX_CONCURRENCY:,}, not {self.concurrency}"
            )
        if self.rate is not None and not (
            1 <= self.rate.burst <= MAX_UNITS and self.rate.interval >= 1
        ):
            raise InvalidJob(f"the burst of a rate is 1 to {MAX_UNITS:,}, not {self.rate.burst}")

    def merge(self, newer: LimitChange) -> LimitChange:
        """Return the newer change, with what it does not set from this one."""
        return msgspec.structs.replace(
            newer,
            concurrency=self.concurrency if newer.concurrency is None else newer.concurrency,
            rate=newer.rate or self.rate,
        )


class DeclaredLimits(msgspec.Struct, frozen=True, omit_defaults=True):
    """The limits of one job name, as the newest session of the name declared them."""

    concurrency: int | None = None
    rate: RateLimit | None = None
    keyed: dict[str, KeyedLimit] = msgspec.field(default_factory=dict)
    """The limits by key, by name."""

    def apply(self, job: str, changes: Mapping[str, LimitChange]) -> DeclaredLimits:
        """Return the limits with the changes, which are by the name of the limit.

        A change with the name of a limit by key changes that limit. A change of the limit of a
        queue concerns each job name. Any other changes the concurrency limit and the rate limit of
        the job name.
        """
        queues = {
            name: KeyedLimit() for name in changes if get_limited_queue(name) is not None
        } | self.keyed
        keyed = {name: apply_change(limit, changes.get(name)) for name, limit in queues.items()}
        own = KeyedLimit(self.concurrency, self.rate)
        changed = own if job in keyed else apply_change(own, changes.get(job))
        return DeclaredLimits(changed.concurrency, changed.rate, keyed)


def apply_change(limit: KeyedLimit, change: LimitChange | None) -> KeyedLimit:
    """Return a limit with what a change sets. A changed rate keeps the declared cost."""
    if change is None:
        return limit
    concurrency = limit.concurrency if change.concurrency is None else change.concurrency
    rate = limit.rate
    if change.rate is not None:
        cost = 1 if rate is None else rate.cost
        rate = msgspec.structs.replace(change.rate, cost=cost)
    return KeyedLimit(concurrency, rate)


def get_order(change: LimitChange) -> tuple[str, bool, str]:
    """Return the sort key of changes: by name, that of the whole limit first, then by key."""
    return change.name, change.key is not None, change.key or ""
