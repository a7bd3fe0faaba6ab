"""Groups of dead letters with the same fingerprint."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from nimburion.core.job import JobRecord

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


class FailureGroups(msgspec.Struct, frozen=True, kw_only=True):
    """Groups of dead letters, the largest first."""

    groups: list[FailureGroup]
    examined: int
    """The number of dead letters examined, the most recently enqueued ones."""
    complete: bool
    """Whether every matching dead letter was examined; otherwise the budget was used up."""


def group_failures(records: Iterable[JobRecord], limit: int) -> list[FailureGroup]:
    """Group dead letters by fingerprint, and return the `limit` largest groups, largest first.

    Groups of equal size are ordered by their latest failure, latest first.
    """
    groups: dict[str, list[JobRecord]] = {}
    for record in records:
        groups.setdefault(record.fingerprint or "", []).append(record)
    made = [_make_group(fingerprint, members) for fingerprint, members in groups.items()]
    made.sort(key=lambda group: (-group.count, -group.last, group.fingerprint))
    return made[:limit]


def _make_group(fingerprint: str, members: list[JobRecord]) -> FailureGroup:
    latest = max(members, key=lambda record: (record.finished_at or 0.0, record.id))
    error = latest.error
    times = [record.finished_at or 0.0 for record in members]
    return FailureGroup(
        fingerprint=fingerprint,
        count=len(members),
        first=min(times),
        last=max(times),
        names=tuple(sorted({record.name for record in members})[:GROUP_NAMES]),
        type=error.type if error else "",
        message=error.message if error else "",
        job_id=latest.id,
    )
