"""Threads for `def` handlers. They start on demand and notify the event loop in batches.

A waking thread wakes the next one if more calls wait. So calls that wait for others run
concurrently, and calls of one iteration of the loop run in few threads: a change of threads costs
as much as a short call.

A thread cannot be stopped from outside. After a timeout or a stop, its call continues.
`ThreadCall.finished` becomes true when the function has really ended.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from nimburion.jobs.worker.attempt.forking import ForkGuard


class ThreadCall:
    """One function call that a thread executes."""

    __slots__ = (
        "_args",
        "_context",
        "_function",
        "error",
        "finished",
        "future",
        "on_finish",
        "thread",
        "value",
    )

    def __init__(
        self, function: Callable[..., Any], args: tuple[Any, ...], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._function = function
        self._args = args
        self._context = contextvars.copy_context()
        self.future: asyncio.Future[Any] = loop.create_future()
        self.finished: bool = False
        """Whether the function has returned or raised; set on the loop's thread."""
        self.on_finish: Callable[[], None] | None = None
        self.thread: int = 0
        """The identifier of the thread that runs the function; 0 while none does."""
        self.value: Any = None
        self.error: BaseException | None = None

    def execute(self) -> None:
        """Call the function and store its outcome. Runs on the thread."""
        try:
            self.value = self._context.run(self._function, *self._args)
        except BaseException as error:  # noqa: BLE001 - delivered to the code that awaits it
            self.error = error

    def deliver(self) -> None:
        """Set the outcome on the future and call `on_finish`. Runs on the loop's thread."""
        self.finished = True
        if not self.future.done():
            if self.error is None:
                self.future.set_result(self.value)
            elif issubclass(
                type(self.error), StopIteration
            ):  # isinstance would read `__class__`, which may raise
                self.future.set_exception(RuntimeError("the handler raised StopIteration"))
            else:
                self.future.set_exception(self.error)
        if self.on_finish is not None:
            self.on_finish()


class HandlerThreads:
    """A pool of at most `size` daemon threads that belongs to one event loop."""

    def __init__(
        self, size: int, loop: asyncio.AbstractEventLoop, guard: ForkGuard | None = None
    ) -> None:
        self._size = size
        self._loop = loop
        self._guard = guard or ForkGuard()
        self._calls: deque[ThreadCall] = deque()
        """The calls that no thread has taken yet."""
        self._wakeups: SimpleQueue[bool] = SimpleQueue()
        """Each wakes one waiting thread: True to take calls, False to end."""
        self._is_waking = False
        """Whether a wake-up is under way that no thread has taken yet."""
        self._done: deque[ThreadCall] = deque()
        self._threads: list[threading.Thread] = []
        self._outstanding = 0
        self._woken = False

    def start(self, function: Callable[..., Any], *args: Any) -> ThreadCall:
        """Start a call with the caller's context variables; await its `future`."""
        call = ThreadCall(function, args, self._loop)
        self._outstanding += 1
        if self._outstanding > len(self._threads) < self._size:
            self._add_thread()
        self._calls.append(call)
        if not self._is_waking:
            self._wake_thread()
        return call

    def close(self) -> None:
        """Let each thread end after its current call and the queued ones."""
        for _ in self._threads:
            self._wakeups.put(False)  # noqa: FBT003 (its only argument)

    def join(self) -> None:
        """Wait until every thread has ended. Call `close` first."""
        for thread in self._threads:
            thread.join()

    def _add_thread(self) -> None:
        name = f"nimburion-handler-{len(self._threads) + 1}"
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _wake_thread(self) -> None:
        """Wake a thread, which takes all calls that wait. Not called while one is being woken."""
        self._is_waking = True
        self._wakeups.put(True)  # noqa: FBT003 (its only argument)

    def _work(self) -> None:
        thread = threading.get_ident()
        calls = self._calls
        while self._wakeups.get():
            # Cleared first: a call that starts from here on wakes a thread again, so none is
            # missed.
            self._is_waking = False
            while calls:
                try:
                    call = calls.popleft()
                except IndexError:  # another thread has taken it
                    break
                if calls and not self._is_waking:
                    self._wake_thread()
                call.thread = thread
                call.execute()
                if self._guard.in_child:
                    self._guard.check(call.error)
                self._done.append(call)
                del call
                if not self._woken:
                    self._woken = True
                    try:
                        self._loop.call_soon_threadsafe(self._deliver)
                    except RuntimeError:  # the loop is closed: no task awaits the outcome
                        return

    def _deliver(self) -> None:
        # Cleared first: a call that ends from here on schedules `_deliver` again, so none is
        # missed.
        self._woken = False
        while self._done:
            self._outstanding -= 1
            self._done.popleft().deliver()
