"""Saying in the backend what is declared in code, again and again, and forgetting what nobody says.

A schedule is active while somebody who declares it says so; the record tells until when that
holds. The newest declaration counts: who starts puts its own; afterwards it follows what others
put.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from operator import itemgetter
from typing import TypeVar

import msgspec

from nimburion.core.backend import ScheduleCases
from nimburion.core.errors import DefinitionError
from nimburion.core.schedules import ScheduleRecord
from nimburion.scheduler.declarations import DeclaredSchedule
from nimburion.scheduler.spec import ScheduleSpec, parse_spec

_log = logging.getLogger("nimburion.scheduler")

KEPT = 30 * 86_400.0
"""Seconds for which a schedule that nobody declares any more is kept."""

_TURN = 60.0
_TURN_PER_SCHEDULE = 0.05
_TURNS = 3
_AGAIN_AT_ONCE = 200
_AT_ONCE = 64

T = TypeVar("T")


class ScheduleRegistration:
    """Keeps the records of one application's schedules."""

    def __init__(
        self, backend: ScheduleCases, owner: str, declared: Mapping[str, DeclaredSchedule]
    ) -> None:
        self._backend = backend
        self._owner = owner
        self._declared = declared
        self._said: set[str] = set()
        self._refused: set[str] = set()
        self._read: dict[str, tuple[bytes | None, ScheduleSpec | None]] = {}

    def begin(self) -> None:
        """From now on what this code says is the newest word."""
        self._said.clear()

    async def write_changes(self, records: list[ScheduleRecord], now: float) -> bool:
        """Put what must be put, delete what is over; whether anything was."""
        kept = {record.name: record for record in records}
        to_put = self._find_changed(kept, now)
        over = [record.name for record in records if self._is_over(record, now)]
        await run_in_groups(self._backend.put_schedule, to_put)
        await run_in_groups(self._backend.delete_schedule, over)
        self._said.update(self._declared)
        for name in over:
            _log.info("schedule %r is deleted: nobody declares it any more", name)
        return bool(to_put or over)

    def _find_changed(self, kept: Mapping[str, ScheduleRecord], now: float) -> list[ScheduleRecord]:
        """What is new or was changed, and some of what must be said again: the ticks that are due
        wait meanwhile."""
        turn = max(_TURN, _TURN_PER_SCHEDULE * len(self._declared))
        until = now + _TURNS * turn
        news: list[ScheduleRecord] = []
        again: list[tuple[float, ScheduleRecord]] = []
        for own in self._declared.values():
            record = kept.get(own.name)
            spec = None if record is None else self._parse_spec(record)
            if (
                record is not None
                and spec is not None
                and self._belongs_to_another(record, spec, now)
            ):
                continue
            if spec is None or (own.name not in self._said and spec.body() != own.spec):
                news.append(self._make_record(own.name, own.spec, now, until))
            elif (said := spec.declared_until or 0.0) < until - turn:
                again.append((said, self._make_record(own.name, spec, spec.since, until)))
        again.sort(key=itemgetter(0))
        return news + [record for _, record in again[:_AGAIN_AT_ONCE]]

    def _belongs_to_another(self, kept: ScheduleRecord, spec: ScheduleSpec, now: float) -> bool:
        """Whether another application declares it now: its name is taken."""
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
        spec = self._parse_spec(record)
        return record.name not in self._declared and spec is not None and is_over(record, spec, now)

    def _parse_spec(self, record: ScheduleRecord) -> ScheduleSpec | None:
        """None: this version cannot read it. What has not changed is not read twice."""
        encoded, spec = self._read.get(record.name, (None, None))
        if encoded != record.spec:
            try:
                spec = parse_spec(record.spec)
            except DefinitionError:
                spec = None
            self._read[record.name] = record.spec, spec
        return spec

    def _make_record(
        self, name: str, spec: ScheduleSpec, since: float, until: float
    ) -> ScheduleRecord:
        spec = msgspec.structs.replace(spec, since=since, declared_until=until)
        return ScheduleRecord(name=name, spec=spec.encode(), owner=self._owner)


async def run_in_groups(action: Callable[[T], Awaitable[object]], subjects: Sequence[T]) -> None:
    """Do it to all of them, some at once: stores write them together."""
    for first in range(0, len(subjects), _AT_ONCE):
        await asyncio.gather(*map(action, subjects[first : first + _AT_ONCE]))


def is_over(record: ScheduleRecord, spec: ScheduleSpec, now: float) -> bool:
    """Whether nobody has declared it for 30 days, or its last tick was so long ago."""
    if spec.declared_until is not None:
        return spec.declared_until < now - KEPT
    last = max(record.last_tick or 0.0, spec.since)
    if last >= now - KEPT:
        return False
    try:
        return spec.timetable().next_after(last) is None
    except DefinitionError:  # another version wrote it, and knows what it means
        return False
