"""Batch enqueue calls: jobs that arrive while one call is in flight share the next call.

A single call is sent immediately, without extra cost. When the backend does not answer, the call is
repeated; the job ids make the repetition safe. Each caller has its own timeout, whatever the number
of callers that share a call and however long the previous call takes.

A job that another open transaction blocks takes a connection of the backend while the backend waits
for that transaction. Therefore such jobs are repeated one at a time, and new jobs pass them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import CancelledError
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from nimburion.core.backend import BlockingProducing, Producing
from nimburion.core.errors import BackendUnavailable, EnqueueBlocked, NotOpen, Outcome, Unstorable
from nimburion.core.job import Enqueued, NewJob
from nimburion.core.metrics.counters import CallCounters
from nimburion.core.timing.clock import Clock
from nimburion.core.timing.pauses import iterate_pauses
from nimburion.core.timing.timers import SharedTimer

if TYPE_CHECKING:
    from nimburion.core.flows import NewFlow

MAX_BATCH = 500
"""The largest number of callers that share one call to the backend."""
RunOnLoop = Callable[[Callable[[], Coroutine[Any, Any, list[Enqueued]]]], list[Enqueued]]
"""Runs a coroutine on the event loop of the backend, and blocks this thread until it returns."""
CALL_STARTED: ContextVar[float | None] = ContextVar("nimburion_call_started", default=None)
"""Monotonic time, in seconds, at which the current call began.

Set when the call first had to wait for the client to open; that wait counts towards its timeout.
"""

_FIRST_PAUSE = 0.05
"""Seconds between the first two tries of a call."""
_LONGEST_PAUSE = 1.0
"""The longest time in seconds between two tries."""
_EXTRA_FRACTION = 0.1
"""The fraction of a timeout by which the limit of a call exceeds it."""
_MIN_EXTRA = 0.25
"""The least number of seconds by which a limit exceeds a timeout, and the least time that a call
gets.
"""


def choose_limit(timeout: float) -> float:
    """Return the seconds after which a call with this timeout is abandoned.

    The limit is slightly longer than the timeout: a backend often times out by itself at the same
    time, and its error says more.

    >>> choose_limit(5.0), choose_limit(0.5)
    (5.5, 0.75)
    """
    return timeout + max(_EXTRA_FRACTION * timeout, _MIN_EXTRA)


class EnqueueState:
    """When the backend last answered an enqueue, and the error of the latest call.

    All handles of one client share it. Each write is one assignment, so any thread may use it.
    """

    __slots__ = ("_clock", "answered_at", "error")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.answered_at: float | None = None
        """The monotonic time of the latest answer; None before the first one."""
        self.error: str | None = None
        """Why the latest call had no answer; None if it had one."""

    def note_failure(self, error: BaseException) -> None:
        """Note that the backend did not answer a call."""
        self.error = " ".join(str(error).split()) or type(error).__name__

    def clear(self) -> None:
        """Forget the calls of a client that was closed."""
        self.answered_at = self.error = None

    @property
    def seconds_since_answer(self) -> float | None:
        """Seconds since the latest answer; None before the first one."""
        if self.answered_at is None:
            return None
        return max(0.0, self._clock.monotonic() - self.answered_at)


class _Waiter:
    """A caller that waits for its job to be stored."""

    __slots__ = ("future", "job", "sent", "since", "until")

    def __init__(self, job: NewJob, future: asyncio.Future[Enqueued]) -> None:
        self.job = job
        self.future = future
        self.since = 0.0
        """The time when it arrived, by the client's clock."""
        self.until = 0.0
        """The deadline for its "no answer" error, in the event loop's time."""
        self.sent = False
        """Whether its job may be stored."""


class _Repetition:
    """The retries of one call: the next pause, and the outcome of all tries so far."""

    __slots__ = ("_pauses", "is_blocked", "outcome", "pause")

    def __init__(self) -> None:
        self.outcome: Outcome = "not applied"
        self.is_blocked = False
        self._pauses = iterate_pauses(_FIRST_PAUSE, _LONGEST_PAUSE)
        self.pause = next(self._pauses)

    def note(self, error: BackendUnavailable) -> None:
        """Record a failed try."""
        self.is_blocked = isinstance(error, EnqueueBlocked)
        if error.outcome != "not applied":
            self.outcome = "unknown"

    async def wait(self, clock: Clock) -> None:
        """Sleep for the current pause, then double the next one, up to one second.

        While another transaction blocks the job, the pause stays the same: the backend itself waits
        for that transaction in each try.
        """
        await clock.sleep(self.pause)
        if not self.is_blocked:
            self.pause = next(self._pauses)


