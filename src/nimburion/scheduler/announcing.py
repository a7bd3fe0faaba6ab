"""Saying in the store what is declared in code, again and again, and forgetting what nobody says.

A schedule is active while somebody who declares it says so; the record tells until when that
holds. The newest declaration counts: who starts puts its own; afterwards it follows what others
put.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import msgspec

from nimburion.core.backend import Scheduling
from nimburion.core.errors import DefinitionError
from nimburion.core.reading import ScheduleRecord
from nimburion.scheduler.declaring import Declared
from nimburion.scheduler.spec import Spec, spec_of

_log = logging.getLogger("nimburion.scheduler")

KEPT = 30 * 86_400.0
"""Seconds for which a schedule that nobody declares any more is kept."""

_TURN = 60.0
_TURN_PER_SCHEDULE = 0.05
_TURNS = 3


class Announcing:
    """Keeps the records of one application's schedules."""

    def __init__(self, store: Scheduling, owner: str, declared: Mapping[str, Declared]) -> None:
        self._store = store
        self._owner = owner
        self._declared = declared
        self._said: set[str] = set()
        self._refused: set[str] = set()
        self._read: dict[str, tuple[bytes | None, Spec | None]] = {}

    def begin(self) -> None:
        """From now on what this code says is the newest word."""
        self._said.clear()

    async def tidy(self, records: list[ScheduleRecord], now: float) -> bool:
        """Put what must be put, delete what is over; whether anything was."""
        kept = {record.name: record for record in records}
        changed = False
        for name, own in self._declared.items():
            if (put := self._to_put(own, kept.get(name), now)) is not None:
                await self._store.put_schedule(put)
                changed = True
            self._said.add(name)
        for record in records:
            spec = self._spec_of(record)
            if record.name in self._declared or spec is None:
                continue
            if is_over(record, spec, now):
                _log.info("schedule %r is deleted: nobody declares it any more", record.name)
                changed |= await self._store.delete_schedule(record.name)
        return changed

    def _to_put(
        self, own: Declared, kept: ScheduleRecord | None, now: float
    ) -> ScheduleRecord | None:
        spec = None if kept is None else self._spec_of(kept)
        if kept is not None and spec is not None and self._is_anothers(kept, spec, now):
            return None
        turn = max(_TURN, _TURN_PER_SCHEDULE * len(self._declared))
        until = now + _TURNS * turn
        new = own.name not in self._said
        if kept is None or spec is None or (new and spec.body() != own.spec):
            return self._record(own.name, own.spec, now, until)
        if spec.declared_until is None or spec.declared_until < until - turn:
            return self._record(own.name, spec, spec.since, until)
        return None

    def _is_anothers(self, kept: ScheduleRecord, spec: Spec, now: float) -> bool:
        """Whether another application declares it now: its name is taken."""
        taken = kept.owner not in {"", self._owner} and (spec.declared_until or 0.0) > now
        if taken and kept.name not in self._refused:
            self._refused.add(kept.name)
            _log.error(
                "schedule %r belongs to the application %r in this store, and is not fired for "
                "%r; give one of them another name",
                kept.name,
                kept.owner,
                self._owner,
            )
        return taken

    def _spec_of(self, record: ScheduleRecord) -> Spec | None:
        """None: this version cannot read it. What has not changed is not read twice."""
        encoded, spec = self._read.get(record.name, (None, None))
        if encoded != record.spec:
            try:
                spec = spec_of(record.spec)
            except DefinitionError:
                spec = None
            self._read[record.name] = record.spec, spec
        return spec

    def _record(self, name: str, spec: Spec, since: float, until: float) -> ScheduleRecord:
        spec = msgspec.structs.replace(spec, since=since, declared_until=until)
        return ScheduleRecord(name=name, spec=spec.encoded(), owner=self._owner)


def is_over(record: ScheduleRecord, spec: Spec, now: float) -> bool:
    """Whether nobody has declared it for 30 days, or its last tick was so long ago."""
    if spec.declared_until is not None:
        return spec.declared_until < now - KEPT
    last = max(record.last_tick or 0.0, spec.since)
    if last >= now - KEPT:
        return False
    try:
        return spec.timetable().after(last) is None
    except DefinitionError:  # another version wrote it, and knows what it means
        return False
