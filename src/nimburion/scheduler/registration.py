"""Register the declared schedules in the backend, renew them, and delete abandoned ones.

A schedule is active while a running scheduler renews its declaration before `declared_until`. The
newest declaration counts: a scheduler writes its own when it starts. Afterwards it renews whatever
declaration is stored.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import TypeVar

import msgspec

from nimburion.core.backend import Backend
from nimburion.core.errors import DefinitionError
from nimburion.core.schedules import ScheduleRecord, delete_schedule, put_schedule
from nimburion.scheduler.declarations import DeclaredSchedule
from nimburion.scheduler.spec import ScheduleSpec, parse_spec

_log = logging.getLogger("nimburion.scheduler")

KEPT = 30 * 86_400.0
"""Seconds for which a schedule is kept after its last declaration expired."""

_RENEWAL_INTERVAL = 60.0
"""Seconds between two renewals of a declaration; longer with many schedules."""
_RENEWAL_SECONDS_PER_SCHEDULE = 0.05
"""Seconds that each schedule adds to the interval, so that renewals stay below 20 a second."""
_INTERVALS_VALID = 3
"""A declaration is valid for this many intervals: two renewals may fail before it expires."""
_MAX_RENEWALS = 200
"""The most renewals in one step, because due ticks wait for its end."""
_MAX_CONCURRENT_WRITES = 64
"""The most schedules written concurrently. Backends batch concurrent writes."""

T = TypeVar("T")


class ScheduleRegistration:
    """Writes and renews the schedule records of one application."""

    def __init__(
        self, backend: Backend, owner: str, declared: Mapping[str, DeclaredSchedule]
    ) -> None:
        self._backend = backend
        self._owner = owner
        self._declared = declared
        self._registered: set[str] = set()
        self._refused: set[str] = set()
        self._read: dict[str, tuple[bytes | None, ScheduleSpec | None]] = {}

    def begin(self) -> None:
        """Treat this code's declarations as the newest: the next `write_changes` writes those
        that differ."""
        self._registered.clear()

    async def write_changes(self, records: list[ScheduleRecord], now: float) -> bool:
        """Write new, changed and expiring records and delete abandoned ones. Return whether
        anything was written."""
        kept = {record.name: record for record in records}
        to_put = self._find_changed(kept, now)
        over = [record.name for record in records if self._is_over(record, now)]
        await run_in_groups(partial(put_schedule, self._backend), to_put)
        await run_in_groups(partial(delete_schedule, self._backend), over)
        self._registered.update(self._declared)
        for name in over:
            _log.info("schedule %r is deleted: it is no longer declared", name)
        return bool(to_put or over)

    def _find_changed(self, kept: Mapping[str, ScheduleRecord], now: float) -> list[ScheduleRecord]:
        """Return all new and changed records and a limited number of renewals: due ticks wait
        meanwhile."""
        interval = max(_RENEWAL_INTERVAL, _RENEWAL_SECONDS_PER_SCHEDULE * len(self._declared))
        until = now + _INTERVALS_VALID * interval
        changes: list[ScheduleRecord] = []
        renewals: list[tuple[float, ScheduleRecord]] = []
        for declared in self._declared.values():
            record = kept.get(declared.name)
            spec = None if record is None else self.parse_spec(record)
            if (
                record is not None
                and spec is not None
                and self._belongs_to_another(record, spec, now)
            ):
                continue
            if record is None or spec is None or self._is_new_declaration(declared, spec):
                kept_record = record or ScheduleRecord(name=declared.name, spec=b"")
                changes.append(self._replace_spec(kept_record, declared.spec, now, until))
            elif (declared_until := spec.declared_until or 0.0) < until - interval:
                renewals.append(
                    (declared_until, self._replace_spec(record, spec, spec.since, until))
                )
        renewals.sort(key=itemgetter(0))
        return changes + [record for _, record in renewals[:_MAX_RENEWALS]]

    def _is_new_declaration(self, declared: DeclaredSchedule, kept: ScheduleSpec) -> bool:
        return declared.name not in self._registered and kept.get_declaration() != declared.spec

    def _belongs_to_another(self, kept: ScheduleRecord, spec: ScheduleSpec, now: float) -> bool:
        """Return whether another application declares this name now. Logs an error once per
        name."""
        taken = kept.owner not in {"", self._owner} and (spec.declared_until or 0.0) > now
        if taken and kept.name not in self._refused:
            self._refused.add(kept.name)
            _log.error(
                "schedule %r belongs to the application %r in this backend, and is not fired for "
                "%r; give one of them another name",
                kept.name,
                kept.owner,
                self._owner,
            )
        return taken

    def _is_over(self, record: ScheduleRecord, now: float) -> bool:
        spec = self.parse_spec(record)
        return record.name not in self._declared and spec is not None and is_over(record, spec, now)

    def parse_spec(self, record: ScheduleRecord) -> ScheduleSpec | None:
        """Decode a record, cached by its bytes; None if this version cannot read it."""
        encoded, spec = self._read.get(record.name, (None, None))
        if encoded != record.spec:
            try:
                spec = parse_spec(record.spec)
            except DefinitionError:
                spec = None
            self._read[record.name] = record.spec, spec
        return spec

    def _replace_spec(
        self, record: ScheduleRecord, spec: ScheduleSpec, since: float, until: float
    ) -> ScheduleRecord:
        spec = msgspec.structs.replace(spec, since=since, declared_until=until)
        return msgspec.structs.replace(record, spec=spec.encode(), owner=self._owner)


async def run_in_groups(action: Callable[[T], Awaitable[object]], subjects: Sequence[T]) -> None:
    """Run `action` on all subjects, up to 64 at a time: backends batch concurrent writes."""
    for first in range(0, len(subjects), _MAX_CONCURRENT_WRITES):
        await asyncio.gather(*map(action, subjects[first : first + _MAX_CONCURRENT_WRITES]))


def is_over(record: ScheduleRecord, spec: ScheduleSpec, now: float) -> bool:
    """Return whether the declaration expired, or the last possible tick was, over 30 days ago."""
    if spec.declared_until is not None:
        return spec.declared_until < now - KEPT
    last = max(record.last_tick or 0.0, spec.since)
    if last >= now - KEPT:
        return False
    try:
        return spec.make_timetable().next_after(last) is None
    except DefinitionError:  # written by another version, which can read it
        return False
