"""Enqueue calls on their way to the backend: what comes while one is in flight shares the next.

Alone, a call leaves at once and costs nothing more. A backend that does not answer is asked again:
ids make the repetition safe. Each caller has a time of its own, however many share a call and
however long the call before theirs takes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from contextvars import ContextVar

from nimburion.core.backend import Producing
from nimburion.core.clock import Clock
from nimburion.core.errors import BackendUnavailable, Outcome, Unstorable
from nimburion.core.job import Enqueued, NewJob
from nimburion.core.timers import SharedTimer

MAX_BATCH = 500
"""Callers that share one call to the backend."""
CALL_BEGAN: ContextVar[float | None] = ContextVar("nimburion_call_began", default=None)
"""Monotonic seconds at which a call began that had to wait before it came here: for the opening."""

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0
_LENIENCE = 0.1
_SHORTEST = 0.25


def limit_of(timeout: float) -> float:
    """The seconds after which a call with this timeout is given up: a little more, as a backend
    often gives up after the same time, and says more than we can.

    >>> limit_of(5.0), limit_of(0.5)
    (5.5, 0.75)
    """
    return timeout + max(_LENIENCE * timeout, _SHORTEST)


class _Waiter:
    """One caller that waits for its job to be stored."""

    __slots__ = ("future", "job", "sent", "since", "until")

    def __init__(self, job: NewJob, future: asyncio.Future[Enqueued]) -> None:
        self.job = job
        self.future = future
        self.since = 0.0
        """When it came, by the clock."""
        self.until = 0.0
        """When it hears at the latest that there was no answer, by the loop's time."""
        self.sent = False
        """Whether its job may be stored."""


class _Repetition:
    """How a call is repeated, and what may be concluded from all tries so far."""

    __slots__ = ("outcome", "pause")

    def __init__(self) -> None:
        self.outcome: Outcome = "not applied"
        self.pause = _FIRST_PAUSE

    def note(self, error: BackendUnavailable) -> None:
        """Another try has failed."""
        if error.outcome != "not applied":
            self.outcome = "unknown"

    async def wait(self, clock: Clock) -> None:
        """Let the pause pass; the next is longer."""
        await clock.sleep(self.pause)
        self.pause = min(2 * self.pause, _LONGEST_PAUSE)


