"""Groups of dead letters with the same fingerprint."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from nimburion.core.job import AttemptError

GROUP_NAMES = 20
"""The maximum number of job names in one group."""


class FailureGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Dead letters whose last errors have the same fingerprint."""

    fingerprint: str
    count: int
    first: float
    """When the earliest of them failed, in epoch seconds."""
    last: float
    """When the latest of them failed."""
    names: tuple[str, ...]
    """Their job names, sorted; at most `GROUP_NAMES`."""
    type: str
    """The type of the error of the latest."""
    message: str
    """The message of the latest."""
    job_id: str
    """The id of the latest."""
    counts_since: tuple[int, ...] = ()
    """How many of them failed at or after each of the times that the caller named."""


class FailureGroups(msgspec.Struct, frozen=True, kw_only=True):
    """Groups of dead letters, the largest first."""

    groups: list[FailureGroup]
    examined: int
    """The number of dead letters examined, the most recently enqueued ones."""
    complete: bool
    """Whether every matching dead letter was examined; otherwise the budget was used up."""


class FailedJob(NamedTuple):
    """What a group needs to know of a dead letter."""

    fingerprint: str
    finished_at: float
    id: str
    name: str


class FailureGrouper:
    """Groups dead letters by fingerprint, some at a time. It keeps one dead letter of each group.

    Args:
        since: the times of `FailureGroup.counts_since`.
    """

    def __init__(self, since: Sequence[float] = ()) -> None:
        self._since = since
        self._groups: dict[str, _GroupedFailures] = {}

    def add(self, failed: Iterable[FailedJob]) -> None:
        """Add dead letters to their groups."""
        for job in failed:
            group = self._groups.get(job.fingerprint)
            if group is None:
                group = self._groups[job.fingerprint] = _GroupedFailures(job, len(self._since))
            group.add(job, self._since)

    def list_largest(self, limit: int) -> list[FailureGroup]:
        """Return the `limit` largest groups, largest first.

        Groups of equal size are ordered by their latest failure, latest first. The type and the
        message are left empty: `add_error` adds those of the latest.
        """
        made = [group.make_group(fingerprint) for fingerprint, group in self._groups.items()]
        made.sort(key=lambda group: (-group.count, -group.last, group.fingerprint))
        return made[:limit]


class _GroupedFailures:
    """The dead letters of one group so far."""

    __slots__ = ("count", "counts_since", "first", "latest", "names")

    def __init__(self, job: FailedJob, times: int) -> None:
        self.count = 0
        self.first = job.finished_at
        self.latest = job
        self.names: set[str] = set()
        self.counts_since = [0] * times

    def add(self, job: FailedJob, since: Sequence[float]) -> None:
        self.count += 1
        self.names.add(job.name)
        self.first = min(self.first, job.finished_at)
        if (job.finished_at, job.id) > (self.latest.finished_at, self.latest.id):
            self.latest = job
        for index, start in enumerate(since):
            if job.finished_at >= start:
                self.counts_since[index] += 1

    def make_group(self, fingerprint: str) -> FailureGroup:
        return FailureGroup(
            fingerprint=fingerprint,
            count=self.count,
            first=self.first,
            last=self.latest.finished_at,
            names=tuple(sorted(self.names)[:GROUP_NAMES]),
            type="",
            message="",
            job_id=self.latest.id,
            counts_since=tuple(self.counts_since),
        )


def group_failures(
    failed: Iterable[FailedJob], limit: int, since: Sequence[float] = ()
) -> list[FailureGroup]:
    """Group dead letters, and return the `limit` largest groups; see `FailureGrouper`."""
    grouper = FailureGrouper(since)
    grouper.add(failed)
    return grouper.list_largest(limit)


def add_error(group: FailureGroup, error: AttemptError | None) -> FailureGroup:
    """Return the group with the error of its latest dead letter."""
    if error is None:
        return group
    return msgspec.structs.replace(group, type=error.type, message=error.message)
