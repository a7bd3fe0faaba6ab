"""An event loop on which time is a number and order is drawn from a seed.

Nothing waits: when no callback is ready, time jumps to the next timer. Callbacks that are ready at
the same time run in a random order. Every callback belongs to the simulated process in whose
context it was scheduled: those of a paused process are put aside until it goes on, those of a
killed one for good.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import weakref
from collections import deque
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, TypeVar

T = TypeVar("T")

PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)
"""The simulated process that the running callback belongs to; None: the world outside."""


class Process:
    """A simulated operating system process: runs, is paused, or is dead."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.paused = False
        self.dead = False
        self.parked: list[asyncio.Handle] = []
        self.context = contextvars.copy_context()
        self.context.run(PROCESS.set, self)
        self._tasks: weakref.WeakValueDictionary[int, asyncio.Task[Any]] = (
            weakref.WeakValueDictionary()
        )
        self._task_count = 0

    def add_task(self, task: asyncio.Task[Any]) -> None:
        """Note a task that runs in this process."""
        self._task_count += 1
        self._tasks[self._task_count] = task

    def list_tasks(self) -> list[asyncio.Task[Any]]:
        """Return its tasks that are not done, as `asyncio.all_tasks` does in a real process, but in
        the order in which they were made.
        """
        return [task for task in self._tasks.values() if not task.done()]

    def __repr__(self) -> str:
        return self.name


class SimulatedLoop(asyncio.SelectorEventLoop):
    """See the module. `wait_at_most` is virtual seconds: a bound on a simulation that hangs."""

    _ready: deque[asyncio.Handle]
    _stopping: bool

    def __init__(self, random: Random, wait_at_most: float = 10_000.0) -> None:
        super().__init__()
        self._random = random
        self._seconds = 0.0
        self._until = wait_at_most
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timer_count = 0
        self._processes: list[Process] = []
        self._detached: set[asyncio.Task[None]] = set()
        self.over = False
        """The simulation has ended; what still runs is only being put away."""
        self.faults: list[dict[str, Any]] = []
        """What nobody handled: exceptions that left a callback or were never retrieved."""
        self.set_exception_handler(self._note_fault)
        self.set_task_factory(_make_task)  # type: ignore[arg-type]

    def time(self) -> float:
        return self._seconds

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._timer_count += 1
        heapq.heappush(self._timers, (when, self._timer_count, handle))
        return handle

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self._seconds + delay, callback, *args, context=context)

    def spawn(
        self, work: Coroutine[Any, Any, T], process: Process | None = None
    ) -> asyncio.Task[T]:
        """A task of that process, or of the world outside."""
        context = contextvars.Context() if process is None else process.context
        return self.create_task(work, context=context)

    def detach(self, work: Coroutine[Any, Any, None]) -> None:
        """A task of the world outside that nobody waits for; what it raises is a fault."""
        task = self.spawn(work)
        self._detached.add(task)
        task.add_done_callback(self._detached.discard)

    def begin(self, name: str) -> Process:
        """A new process."""
        process = Process(name)
        self._processes.append(process)
        return process

    def kill(self, process: Process) -> None:
        """It ends without a goodbye: nothing of it ever runs again."""
        process.dead = True

    def resume(self, process: Process) -> None:
        """It goes on where it was paused."""
        process.paused = False
        self._ready.extend(process.parked)
        process.parked.clear()

    def _run_once(self) -> None:
        if not self._ready:
            self._jump()
        batch = [handle for handle in self._ready if not handle.cancelled()]
        self._ready.clear()
        if len(batch) > 1:
            self._random.shuffle(batch)
        for handle in batch:
            process = handle._context.get(PROCESS)  # type: ignore[attr-defined]
            if process is None or not (process.dead or process.paused):
                if not handle.cancelled():
                    handle._run()
            else:
                process.parked.append(handle)

    def _jump(self) -> None:
        """Move time to the next timer and make ready all that are due then."""
        timers = self._timers
        while timers and timers[0][2].cancelled():
            heapq.heappop(timers)
        if not timers:
            raise Standstill("nothing is ready and no timer is set: whoever waits, waits for ever")
        self._seconds = max(self._seconds, timers[0][0])
        if self._seconds > self._until:
            raise Standstill(f"not done after {self._until:g} virtual seconds")
        while timers and timers[0][0] <= self._seconds:
            self._ready.append(heapq.heappop(timers)[2])

    def _note_fault(self, _: asyncio.AbstractEventLoop, fault: dict[str, Any]) -> None:
        if not self.over:
            self.faults.append(fault)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Cancelled timers are passed over when their time comes."""

    def _write_to_self(self) -> None:
        """No select to wake."""


async def elapse(seconds: float) -> None:
    """Let that much virtual time pass."""
    loop = asyncio.get_running_loop()
    passed: asyncio.Future[None] = loop.create_future()
    timer = loop.call_later(seconds, _pass, passed)
    try:
        await passed
    finally:
        timer.cancel()


def _pass(passed: asyncio.Future[None]) -> None:
    if not passed.done():
        passed.set_result(None)


class Standstill(Exception):
    """The simulation cannot go on."""


def run(loop: SimulatedLoop, main: Coroutine[Any, Any, T]) -> T:
    """What `main` returns; then everything that is left is cancelled and the loop closed."""
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(main)
    finally:
        _end_the_world(loop)
        asyncio.set_event_loop(None)
        loop.close()


def _end_the_world(loop: SimulatedLoop) -> None:
    """Let every task end, the dead ones too: Python would complain of each that is left."""
    loop.over = True
    loop._until = float("inf")
    for process in loop._processes:
        process.dead = False
        loop.resume(process)
    for _ in range(50):
        left = asyncio.all_tasks(loop)
        if not left:
            return
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.wait(left, timeout=1.0))


def _make_task(
    loop: SimulatedLoop,
    work: Coroutine[Any, Any, T],
    context: contextvars.Context | None = None,
) -> asyncio.Task[T]:
    """Make a task that its process knows."""
    task = asyncio.Task(work, loop=loop, context=context)
    process = PROCESS.get() if context is None else context.get(PROCESS)
    if process is not None:
        process.add_task(task)
    return task