class EnqueueBatcher:
    """Batches the enqueue calls of one event loop to one backend."""

    def __init__(
        self,
        producing: Producing,
        clock: Clock,
        timeout: float,
        calls: CallCounters | None = None,
        state: EnqueueState | None = None,
    ) -> None:
        self._producing = producing
        self._state = state or EnqueueState(clock)
        self._calls = (calls or CallCounters()).get_operation("enqueue")
        self._clock = clock
        self._monotonic = clock.monotonic
        self._timeout = timeout
        self._limit = choose_limit(timeout)
        self._shared_timer = SharedTimer()
        self._busy = False
        self._waiting: list[_Waiter] = []
        self._unanswered: deque[_Waiter] = deque()
        """All waiters in order of arrival, including those whose jobs are in flight."""
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._blocked_call = asyncio.Lock()
        """Held by each call with jobs that are blocked, or that were sent with a blocked job."""
        self._blocked_retry = asyncio.Lock()
        """Held by each repetition of a blocked call: the others of these calls come first."""
        self._blocked_tasks: set[asyncio.Task[None]] = set()

    async def enqueue(self, job: NewJob) -> Enqueued:
        """Store one job, in one call with the jobs that others enqueue meanwhile.

        An error raised for another caller's job does not reach this caller. A job that an open
        transaction blocks is repeated on its own.
        """
        if self._busy:
            return await self._wait_behind(job)
        self._busy = True
        since, left = self._start_call()
        try:
            try:
                return (await self._enqueue_once([job], left))[0]
            except EnqueueBlocked as error:
                blocked = error
            except BackendUnavailable as error:
                return (await self._repeat([job], since, error))[0]
        finally:
            if self._waiting:
                self._task = asyncio.get_running_loop().create_task(self._serve_waiting())
            else:
                self._busy = False
        return (await self._repeat([job], since, blocked))[0]

    def enqueue_blocking(self, job: NewJob, run_on_loop: RunOnLoop) -> Enqueued:
        """Store one job, and block this thread meanwhile.

        Only repeated tries run on the event loop. Call it on any other thread than that loop's.

        The backend must have the capability `blocking_enqueue`.
        """
        since = self._monotonic()
        try:
            results = cast("BlockingProducing", self._producing).enqueue_blocking(
                [job], self._limit
            )
        except BackendUnavailable as error:
            self._note_unanswered(error)
            try:
                return run_on_loop(partial(self._repeat, [job], since, error))[0]
            except (NotOpen, CancelledError) as closed:
                # The caller may open the client again, but must not store the job a second time.
                raise _make_unavailable_error(error, [job], "unknown") from closed
        self._note_answer(since)
        return results[0]

    async def enqueue_all(
        self, jobs: Sequence[NewJob], flows: Sequence[NewFlow] = ()
    ) -> list[Enqueued]:
        """Store these jobs in one step, with their flows.

        The call is repeated until the backend answers, for at most `enqueue_timeout` seconds; then
        `BackendUnavailable` is raised.
        """
        since, left = self._start_call()
        try:
            return await self._enqueue_once(jobs, left, flows)
        except BackendUnavailable as error:
            return await self._repeat(jobs, since, error, flows)

    def _start_call(self) -> tuple[float, float]:
        """Return when the call began, and the seconds after which its first try is abandoned."""
        since, began = self._monotonic(), CALL_STARTED.get()
        if began is None:
            return since, self._limit
        return began, max(self._limit - (since - began), _MIN_EXTRA)

    async def _repeat(
        self,
        jobs: Sequence[NewJob],
        since: float,
        error: BackendUnavailable,
        flows: Sequence[NewFlow] = (),
    ) -> list[Enqueued]:
        """Repeat a call that began at `since` and had no answer."""
        repetition = _Repetition()
        while True:
            repetition.note(error)
            if self._monotonic() - since + repetition.pause >= self._timeout:
                raise _make_unavailable_error(error, jobs, repetition.outcome) from error
            await repetition.wait(self._clock)
            try:
                if isinstance(error, EnqueueBlocked):
                    return await self._repeat_blocked(jobs, since, error, flows)
                left = self._limit - (self._monotonic() - since)
                return await self._enqueue_once(jobs, left, flows)
            except BackendUnavailable as again:
                error = again

    async def _repeat_blocked(
        self,
        jobs: Sequence[NewJob],
        since: float,
        error: EnqueueBlocked,
        flows: Sequence[NewFlow],
    ) -> list[Enqueued]:
        """Repeat a blocked call once, after those before it. Raise `error` if that is too late."""
        left = self._timeout - (self._monotonic() - since)
        waiting = asyncio.timeout(left)
        try:
            async with waiting, self._blocked_retry, self._blocked_call:
                waiting.reschedule(None)
                left = self._limit - (self._monotonic() - since)
                return await self._enqueue_once(jobs, left, flows)
        except TimeoutError:
            raise error from None

    async def _enqueue_once(
        self, jobs: Sequence[NewJob], seconds: float, flows: Sequence[NewFlow] = ()
    ) -> list[Enqueued]:
        """Call the backend once. `BackendUnavailable` is raised when it does not answer in
        `seconds`."""
        sent = self._monotonic()
        try:
            with self._shared_timer.timeout(seconds):
                if flows:
                    results = await self._producing.enqueue(jobs, flows)
                else:
                    results = await self._producing.enqueue(jobs)
            self._note_answer(sent)
            return results
        except EnqueueBlocked:
            self._note_answer(sent)
            raise
        except BackendUnavailable as error:
            self._note_unanswered(error)
            raise
        except TimeoutError as error:
            unavailable = BackendUnavailable(f"no answer within {self._timeout:g} s")
            self._note_unanswered(unavailable)
            raise unavailable from error

    def _note_answer(self, sent: float) -> None:
        now = self._monotonic()
        self._calls.note_answer(now - sent)
        self._state.answered_at, self._state.error = now, None

    def _note_unanswered(self, error: BackendUnavailable) -> None:
        self._calls.failed += 1
        self._state.note_failure(error)

    # --- Callers that arrive while a call is in flight ---

    async def _wait_behind(self, job: NewJob) -> Enqueued:
        loop = asyncio.get_running_loop()
        waiter = _Waiter(job, loop.create_future())
        waiter.since, waiter.until = self._clock.monotonic(), loop.time() + self._limit
        began = CALL_STARTED.get()
        if began is not None:
            waiter.until -= min(waiter.since - began, self._limit - _MIN_EXTRA)
            waiter.since = began
        self._waiting.append(waiter)
        self._unanswered.append(waiter)
        if self._timer is None:
            self._timer = loop.call_at(waiter.until, self._refuse_late)
        return await waiter.future

    def _refuse_late(self) -> None:
        """Reject the waiters whose deadline has passed.

        One timer serves all waiters. It is set for the earliest deadline, and that waiter has
        usually been answered when the timer fires.
        """
        loop = asyncio.get_running_loop()
        now = loop.time()
        for waiter in self._unanswered:
            if waiter.until <= now and not waiter.future.done():
                error = BackendUnavailable(f"no answer within {self._timeout:g} s")
                outcome: Outcome = "unknown" if waiter.sent else "not applied"
                _reject([waiter], _make_unavailable_error(error, [waiter.job], outcome))
        self._unanswered = deque(_list_waiting(self._unanswered))
        self._waiting[:] = _list_waiting(self._waiting)
        self._timer = None
        if self._unanswered:
            earliest = min(waiter.until for waiter in self._unanswered)
            self._timer = loop.call_at(earliest, self._refuse_late)

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
        """Resolve each waiter of the group with its result, or with the error of its own job."""
        loop = asyncio.get_running_loop()
        repetition = _Repetition()
        while group := _list_waiting(group):
            for waiter in group:
                waiter.sent = True
            try:
                results = await self._enqueue_once(
                    [waiter.job for waiter in group], group[-1].until - loop.time()
                )
            except (Unstorable, EnqueueBlocked) as error:
                await self._serve_parts(group, error)
                return
            except BackendUnavailable as error:
                repetition.note(error)
                self._note_failure(group, error, repetition)
                if _list_waiting(group):
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
        """Record a failed call for this group, and reject the waiters that have no time for another
        try."""
        now = self._clock.monotonic()
        for waiter in group:
            waiter.sent = repetition.outcome != "not applied"
            if now - waiter.since + repetition.pause >= self._timeout:
                own = _make_unavailable_error(error, [waiter.job], repetition.outcome)
                own.__cause__ = error
                _reject([waiter], own)

    async def _serve_parts(self, group: list[_Waiter], error: Unstorable | EnqueueBlocked) -> None:
        """Serve the parts of a group, so that the job of the error delays no other."""
        if isinstance(error, EnqueueBlocked):
            self._serve_blocked(group, error)
        elif len(group) > 1:
            await asyncio.gather(*map(self._serve, _halve(group)))
        else:
            _reject(group, error)

    def _serve_blocked(self, group: list[_Waiter], error: EnqueueBlocked) -> None:
        """Serve the parts of a blocked group one at a time, while new groups are sent."""
        for waiter in group:
            waiter.sent = False
        if len(group) == 1:
            cancel = self._start(self._repeat_alone(group[0], error))
            group[0].future.add_done_callback(lambda _: cancel())
            return
        for part in _split_blocked(group):
            self._start(self._serve_part(part))

    def _start(self, work: Coroutine[Any, Any, None]) -> Callable[[], object]:
        """Start a task, and return the function that cancels it."""
        task = asyncio.get_running_loop().create_task(work)
        self._blocked_tasks.add(task)
        task.add_done_callback(self._blocked_tasks.discard)
        return task.cancel

    async def _serve_part(self, part: list[_Waiter]) -> None:
        try:
            async with self._blocked_call:
                await self._serve(part)
        except BaseException:
            _cancel(part)
            raise

    async def _repeat_alone(self, waiter: _Waiter, error: EnqueueBlocked) -> None:
        """Repeat the call of a waiter whose job an open transaction blocks."""
        try:
            results = await self._repeat([waiter.job], waiter.since, error)
        except Exception as last:  # noqa: BLE001 (it goes to the caller)
            _reject([waiter], last)
        except BaseException:
            _cancel([waiter])
            raise
        else:
            _resolve([waiter], results)


