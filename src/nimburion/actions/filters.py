"""Filters of jobs, given as keywords."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, TypedDict, cast

import msgspec

from nimburion.core.errors import InvalidJob
from nimburion.core.job import State
from nimburion.core.queries import JobFilter
from nimburion.core.text.shortening import shorten

_TIMES = ("created_from", "created_to", "finished_from", "finished_to")
_TEXTS = ("queue", "name", "reason", "tenant", "correlation_id", "fingerprint", "tag", "flow")


class FilterOptions(TypedDict, total=False):
    """The fields of `JobFilter` as keywords. A job must match every one that is given."""

    states: Iterable[State | str]
    """The states that a job may have."""
    queue: str
    """The queue of the job."""
    name: str
    """The name of the job."""
    reason: str
    """Why the job failed or was cancelled."""
    ids: Iterable[str]
    """The ids that a job may have."""
    created_from: datetime
    """The earliest time of the enqueue."""
    created_to: datetime
    """The end of these times, exclusive."""
    finished_from: datetime
    """The earliest end of the job. It matches finished jobs only, as `finished_to` does."""
    finished_to: datetime
    """The end of these times, exclusive."""
    tenant: str
    """The tenant of the job."""
    correlation_id: str
    """The correlation id of the job."""
    fingerprint: str
    """The fingerprint of the error that made the job a dead letter."""
    min_failures: int
    """The least number of failures."""
    tag: str
    """A tag that the job must have."""
    flow: str
    """The id of the flow that the job belongs to."""


def narrow_filter(which: JobFilter, options: FilterOptions) -> JobFilter:
    """Return a filter with the fields of the options. Raises `InvalidJob` for a wrong value.

    None is wrong too: a variable that has no value by mistake must not select every job.

    >>> narrow_filter(JobFilter(queue="mail"), {"states": ["failed"]}).states
    frozenset({<State.FAILED: 'failed'>})
    """
    unknown = options.keys() - FilterOptions.__annotations__.keys()
    if unknown:
        known = ", ".join(FilterOptions.__annotations__)
        raise InvalidJob(f"no such field of a filter: {', '.join(sorted(unknown))}; known: {known}")
    fields = cast("dict[str, Any]", dict(options))
    for name, value in fields.items():
        if value is None:
            raise InvalidJob(f"{name} is None: leave it out to match the jobs with any {name}")
        if name in _TEXTS:
            _check_type(name, value, str, "a text")
        elif name in _TIMES:
            fields[name] = _parse_time(name, value)
    if "states" in fields:
        fields["states"] = _parse_states(fields["states"])
    if "ids" in fields:
        fields["ids"] = _parse_ids(fields["ids"])
    if "min_failures" in fields:
        _check_type("min_failures", fields["min_failures"], int, "a whole number")
    return msgspec.structs.replace(which, **fields)


def _check_type(name: str, value: object, expected: type, what: str) -> None:
    if not isinstance(value, expected) or isinstance(value, bool):
        raise InvalidJob(f"{name}: give {what}, not {shorten(repr(value), 80)}")


def _parse_ids(ids: object) -> tuple[str, ...]:
    if isinstance(ids, str):
        raise InvalidJob(f"ids: give a list of ids, not the text {ids!r}")
    found = tuple(ids) if isinstance(ids, Iterable) else None
    if found is None or not all(isinstance(one, str) for one in found):
        raise InvalidJob(f"ids: give a list of ids, not {shorten(repr(ids), 80)}")
    return found


def _parse_states(states: object) -> frozenset[State]:
    if isinstance(states, str):
        raise InvalidJob(f"states: give a list of states, not the text {states!r}")
    if not isinstance(states, Iterable):
        raise InvalidJob(f"states: give a list of states, not {shorten(repr(states), 80)}")
    try:
        return frozenset(map(State, states))
    except ValueError:
        raise InvalidJob(f"states: each is one of {', '.join(State)}, not {states!r}") from None


def _parse_time(name: str, time: object) -> float:
    if not isinstance(time, datetime) or time.utcoffset() is None:
        raise InvalidJob(f"{name}: give a datetime with a time zone, not {time!r}")
    return time.timestamp()
