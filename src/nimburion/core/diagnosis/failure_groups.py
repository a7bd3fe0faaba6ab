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


def group_failures(
    failed: Iterable[FailedJob], limit: int, since: Sequence[float] = ()
) -> list[FailureGroup]:
    """Group dead letters by fingerprint, and return the `limit` largest groups, largest first.

    Groups of equal size are ordered by their latest failure, latest first. The type and the message
    are left empty: `add_error` adds those of the latest.
    """
    groups: dict[str, list[FailedJob]] = {}
    for job in failed:
        groups.setdefault(job.fingerprint, []).append(job)
    made = [_make_group(fingerprint, members, since) for fingerprint, members in groups.items()]
    made.sort(key=lambda group: (-group.count, -group.last, group.fingerprint))
    return made[:limit]


def _make_group(fingerprint: str, members: list[FailedJob], since: Sequence[float]) -> FailureGroup:
    latest = max(members, key=lambda job: (job.finished_at, job.id))
    times = [job.finished_at for job in members]
    return FailureGroup(
        fingerprint=fingerprint,
        count=len(members),
        first=min(times),
        last=latest.finished_at,
        names=tuple(sorted({job.name for job in members})[:GROUP_NAMES]),
        type="",
        message="",
        job_id=latest.id,
        counts_since=tuple(sum(time >= start for time in times) for start in since),
    )


def add_error(group: FailureGroup, error: AttemptError | None) -> FailureGroup:
    """Return the group with the error of its latest dead letter."""
    if error is None:
        return group
    return msgspec.structs.replace(group, type=error.type, message=error.message)
