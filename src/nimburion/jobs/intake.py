"""Enqueue calls on their way to the store: what comes while one is in flight shares the next.

Alone, a call leaves at once and costs nothing more. A store that does not answer is asked again:
ids make the repetition safe.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from nimburion.core.backend import Producing
from nimburion.core.clock import Clock
from nimburion.core.deadlines import Deadlines
from nimburion.core.errors import BackendUnavailable, Outcome, Unstorable
from nimburion.core.job import Enqueued, NewJob

MOST_AT_ONCE = 500
"""Callers that share one call to the store."""

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0
_GRACE = 1.0


class _Waiter:
    """One caller that waits for its job to be stored."""

    __slots__ = ("future", "job", "since")

    def __init__(self, job: NewJob, since: float) -> None:
        self.job = job
        self.since = since
        self.future: asyncio.Future[Enqueued] = asyncio.get_running_loop().create_future()


class Intake:
    """The way into one store, for one event loop."""

    def __init__(self, backend: Producing, clock: Clock, timeout: float) -> None:
        self._backend = backend
        self._clock = clock
        self._timeout = timeout
        self._deadlines = Deadlines()
        self._busy = False
        self._waiting: list[_Waiter] = []
        self._task: asyncio.Task[None] | None = None

    async def store(self, job: NewJob) -> Enqueued:
        """Store one job, together with what others bring meanwhile; their errors stay theirs."""
        if self._busy:
            waiter = _Waiter(job, self._clock.monotonic())
            self._waiting.append(waiter)
            return await waiter.future
        self._busy = True
        try:
            return (await self.store_all([job]))[0]
        finally:
            self._hand_over()

    async def store_all(self, jobs: Sequence[NewJob], since: float | None = None) -> list[Enqueued]:
        """Store these in one step, repeating the call until it is answered, for `enqueue_timeout`
        seconds from `since`; then `BackendUnavailable`."""
        since = self._clock.monotonic() if since is None else since
        pause, outcome = _FIRST_PAUSE, _NOT_APPLIED
        while True:
            try:
                return await self._asked(jobs)
            except BackendUnavailable as error:
                if error.outcome != "not applied":
                    outcome = "unknown"
                if self._clock.monotonic() - since + pause >= self._timeout:
                    raise _unavailable(error, jobs, outcome) from error
            await self._clock.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _asked(self, jobs: Sequence[NewJob]) -> list[Enqueued]:
        """One call. A store that neither answers nor fails is given up a little after the time."""
        try:
            with self._deadlines.within(self._timeout + _GRACE):
                return await self._backend.enqueue(jobs)
        except TimeoutError as error:
            raise BackendUnavailable(f"no answer within {self._timeout:g} s") from error

    def _hand_over(self) -> None:
        if self._waiting:
            self._task = asyncio.get_running_loop().create_task(self._serve_waiting())
        else:
            self._busy = False

    async def _serve_waiting(self) -> None:
        try:
            while self._waiting:
                group = self._waiting[:MOST_AT_ONCE]
                del self._waiting[:MOST_AT_ONCE]
                await self._serve(group)
        finally:
            self._busy = False
            _cancel(self._waiting)

    async def _serve(self, group: list[_Waiter]) -> None:
        """Answer each of the group: with its result, or with what was wrong with its own job."""
        group = [waiter for waiter in group if not waiter.future.done()]
        while group:
            try:
                results = await self.store_all(
                    [waiter.job for waiter in group], min(waiter.since for waiter in group)
                )
            except Unstorable as error:
                await self._serve_halves(group, error)
                return
            except BackendUnavailable as error:
                _refuse_each(group, error)
                return
            except Exception as error:  # noqa: BLE001 (it goes to each caller)
                _refuse(group, error)
                return
            except BaseException:
                _cancel(group)
                raise
            group = _answer(group, results)

    async def _serve_halves(self, group: list[_Waiter], error: Unstorable) -> None:
        if len(group) == 1:
            _refuse(group, error)
            return
        half = len(group) // 2
        await self._serve(group[:half])
        await self._serve(group[half:])


_NOT_APPLIED: Outcome = "not applied"


def _answer(group: list[_Waiter], results: list[Enqueued]) -> list[_Waiter]:
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


def _refuse_each(group: list[_Waiter], error: BackendUnavailable) -> None:
    cause = error.__cause__
    for waiter in group:
        own = _unavailable(cause or error, [waiter.job], error.outcome)
        own.__cause__ = cause
        _refuse([waiter], own)


def _refuse(group: list[_Waiter], error: Exception) -> None:
    for waiter in group:
        if not waiter.future.done():
            waiter.future.set_exception(error)


def _cancel(group: list[_Waiter]) -> None:
    for waiter in group:
        waiter.future.cancel()


def _unavailable(
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
        f"the store did not answer ({error}): {verdict}", outcome=outcome, job_id=job_id
    )
