"""Threads for `def` handlers."""

from __future__ import annotations

import asyncio
import contextvars
import threading

import pytest

from nimburion.jobs.worker.attempt.threads import HandlerThreads


async def test_values_and_errors_come_back() -> None:
    threads = HandlerThreads(2, asyncio.get_running_loop())
    assert await threads.start(lambda a, b: a + b, 1, 2).future == 3
    with pytest.raises(ZeroDivisionError):
        await threads.start(lambda: 1 // 0).future
    threads.close()
    threads.join()


async def test_no_more_threads_than_needed_and_never_more_than_the_size() -> None:
    threads = HandlerThreads(3, asyncio.get_running_loop())
    proceed = threading.Event()
    for _ in range(2):
        await threads.start(lambda: None).future
    assert len(threads._threads) == 1
    calls = [threads.start(proceed.wait, 10) for _ in range(9)]
    assert len(threads._threads) == 3
    proceed.set()
    assert await asyncio.gather(*(call.future for call in calls)) == [True] * 9
    threads.close()
    threads.join()
    assert not any(thread.is_alive() for thread in threads._threads)


async def test_calls_that_wait_for_one_another_all_run() -> None:
    """Each thread that is woken wakes the next one, before its own call."""
    threads = HandlerThreads(8, asyncio.get_running_loop())
    for _ in range(50):
        barrier = threading.Barrier(8)
        calls = [threads.start(barrier.wait, 10) for _ in range(8)]
        assert sorted(await asyncio.gather(*(call.future for call in calls))) == [*range(8)]
    threads.close()
    threads.join()


async def test_calls_that_were_started_before_the_close_run() -> None:
    threads = HandlerThreads(4, asyncio.get_running_loop())
    calls = [threads.start(pow, number, 2) for number in range(10)]
    threads.close()
    assert await asyncio.gather(*(call.future for call in calls)) == [n * n for n in range(10)]
    threads.join()


async def test_context_variables_travel() -> None:
    threads = HandlerThreads(1, asyncio.get_running_loop())
    variable = contextvars.ContextVar("variable", default="outside")
    variable.set("inside")
    assert await threads.start(variable.get).future == "inside"
    threads.close()


async def test_a_call_whose_waiter_is_gone_still_reports_its_end() -> None:
    threads = HandlerThreads(1, asyncio.get_running_loop())
    proceed, over = threading.Event(), asyncio.Event()
    call = threads.start(proceed.wait, 10)
    call.on_finish = over.set
    call.future.cancel()
    finished = [call.finished]
    proceed.set()
    await asyncio.wait_for(over.wait(), 10)
    finished.append(call.finished)
    assert finished == [False, True]
    threads.close()


async def test_stop_iteration_is_an_error_like_others() -> None:
    threads = HandlerThreads(1, asyncio.get_running_loop())
    with pytest.raises(RuntimeError, match="StopIteration"):
        await threads.start(lambda: next(iter(()))).future
    threads.close()
