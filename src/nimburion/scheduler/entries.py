"""The schedules that one scheduler fires, ordered by their next tick."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from nimburion.core.errors import DefinitionError
from nimburion.core.schedules import ScheduleRecord
from nimburion.scheduler.spec import ScheduleSpec, parse_spec
from nimburion.scheduler.triggers import Timetable

_log = logging.getLogger("nimburion.scheduler")


class ScheduleEntry:
    """A schedule as last read from the backend, and the ticks decided since."""

    __slots__ = (
        "base",
        "due",
        "guessed",
        "last_tick",
        "name",
        "passed_over",
        "record",
        "spec",
        "suspended",
        "table",
    )

    def __init__(
        self,
        record: ScheduleRecord,
        spec: ScheduleSpec,
        table: Timetable,
        *,
        passed_over: float = 0.0,
    ) -> None:
        self.name: str = record.name
        self.spec: ScheduleSpec = spec
        self.table: Timetable = table
        self.passed_over: float = passed_over
        """The last tick that a middleware dropped here; it and earlier ones do not fire."""
        self.guessed: bool = False
        """Whether `last_tick` is a guess, because another scheduler decided the last tick."""
        self.suspended: bool = False
        """Whether no tick fires until the next `update`."""
        self.update(record)

    def update(self, record: ScheduleRecord) -> None:
        """Update the entry from a record of the backend."""
        self.record: ScheduleRecord = record
        self.last_tick: float | None = record.last_tick
        self.base: float = max(record.last_tick or 0.0, self.spec.since, self.passed_over)
        self.guessed = self.suspended = False
        rests = record.paused or not self.spec.enabled
        self.due: int | None = None if rests else self.table.next_after(self.base)

    def decide(self, tick: int, *, guessed: bool = False) -> None:
        """Record that `tick` was decided."""
        self.last_tick, self.guessed = tick, guessed
        self.skip_until(tick)

    def skip_until(self, instant: float) -> None:
        """Skip all ticks up to `instant` in this process; the backend is not updated."""
        self.base = instant
        self.due = self.table.next_after(instant)

    def pass_over(self, tick: int) -> None:
        """Fire neither `tick` nor an earlier one in this process, also after the record changes."""
        self.passed_over = tick
        self.skip_until(tick)

    def suspend(self) -> None:
        """Fire no tick until the next `update`."""
        self.due, self.suspended = None, True

    def find_tick(self, now: float) -> int | None:
        """Return the tick to decide now; None if there is none. Ticks that the misfire policy
        drops are skipped."""
        tick = find_due_tick(self.table, self.spec, self.base, now)
        if tick is None:
            self.skip_until(max(self.base, now - self.spec.grace))
        return tick


class ScheduleEntries:
    """Entries by name, and a heap of them by due time."""

    def __init__(self) -> None:
        self.entries: dict[str, ScheduleEntry] = {}
        self._line: list[tuple[int, str]] = []
        self._unreadable: dict[str, bytes] = {}
        """The schedules that this version cannot read, by name, with what is stored of them."""

    def update(self, records: list[ScheduleRecord]) -> None:
        """Replace the entries by these records; unchanged records keep their entries."""
        known, self.entries = self.entries, {}
        unreadable, self._unreadable = self._unreadable, {}
        for record in records:
            if unreadable.get(record.name) == record.spec:
                self._unreadable[record.name] = record.spec  # it was logged before
                continue
            entry = known.get(record.name)
            if entry is None or entry.record.spec != record.spec:
                entry = _make_entry(record, entry)
            elif entry.record != record or entry.guessed or entry.suspended:
                entry.update(record)
            if entry is not None:
                self.entries[record.name] = entry
            else:
                self._unreadable[record.name] = record.spec
        self._line = [
            (entry.due, name) for name, entry in self.entries.items() if entry.due is not None
        ]
        heapify(self._line)

    @property
    def next_due(self) -> int | None:
        """Time of the next tick in epoch seconds; None if there is none."""
        while self._line:
            due, name = self._line[0]
            entry = self.entries.get(name)
            if entry is not None and entry.due == due:
                return due
            heappop(self._line)
        return None

    def take_due(self, now: float) -> Iterator[ScheduleEntry]:
        """Yield the due entries in order and remove them from the heap. The caller calls
        `put_back` for each one."""
        while (due := self.next_due) is not None and due <= now:
            yield self.entries[heappop(self._line)[1]]

    def put_back(self, entry: ScheduleEntry) -> None:
        """Return an entry to the heap under its next tick."""
        if entry.due is not None and self.entries.get(entry.name) is entry:
            heappush(self._line, (entry.due, entry.name))


def _make_entry(record: ScheduleRecord, before: ScheduleEntry | None) -> ScheduleEntry | None:
    """Build an entry; None if this version cannot read the record, which is logged. An unchanged
    timetable is kept, because it is expensive to build."""
    try:
        spec = parse_spec(record.spec)
        same = before is not None and before.spec.timing == spec.timing
        return ScheduleEntry(
            record,
            spec,
            before.table if before and same else spec.make_timetable(),
            passed_over=before.passed_over if before else 0.0,
        )
    except DefinitionError as error:
        _log.error("schedule %r is not fired here: %s", record.name, error)
        return None


def find_due_tick(table: Timetable, spec: ScheduleSpec, base: float, now: float) -> int | None:
    """Return the first tick after `base` that fires at `now`; None if there is none.

    Ticks that are at most `grace` seconds late fire one by one under every policy. Of later ticks,
    `skip` fires none, `fire_once` the latest, and `catch_up` all that are at most `window` seconds
    late.
    """
    missed_until = max(base, now - spec.grace)
    if spec.misfire == "catch_up":
        begin = max(base, now - max(spec.grace, spec.window))
    else:
        begin = missed_until
        if spec.misfire == "fire_once" and base < missed_until:
            missed = table.find_latest(base, missed_until)
            if missed is not None:
                return missed
    tick = table.next_after(begin)
    return tick if tick is not None and tick <= now else None
