"""Decide one tick: build its job and store both in one step."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import TYPE_CHECKING

from msgspec.structs import replace

from nimburion.core.errors import BackendError, InvalidJob, Unstorable
from nimburion.core.events import JobEnqueued, TickDecided
from nimburion.core.job import NewJob
from nimburion.core.schedules import Fired, delete_schedule
from nimburion.core.timing.timezones import find_zone
from nimburion.jobs.client.client import (
    count_stored,
    prepare_job,
    run_enqueue_middleware,
)
from nimburion.jobs.processor import Processor
from nimburion.scheduler.declarations import DeclaredSchedule
from nimburion.scheduler.entries import ScheduleEntry
from nimburion.scheduler.spec import bind_to_tick

if TYPE_CHECKING:
    from nimburion.scheduler.backend_clock import BackendClock

_log = logging.getLogger("nimburion.scheduler")


class Ticker:
    """Decides ticks and emits `TickDecided` and `JobEnqueued` events."""

    def __init__(
        self, processor: Processor, declared: dict[str, DeclaredSchedule], clock: BackendClock
    ) -> None:
        self._processor = processor
        self._declared = declared
        self._clock = clock
        self.behind: bool = False
        """Whether other schedulers decided ticks that this process does not know; read the
        backend soon."""

    async def decide(self, entry: ScheduleEntry) -> bool:
        """Decide the due tick of an entry; return whether this process decided it. Raises
        `BackendError` if the backend is unreachable; the tick then remains undecided."""
        tick = entry.find_tick(self._clock.now())
        if tick is None:
            return False
        fired = await self._fire(entry, tick)
        if entry.spec.run_of:
            await delete_schedule(self._processor.backend, entry.name)
            entry.decide(tick)
            return fired is not None and fired.outcome == "fired"
        if fired is None:
            entry.skip_until(tick)
            return False
        self._note_result(entry, tick, fired)
        return fired.outcome in {"fired", "skipped"}

    async def _fire(self, entry: ScheduleEntry, tick: int) -> Fired | None:
        """Store the tick and its job. Return None if no job could be built, which is logged, or
        if a middleware dropped it. This process tries to build the job again when it has renewed
        the declaration, and passes a dropped tick over.

        An exception of a middleware after the backend has answered is logged; the answer counts.
        """
        answers: list[tuple[NewJob, Fired]] = []

        async def fire(new: NewJob) -> str:
            fired = await self._processor.backend.producing.fire(
                entry.name, entry.last_tick, float(tick), new, entry.spec.overlap
            )
            answers.append((new, fired))
            return fired.job_id or new.id

        try:
            job, new = self._make_job(entry, tick)
            await run_enqueue_middleware(self._processor, job, new, fire)
        except Exception as error:  # noqa: BLE001 (one schedule must not stop the others)
            if not answers:
                self._report_failure(entry, tick, error)
                return None
            _log.exception(
                "schedule %r, tick %d: an enqueue middleware failed after %s",
                entry.name,
                tick,
                "the job was stored"
                if answers[0][1].outcome == "fired"
                else "the tick was decided",
            )
        if not answers:
            entry.pass_over(tick)
            return None
        stored, fired = answers[0]
        if fired.outcome == "fired":
            await count_stored(self._processor, stored)
        self._emit(stored, fired)
        return fired

    def _report_failure(self, entry: ScheduleEntry, tick: int, error: Exception) -> None:
        """Log why a tick has no job. Raises `error` if the backend is unreachable."""
        if isinstance(error, Unstorable):
            _log.error("schedule %r, tick %d: no job: %s", entry.name, tick, error)
        elif isinstance(error, BackendError):
            raise error
        else:
            _log.error(
                "schedule %r, tick %d: the job could not be built",
                entry.name,
                tick,
                exc_info=error,
            )

    def _make_job(self, entry: ScheduleEntry, tick: int) -> tuple[object, NewJob]:
        if entry.spec.payload is not None:
            new = entry.spec.make_job(entry.name, tick)
            # A job that code declares has its keys already. That of a task of the configuration,
            # or of a schedule added by hand, has none.
            has_keys = bool(new.options.limit_keys)
            return None, new if has_keys else self._processor.registry.add_limit_keys(new)
        spec = entry.spec
        declared = self._declared[spec.run_of or entry.name]
        if declared.compute is None:
            raise InvalidJob("this version of the code does not compute its arguments")
        job = declared.compute(datetime.fromtimestamp(tick, find_zone(spec.timezone)))
        new = prepare_job(self._processor, job, **declared.options)
        bound = bind_to_tick(new, declared.name, tick, spec.jitter)
        return job, replace(bound, id=spec.run_id) if spec.run_of else bound

    def _note_result(self, entry: ScheduleEntry, tick: int, fired: Fired) -> None:
        match fired.outcome:
            case "fired" | "skipped":
                entry.decide(tick)
                late = self._clock.now() - tick
                _log.debug("%s: tick %d %s, %.3f s late", entry.name, tick, fired.outcome, late)
                events = self._processor.events
                events.emit(TickDecided(entry.name, tick, fired.outcome, fired.job_id, late))
            case "moved":
                self._give_up_tick(entry, tick)
            case _:
                entry.suspend()

    def _give_up_tick(self, entry: ScheduleEntry, tick: int) -> None:
        """Skip a tick that another scheduler decided first. A scheduler that loses two ticks in
        a row and has more to decide is far behind. It then reads the schedules again instead of
        losing each tick."""
        was_guessed = entry.guessed
        entry.decide(tick, guessed=True)
        if was_guessed and entry.due is not None and entry.due <= self._clock.now():
            entry.suspend()
            self.behind = True

    def _emit(self, new: NewJob, fired: Fired) -> None:
        if fired.outcome == "fired" and fired.job_id is not None:
            event = JobEnqueued(fired.job_id, new.name, new.queue, created=True)
            self._processor.events.emit(event)
