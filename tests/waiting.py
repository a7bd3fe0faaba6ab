"""Waiting for what should soon be true, with a deadline."""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from nimburion.core.job import JobRecord
from nimburion.jobs.processor import Processor

DEADLINE = 20.0
"""Seconds after which something that should happen counts as not happening."""
_PAUSE = 0.002
_LONGEST_PAUSE = 0.02
_BLOCKING_PAUSE = 0.01
_LONGEST_BLOCKING_PAUSE = 0.05


async def wait_until(
    holds: Callable[[], bool | Awaitable[bool]], what: str, seconds: float = DEADLINE
) -> None:
    """Check every few milliseconds until it holds; `AssertionError` after `seconds`.

    `holds` is a function or an `async def`. Other tasks run between two checks, and other processes
    the longer, the longer this one has waited.
    """
    never = asyncio.get_running_loop().create_future()
    began = time.monotonic()
    while not await _is_true(holds):
        waited = time.monotonic() - began
        assert waited < seconds, f"not within {seconds:g} s: {what}"
        await asyncio.wait({never}, timeout=min(_PAUSE + waited / 10, _LONGEST_PAUSE))


async def _is_true(holds: Callable[[], bool | Awaitable[bool]]) -> bool:
    answer = holds()
    return await answer if inspect.isawaitable(answer) else answer


async def wait_until_finished(processor: Processor, job_id: str) -> JobRecord:
    """Return the record of a job once the job has ended."""

    async def is_finished() -> bool:
        return (await processor.backend.reads.get_job(job_id)).state.finished

    await wait_until(is_finished, f"job {job_id} ends")
    return await processor.backend.reads.get_job(job_id)


def read_busy_time(*pids: int) -> float:
    """Return the seconds that the main threads of these processes were ready to run and waited for
    a processor, since they began; 0 where the system does not say. A test that bounds how long
    something takes leaves this time out: it is the work of other programs."""
    total = 0
    for pid in pids:
        with suppress(OSError, IndexError):
            total += int(Path(f"/proc/{pid}/schedstat").read_text().split()[1])
    return total / 1e9


def read_calm_clock(*pids: int) -> float:
    """Return the seconds of a clock that stands still while this process, or one of these, is ready
    to run and waits for a processor: for a test that bounds how long something takes."""
    return time.monotonic() - read_busy_time(os.getpid(), *pids)


def block_until(holds: Callable[[], bool], what: str, seconds: float = DEADLINE) -> None:
    """Block this thread until it holds; `AssertionError` after `seconds`."""
    never = threading.Event()
    began = time.monotonic()
    while not holds():
        waited = time.monotonic() - began
        assert waited < seconds, f"not within {seconds:g} s: {what}"
        never.wait(min(_BLOCKING_PAUSE + waited / 10, _LONGEST_BLOCKING_PAUSE))