def _halve(group: list[_Waiter]) -> tuple[list[_Waiter], list[_Waiter]]:
    half = len(group) // 2
    return group[:half], group[half:]


def _split_blocked(group: list[_Waiter]) -> list[list[_Waiter]]:
    """Split a blocked group: the jobs without a unique key together, each other job alone.

    Only a blocked job takes long, so many calls cost less than a search for it.
    """
    plain = [waiter for waiter in group if waiter.job.options.unique_key is None]
    if len(plain) == len(group):
        return [[waiter] for waiter in group]
    keyed = [[waiter] for waiter in group if waiter.job.options.unique_key is not None]
    return [plain, *keyed] if plain else keyed


def _resolve(group: list[_Waiter], results: list[Enqueued]) -> list[_Waiter]:
    """Resolve the waiters and return those that must be sent again.

    A job is sent again when the conflict of another job in the same call caused its refusal.
    """
    again = []
    for waiter, result in zip(group, results, strict=True):
        if waiter.future.done():
            continue
        if result.outcome == "refused":
            again.append(waiter)
        else:
            waiter.future.set_result(result)
    return again


def _list_waiting(waiters: Iterable[_Waiter]) -> list[_Waiter]:
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
    """Return the error for the caller: the id for a repetition, and whether the jobs may be
    stored."""
    job_id = jobs[0].id if len(jobs) == 1 else None
    what = f"job {job_id}" if job_id else f"the {len(jobs)} jobs"
    verdict = (
        f"{what} was not stored"
        if outcome == "not applied"
        else f"{what} may have been stored; enqueueing again with the same id is safe"
    )
    blocked = isinstance(error, EnqueueBlocked) and outcome == "not applied"
    problem = str(error) if blocked else f"the backend did not answer ({error})"
    return BackendUnavailable(f"{problem}: {verdict}", outcome=outcome, job_id=job_id)