class EnqueueBatcher:
    """The way into one backend, for one event loop."""

    def __init__(self, backend: Producing, clock: Clock, timeout: float) -> None:
        self._backend = backend
        self._clock = clock
        self._timeout = timeout
        self._limit = limit_of(timeout)
        self._shared_timer = SharedTimer()
        self._busy = False
        self._waiting: list[_Waiter] = []
        self._unanswered: deque[_Waiter] = deque()
        """All who wait, those whose jobs are on their way too, in the order in which they came."""
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    async def enqueue(self, job: NewJob) -> Enqueued:
        """Store one job, together with what others bring meanwhile; their errors stay theirs."""
        if self._busy:
            return await self._wait_behind(job)
        self._busy = True
        try:
            return (await self.enqueue_all([job]))[0]
        finally:
            self._serve_next()

    async def enqueue_all(self, jobs: Sequence[NewJob]) -> list[Enqueued]:
        """Store these in one step, repeating the call until it is answered, for `enqueue_timeout`
        seconds; then `BackendUnavailable`."""
        began = CALL_BEGAN.get()
        since, left = self._clock.monotonic(), self._limit
        if began is not None:
            since, left = began, max(left - (since - began), _SHORTEST)
        repetition: _Repetition | None = None
        while True:
            try:
                return await self._enqueue_once(jobs, left)
            except BackendUnavailable as error:
                repetition = repetition or _Repetition()
                repetition.note(error)
                if self._clock.monotonic() - since + repetition.pause >= self._timeout:
                    raise _make_unavailable_error(error, jobs, repetition.outcome) from error
            await repetition.wait(self._clock)
            left = self._limit - (self._clock.monotonic() - since)

    async def _enqueue_once(self, jobs: Sequence[NewJob], seconds: float) -> list[Enqueued]:
        """One call. A backend that neither answers nor fails is given up after so many seconds."""
        try:
            with self._shared_timer.timeout(seconds):
                return await self._backend.enqueue(jobs)
        except TimeoutError as error:
            raise BackendUnavailable(f"no answer within {self._timeout:g} s") from error

    # --- those who come while a call is in flight ---

    async def _wait_behind(self, job: NewJob) -> Enqueued:
        loop = asyncio.get_running_loop()
        waiter = _Waiter(job, loop.create_future())
        waiter.since, waiter.until = self._clock.monotonic(), loop.time() + self._limit
        began = CALL_BEGAN.get()
        if began is not None:
            waiter.until -= min(waiter.since - began, self._limit - _SHORTEST)
            waiter.since = began
        self._waiting.append(waiter)
        self._unanswered.append(waiter)
        if self._timer is None:
            self._timer = loop.call_at(waiter.until, self._refuse_late)
        return await waiter.future

    def _refuse_late(self) -> None:
        """Refuse those whose time is over. One timer stands for all who wait: it is set for the
        oldest, and seldom finds it still waiting."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for waiter in self._unanswered:
            if waiter.until <= now and not waiter.future.done():
                error = BackendUnavailable(f"no answer within {self._timeout:g} s")
                outcome: Outcome = "unknown" if waiter.sent else "not applied"
                _reject([waiter], _make_unavailable_error(error, [waiter.job], outcome))
        self._unanswered = deque(_still_waiting(self._unanswered))
        self._waiting[:] = _still_waiting(self._waiting)
        self._timer = None
        if self._unanswered:
            earliest = min(waiter.until for waiter in self._unanswered)
            self._timer = loop.call_at(earliest, self._refuse_late)

    def _serve_next(self) -> None:
        if self._waiting:
            self._task = asyncio.get_running_loop().create_task(self._serve_waiting())
        else:
            self._busy = False

    async def _serve_waiting(self) -> None:
        try:
            while self._waiting:
                group = self._waiting[:MAX_BATCH]
                del self._waiting[:MAX_BATCH]
                await self._serve(group)
                while self._unanswered and self._unanswered[0].future.done():
                    self._unanswered.popleft()
        finally:
            self._busy = False
            _cancel(self._waiting)

    async def _serve(self, group: list[_Waiter]) -> None:
        """Answer each of the group: with its result, or with what was wrong with its own job."""
        loop = asyncio.get_running_loop()
        repetition = _Repetition()
        while group := _still_waiting(group):
            for waiter in group:
                waiter.sent = True
            try:
                results = await self._enqueue_once(
                    [waiter.job for waiter in group], group[-1].until - loop.time()
                )
            except Unstorable as error:
                await self._serve_halves(group, error)
                return
            except BackendUnavailable as error:
                repetition.note(error)
                self._note_failure(group, error, repetition)
                if _still_waiting(group):
                    await repetition.wait(self._clock)
            except Exception as error:  # noqa: BLE001 (it goes to each caller)
                _reject(group, error)
                return
            except BaseException:
                _cancel(group)
                raise
            else:
                group = _resolve(group, results)

    def _note_failure(
        self, group: list[_Waiter], error: BackendUnavailable, repetition: _Repetition
    ) -> None:
        """A call for these has failed. It is repeated for those who have time left."""
        now = self._clock.monotonic()
        for waiter in group:
            waiter.sent = repetition.outcome != "not applied"
            if now - waiter.since + repetition.pause >= self._timeout:
                own = _make_unavailable_error(error, [waiter.job], repetition.outcome)
                own.__cause__ = error
                _reject([waiter], own)

    async def _serve_halves(self, group: list[_Waiter], error: Unstorable) -> None:
        if len(group) == 1:
            _reject(group, error)
            return
        half = len(group) // 2
        await self._serve(group[:half])
        await self._serve(group[half:])


def _resolve(group: list[_Waiter], results: list[Enqueued]) -> list[_Waiter]:
    """Tell everybody, but those whom a neighbour's conflict refused: they are asked for again."""
    again = []
    for waiter, result in zip(group, results, strict=True):
        if waiter.future.done():
            continue
        if result.outcome == "refused":
            again.append(waiter)
        else:
            waiter.future.set_result(result)
    return again


def _still_waiting(waiters: Iterable[_Waiter]) -> list[_Waiter]:
    return [waiter for waiter in waiters if not waiter.future.done()]


def _reject(group: list[_Waiter], error: Exception) -> None:
    for waiter in group:
        if not waiter.future.done():
            waiter.future.set_exception(error)


def _cancel(group: list[_Waiter]) -> None:
    for waiter in group:
        waiter.future.cancel()


def _make_unavailable_error(
    error: BaseException, jobs: Sequence[NewJob], outcome: Outcome
) -> BackendUnavailable:
    """What the caller is told: the id to ask with again, and what may be concluded."""
    job_id = jobs[0].id if len(jobs) == 1 else None
    what = f"job {job_id}" if job_id else f"the {len(jobs)} jobs"
    verdict = (
        f"{what} was not stored"
        if outcome == "not applied"
        else f"{what} may be stored or not; enqueueing again with the same id is safe"
    )
    return BackendUnavailable(
        f"the backend did not answer ({error}): {verdict}", outcome=outcome, job_id=job_id
    )
