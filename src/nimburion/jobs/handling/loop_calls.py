"""Run a coroutine on the event loop of another thread.

While this thread waits, the loop can send work back to it. That work uses connections that only
this thread may use, while the rest of the coroutine runs on the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from concurrent.futures import TimeoutError as StillRunning
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from nimburion.core.errors import NotOpen, UseAwait
from nimburion.core.transactions import CallerConnection

T = TypeVar("T")

_LOOP_CHECK_INTERVAL = 1.0
"""Seconds between two checks whether the event loop still runs."""


class ThreadBoundConnection(CallerConnection):
    """A caller's connection that is used only on its own thread, which waits for the loop."""

    __slots__ = ("_work",)

    def __init__(self, connection: object) -> None:
        super().__init__(connection)
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    @property
    def blocking(self) -> bool:
        """Always True: the connection's thread waits."""
        return True

    async def run(self, work: Callable[[], T]) -> T:
        """Run `work` on the connection's thread, and return its result."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._work.put(lambda: _do(work, future, loop))
        return await future

    def serve(self, waited_for: Future[Any], loop: asyncio.AbstractEventLoop) -> None:
        """Run the requested work on this thread, which owns the connection, until the call has
        ended."""
        waited_for.add_done_callback(lambda _: self._work.put(None))
        while True:
            try:
                work = self._work.get(timeout=_LOOP_CHECK_INTERVAL)
            except Empty:
                if not loop.is_running():
                    raise _make_loop_ended_error() from None
                continue
            if work is None:
                return
            work()


def run_on_loop(
    loop: asyncio.AbstractEventLoop,
    make: Callable[[], Coroutine[Any, Any, T]],
    connection: ThreadBoundConnection | None = None,
    *,
    instead: str = "await the processor's own method instead",
) -> T:
    """Run a coroutine on the event loop of another thread, and block until it returns.

    Work on `connection` is sent back and runs on this thread. `UseAwait` is raised when the loop
    runs in this thread, and says what to do `instead`. `NotOpen` is raised when the loop has ended.
    """
    if find_running_loop() is loop:
        raise UseAwait(
            f"the processor is open on this event loop, and `sync` would block it: {instead}"
        )
    coroutine = make()
    try:
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    except RuntimeError:  # the loop was closed in between
        coroutine.close()
        raise _make_loop_ended_error() from None
    try:
        if connection is not None:
            connection.serve(future, loop)
        return _wait_for_result(future, loop)
    except BaseException:
        future.cancel()
        raise


def _do(work: Callable[[], T], future: asyncio.Future[T], loop: asyncio.AbstractEventLoop) -> None:
    try:
        value = work()
    except Exception as error:  # noqa: BLE001 (it belongs to the coroutine that asked)
        loop.call_soon_threadsafe(_fail, future, error)
    else:
        loop.call_soon_threadsafe(_resolve, future, value)


def _resolve(future: asyncio.Future[T], value: T) -> None:
    if not future.done():
        future.set_result(value)


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)


def find_running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that runs in this thread, if there is one."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _wait_for_result(future: Future[T], loop: asyncio.AbstractEventLoop) -> T:
    """Return the result of the future; `NotOpen` when its event loop has ended."""
    while True:
        try:
            return future.result(_LOOP_CHECK_INTERVAL)
        except StillRunning:
            if future.done():  # a TimeoutError from the coroutine
                raise
            if not loop.is_running():
                raise _make_loop_ended_error() from None


def _make_loop_ended_error() -> NotOpen:
    return NotOpen("the loop that owned the processor has ended")
