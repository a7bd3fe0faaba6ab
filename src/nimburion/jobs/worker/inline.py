"""Runs jobs one at a time, in the caller's task: for tests, scripts and debuggers.

Attempts, settlements and rules are the same as in a worker, but there are no slots. No job runs
between two calls, and no thread or task outlives a call, except the lifespan.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol, runtime_checkable

import msgspec

from nimburion.core.backend import Backend
from nimburion.core.errors import BackendUnavailable, JobNotFound, NothingRegistered, SessionLost
from nimburion.core.exchange import RESERVE_NOTHING, Reply, ReserveRequest
from nimburion.core.ids import Entropy
from nimburion.core.job import State
from nimburion.core.lease import Delivery
from nimburion.core.queries import JobFilter
from nimburion.core.settings import Settings
from nimburion.core.settlement import (
    Progressed,
    Recorded,
    Released,
    Settlement,
    Spent,
)
from nimburion.core.timing.clock import Clock
from nimburion.jobs.declaration.registry import Registry
from nimburion.jobs.handling.attempt_record import StepAnswer
from nimburion.jobs.handling.lifespan import Lifespan
from nimburion.jobs.worker.attempt.attempt import Attempt, Interruption
from nimburion.jobs.worker.attempt.attempt_runner import (
    MakeAttemptRunner,
    raise_keyboard_interrupt,
)
from nimburion.jobs.worker.attempt.batch_run import BatchRun
from nimburion.jobs.worker.attempt.threads import HandlerThreads
from nimburion.jobs.worker.exchange.completer import answer_steps
from nimburion.jobs.worker.exchange.fetcher import MAX_EMPTY_REPLIES
from nimburion.jobs.worker.exchange.lane_selector import LaneSelector
from nimburion.jobs.worker.open_lifespan import OpenLifespan
from nimburion.jobs.worker.session.session import make_session

_MAX_UNANSWERED = 10
"""How many due times in succession `drain` tries attempts that the backend does not answer."""
_MAX_ROWS = 500
"""The most jobs that one backend operation processes. Later steps process the others."""


@runtime_checkable
class AdvanceableClock(Protocol):
    """A clock that can be advanced manually: `nimburion.testing.FakeClock`."""

    def advance(self, seconds: float) -> None:
        """Advance the clock by `seconds`."""
        ...


class InlineRunner:
    """A session that runs jobs only during calls of `step` and `drain`."""

    def __init__(
        self,
        backend: Backend,
        registry: Registry,
        settings: Settings,
        make_attempt_runner: MakeAttemptRunner,
        lifespan: Lifespan | None,
        *,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self._backend = backend
        self._registry = registry
        self._settings = settings
        self._make_attempt_runner = make_attempt_runner
        self._lifespan = lifespan
        self._open_lifespan: OpenLifespan | None = None
        self._state: object = None
        self._clock = clock
        self._entropy = entropy
        self._session_id: str | None = None
        self._number = 0
        self._reports: list[Progressed | Spent] = []
        self._unsettled: list[Settlement] = []
        """The settlements of a step whose last exchange had no answer."""
        self._awaited: dict[int, StepAnswer] = {}
        """What waits for the answers to steps, by the identity of their settlement."""
        self._sending: asyncio.Task[None] | None = None
        """The task that sends steps."""
        self._no_answers: list[str] = []
        """Why the attempts of the last step had no answer that they need; empty where they had.
        """
        self._now = clock.now()
        """The time of the backend's clock in the last reply."""
        self._next_due: float | None = None
        """The next time of the last reply without a job."""

    async def step(self) -> bool:
        """Promote, rescue, then reserve, run and settle one job. Return False if no job is due.

        For a batch handler, run as many jobs of its queue and name as its call may take.
        """
        return await self._step() > 0

    async def _step(self) -> int:
        """Do a step, and return the number of its attempts."""
        await self._ensure_lifespan()
        await self._ensure_session()
        if self._unsettled:
            await self._settle()
        await self._backend.consuming.promote(_MAX_ROWS)
        more = True
        while more:  # also until no changes of flows are left
            max_lost = self._settings.max_lost
            rescued = await self._backend.consuming.rescue(_MAX_ROWS, max_lost=max_lost)
            await self._report_dead(rescued.failed)
            more = rescued.more
        reply = await self._request_job()
        if not reply.deliveries:
            self._next_due = reply.next_due
            await self._check_names(reply)
            return 0
        (first,) = reply.deliveries
        deliveries = [first, *await self._reserve_rest_of_batch(first)]
        await self._run(deliveries)
        return len(deliveries)

    async def _request_job(self) -> Reply:
        """Make exchanges until one delivers a job, or says that none waits.

        An exchange that parks as many jobs as it may does neither; the next looks behind them.
        """
        for _ in range(MAX_EMPTY_REPLIES - 1):
            reply = await self._exchange([], self._make_request())
            if reply.deliveries or not reply.waiting:
                return reply
        return await self._exchange([], self._make_request())

    async def _reserve_rest_of_batch(self, first: Delivery) -> list[Delivery]:
        handler = self._registry.get(first.name)
        batch = 1 if handler is None else handler.policy.batch or 1
        if batch == 1:
            return []
        request = self._make_request()
        lanes = (lane for lane in request.lanes if lane.name == first.name)
        rest = msgspec.structs.replace(
            request,
            total=batch - 1,
            lanes=tuple(lane for lane in lanes if lane.queue == first.queue),
        )
        return (await self._exchange([], rest)).deliveries

    async def drain(self, *, advance: bool) -> int:
        """Run jobs until none is due; with `advance`, until none is scheduled either.

        Returns the number of attempts. `advance` moves the clock to the next due time, so it
        requires a clock like `FakeClock`; otherwise it raises `TypeError`. `BackendUnavailable` is
        raised if no attempt gets an answer that it needs, at ten due times in succession.
        """
        attempts = unanswered = 0
        while True:
            reasons: list[str] = []
            while made := await self._step():
                attempts += made
                reasons += self._no_answers
            if reasons:
                unanswered = unanswered + 1 if all(reasons) else 0
            if unanswered == _MAX_UNANSWERED:  # the clock would advance for ever
                raise BackendUnavailable(reasons[0])
            if not (advance and await self._advance()):
                return attempts

    async def close(self) -> None:
        """Close the session and the lifespan."""
        session_id, self._session_id = self._session_id, None
        lifespan, self._open_lifespan = self._open_lifespan, None
        try:
            if session_id is not None:
                await self._backend.consuming.close_session(session_id)
        finally:
            if lifespan is not None:
                await lifespan.close()

    async def _ensure_lifespan(self) -> None:
        """Open the lifespan before the first job."""
        if self._open_lifespan is None:
            lifespan = OpenLifespan(self._lifespan)
            self._state = await lifespan.open()
            self._open_lifespan = lifespan

    async def _ensure_session(self) -> None:
        if self._session_id is not None:
            try:
                await self._backend.consuming.heartbeat(self._session_id)
                return
            except SessionLost:
                self._session_id = None
                self._unsettled = []
        session = make_session(self._registry, self._settings, self._entropy)
        await self._backend.consuming.open_session(session)
        self._session_id, self._number = session.id, 0

    async def _exchange(self, settlements: list[Settlement], want: ReserveRequest) -> Reply:
        if self._session_id is None:
            raise SessionLost("(closed)")
        number = self._number + 1
        reply = await self._backend.consuming.exchange(self._session_id, number, settlements, want)
        self._number = number
        self._now = reply.now
        return reply

    async def _settle(self) -> None:
        """Send the settlements of the last step.

        If the backend does not answer, the next step repeats them, under the same number.
        """
        batch = list(self._unsettled)
        reply = await self._exchange(batch, RESERVE_NOTHING)
        del self._unsettled[: len(reply.results)]
        if self._awaited:
            answer_steps(self._awaited, batch, reply)

    def _record(
        self,
        recorded: Recorded,
        answer: StepAnswer,
        /,
        *,
        is_awaited: bool,  # noqa: ARG002 (nothing else waits to be sent)
    ) -> None:
        """Send a step of a durable run; see `RecordStep`."""
        self._unsettled.append(recorded)
        self._awaited[id(recorded)] = answer
        if self._sending is None:
            self._sending = asyncio.create_task(self._send_steps())

    async def _send_steps(self) -> None:
        """Send the steps that wait, also those that come meanwhile."""
        try:
            while self._unsettled:
                await self._settle()
        except Exception as error:  # noqa: BLE001 (the handler fails with it)
            for answer in self._awaited.values():
                answer.note_failure(error)
            self._awaited.clear()
        finally:
            self._sending = None

    async def _report_dead(self, job_ids: Sequence[str]) -> None:
        """Call the hooks for jobs that became dead letters because their workers were lost."""
        if job_ids:
            threads = HandlerThreads(1, asyncio.get_running_loop())
            attempts = self._make_attempt_runner(
                threads, self._note_report, self._state, record=self._record, hold=0.0
            )
            for job_id in job_ids:
                with suppress(JobNotFound):  # deleted since
                    await attempts.report_dead(await self._backend.reads.get_job(job_id))

    def _make_request(self) -> ReserveRequest:
        selector = LaneSelector(self._registry, self._settings, self._entropy)
        return selector.make_request(1, everything=True)

    async def _run(self, deliveries: Sequence[Delivery]) -> None:
        """Run jobs at the same time, and settle them.

        If the caller is cancelled, interrupt the handlers and release their jobs first.
        """
        attempts = [Attempt(delivery, self._session_id or "") for delivery in deliveries]
        ending = asyncio.create_task(self._run_and_settle(attempts))
        try:
            await asyncio.shield(ending)
        except asyncio.CancelledError:
            for attempt in attempts:
                attempt.interrupt(Interruption.STOP)
            await asyncio.wait({ending})
            raise
        finally:
            self._no_answers = [attempt.no_answer for attempt in attempts]
            for attempt in attempts:
                attempt.clear()

    async def _run_and_settle(  # noqa: C901 - the end of each attempt in one place
        self, attempts: Sequence[Attempt]
    ) -> None:
        threads = HandlerThreads(1, asyncio.get_running_loop())
        runner = self._make_attempt_runner(
            threads, self._note_report, self._state, record=self._record, hold=0.0
        )
        runner.reporter.note_exchange(self._now)
        ended: dict[Attempt, Settlement | None] = {
            attempt: Released(attempt.delivery.lease) for attempt in attempts
        }

        if len(attempts) > 1:
            batch_run = BatchRun(len(attempts))
            for attempt in attempts:
                attempt.batch_run = batch_run

        async def perform(attempt: Attempt) -> None:
            attempt.started = self._clock.monotonic()
            try:
                ended[attempt] = await runner.perform(attempt)
            except BaseException as error:  # noqa: BLE001 - the attempt counts after any error
                ended[attempt] = await runner.settle_after_error(attempt, error)
            finally:
                if attempt.batch_run is not None:
                    attempt.batch_run.leave(attempt)

        # Separate tasks, so that later `enqueue` calls of the caller do not see the context of a
        # handler.
        for attempt in attempts:
            attempt.task = asyncio.create_task(perform(attempt))
        for task in [attempt.task for attempt in attempts]:
            if task is not None:
                await _wait_until_done(task)
        threads.close()
        # Wait for a handler that exceeded its timeout: no thread outlives this call.
        await asyncio.get_running_loop().run_in_executor(None, threads.join)
        if self._sending is not None:
            await asyncio.wait({self._sending})
        self._unsettled += self._reports
        self._unsettled += [each for each in ended.values() if each is not None]
        self._reports.clear()
        await self._settle()
        for attempt in attempts:
            raise_keyboard_interrupt(attempt)

    def _note_report(self, report: Progressed | Spent) -> None:
        if isinstance(report, Progressed):
            self._reports = [
                old
                for old in self._reports
                if not (isinstance(old, Progressed) and old.lease == report.lease)
            ]
        self._reports.append(report)

    async def _check_names(self, reply: Reply) -> None:
        """Raise `NothingRegistered` if due jobs wait for a handler that is not registered here."""
        waiting = JobFilter(states=frozenset({State.PENDING, State.RETRYING}))
        page = await self._backend.reads.list_jobs(waiting, limit=_MAX_ROWS)
        known = set(self._registry.names)
        unknown = {j.name for j in page.jobs if j.due <= reply.now and j.name not in known}
        if unknown:
            names = ", ".join(sorted(unknown))
            raise NothingRegistered(
                f"jobs are due whose handlers are not registered here: {names}; write "
                "`processor.register(…)` with their Job classes or @job functions first"
            )

    async def _advance(self) -> bool:
        """Advance the clock until the next job is due or allowed. Return False if there is none."""
        promoted = await self._backend.consuming.promote(_MAX_ROWS)
        if promoted.count:
            return True
        times = [time for time in (promoted.next_due, self._next_due) if time is not None]
        if not times:
            return False
        if not isinstance(self._clock, AdvanceableClock):
            raise TypeError("drain(advance=True) needs a clock that can be advanced: FakeClock")
        self._clock.advance(max(0.0, min(times) - self._clock.now()))
        if await self._backend.now() < min(times):
            raise TypeError(
                "drain(advance=True) needs a backend that reads the clock of the processor: "
                f"memory://. The backend {self._backend.describe()} reads its own clock"
            )
        return True


async def _wait_until_done(task: asyncio.Task[Any]) -> None:
    """Wait for the task to end, even if the waiting task is cancelled meanwhile.

    A handler may cancel every task of its event loop.
    """
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            continue
