"""Asking about jobs: status, results, counts; and the coming and going of what asks."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

import msgspec

from nimburion.core.backend import Backend
from nimburion.core.clock import Clock, SystemClock
from nimburion.core.errors import JobNotCompleted, NotOpen, WaitTimeout, seconds_of
from nimburion.core.events import Events
from nimburion.core.ids import Entropy
from nimburion.core.job import JobRecord, State
from nimburion.core.limits import check_name
from nimburion.core.reading import Cancellation
from nimburion.core.settings import Settings
from nimburion.jobs.intake import CALL_BEGAN
from nimburion.jobs.registry import Registry
from nimburion.jobs.status import Status, status_of

_FIRST_LOOK = 0.01
_LONGEST_LOOK = 1.0
_LAST_LOOK = 0.25
"""Seconds that the store has to answer, also where the time is all but over."""


class Asking:
    """The part of a client that asks. Belongs to the event loop that opened it."""

    def __init__(
        self,
        backend: Backend,
        *,
        settings: Settings | None = None,
        registry: Registry | None = None,
        clock: Clock | None = None,
        events: Events | None = None,
        entropy: Entropy = os.urandom,
    ) -> None:
        self.backend: Backend = backend
        self.settings: Settings = settings or Settings()
        self.registry: Registry = registry or Registry(self.settings)
        self.clock: Clock = clock or SystemClock()
        self.events: Events = events if events is not None else Events()
        self.entropy: Entropy = entropy
        self.loop: asyncio.AbstractEventLoop | None = None
        """The loop it belongs to; None while it is not open."""

    # Coming and going

    async def open(self) -> None:
        """Open the store, on this loop. Repeatable. `NotOpen` when another loop has it open."""
        loop = asyncio.get_running_loop()
        if self.loop is loop:
            return
        if self.loop is not None and self.loop.is_running():
            raise NotOpen("it is open on another event loop; use `processor.sync` here")
        await self.backend.open()
        self.loop = loop

    async def close(self) -> None:
        """Close the store. Repeatable."""
        if self.loop is not None:
            self.loop = None
            await self.backend.close()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    # Asking

    async def get_status(self, job_id: str) -> Status:
        """What is known of a job. `JobNotFound` when nothing is."""
        record = await self._record(job_id)
        return status_of(record, self._result_decoder(record.name))

    async def wait(self, job_id: str, timeout: float | timedelta | None = None) -> Any:  # noqa: ANN401
        """Wait until the job is completed; what its handler returned.

        `JobNotCompleted`: it failed or was cancelled. `WaitTimeout`: it had not ended after
        `timeout` seconds, or the store had not answered; the job goes on. `JobNotFound`. The store
        is asked at growing intervals, up to a second.
        """
        seconds = None if timeout is None else seconds_of(timeout)
        deadline = None if seconds is None else _began(self.clock) + seconds
        pause = _FIRST_LOOK
        while not (record := await self._record_by(deadline, job_id, seconds)).state.finished:
            left = pause if deadline is None else deadline - self.clock.monotonic()
            if left <= 0:
                raise WaitTimeout(f"job {job_id} is {record.state} after {seconds:g} s of waiting")
            await self.clock.sleep(min(pause, left))
            pause = min(1.5 * pause, _LONGEST_LOOK)
        if record.state is not State.COMPLETED:
            raise JobNotCompleted(job_id, record.state, _why(record))
        return None if record.result is None else self._result_decoder(record.name)(record.result)

    async def cancel(self, job_id: str) -> Cancellation:
        """`cancelled`: it will not run. `requested`: it runs, and its worker is asked to end it; a
        completion that comes first wins. `finished`: too late. `JobNotFound`."""
        self._check_open()
        return await self.backend.cancel(check_name("job id", job_id))

    async def queue_size(self, queue: str | None = None) -> int:
        """Jobs that are due now and not processing, in one queue or in all."""
        self._check_open()
        return sum(info.size for info in await self.backend.queues() if queue in (None, info.name))

    async def pending_count(self) -> int:
        """Jobs that wait: pending, retrying and scheduled."""
        self._check_open()
        return sum(info.size + info.scheduled for info in await self.backend.queues())

    # Inside

    def _check_open(self) -> None:
        if self.loop is None:
            raise NotOpen(
                "open the processor first: `async with processor:`; or use `processor.sync`"
            )
        if self.loop is not asyncio.get_running_loop():
            raise NotOpen(
                "the processor is open on another event loop: use `processor.sync` here; or open "
                "it on this loop, where that one has ended"
            )

    async def _record(self, job_id: str) -> JobRecord:
        self._check_open()
        return await self.backend.get(check_name("job id", job_id))

    async def _record_by(
        self, deadline: float | None, job_id: str, seconds: float | None
    ) -> JobRecord:
        """As `_record`; `WaitTimeout` where the store does not answer until then."""
        if deadline is None:
            return await self._record(job_id)
        time = asyncio.timeout(max(_LAST_LOOK, deadline - self.clock.monotonic()))
        try:
            async with time:
                return await self._record(job_id)
        except TimeoutError as error:
            if not time.expired():
                raise
            raise WaitTimeout(
                f"job {job_id}: {self.backend.describe()} did not answer within the {seconds:g} s "
                "of waiting"
            ) from error

    def _result_decoder(self, name: str) -> Callable[[bytes], Any]:
        handler = self.registry.get(name)
        return msgspec.json.decode if handler is None else handler.decode_result


def _began(clock: Clock) -> float:
    """When the call that runs began."""
    began = CALL_BEGAN.get()
    return clock.monotonic() if began is None else began


def _why(record: JobRecord) -> str | None:
    """The reason, and the last error where there is one."""
    error = record.error
    if record.state is not State.FAILED or error is None:
        return record.reason
    return f"{record.reason}: {error.type}: {error.message}"
