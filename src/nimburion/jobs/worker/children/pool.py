"""The child processes of one worker: started when needed, one call at a time in each.

If a child dies or is killed, only its own call fails.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections import deque
from collections.abc import Awaitable
from contextvars import Context as ContextVariables
from typing import TYPE_CHECKING

from nimburion.core.settings import Recycle, Settings
from nimburion.jobs.worker.children.errors import ChildNotStarted
from nimburion.jobs.worker.children.import_path import ImportPath
from nimburion.jobs.worker.children.messages import Start
from nimburion.jobs.worker.recycling import find_reached_limit

if TYPE_CHECKING:
    from nimburion.jobs.worker.children.process import Child, EnqueueJobs

_log = logging.getLogger("nimburion.worker")


def count_children(settings: Settings) -> int:
    """Return how many child processes a worker may have."""
    if settings.children is not None:
        return settings.children
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(settings.concurrency, cores or 1)


class ChildPool:
    """At most `size` child processes that import the same application.

    It belongs to one event loop.
    """

    def __init__(
        self,
        size: int,
        application: ImportPath,
        recycle: Recycle,
        enqueue_jobs: EnqueueJobs,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._size = size
        self._application = application
        self._recycle = recycle
        self._enqueue_jobs = enqueue_jobs
        self._loop = loop
        self._children: set[Child] = set()
        """All that count towards `size`, also those that are starting."""
        self._idle: list[Child] = []
        self._waiters: deque[asyncio.Future[Child]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False

    async def acquire(self, memory_limit: int | None = None) -> Child:
        """Return a child that runs no call; `release` it afterwards. Waits until one is free.

        A child that already uses half of `memory_limit` is replaced first: the limit is for the
        job, not for what others have left behind. Raises `ChildNotStarted`.
        """
        while True:
            child = self._take_idle() or await self._wait_for_child()
            if memory_limit is None or child.call_count == 0:
                return child
            if child.read_memory() < memory_limit // 2:
                return child
            self._retire(child)

    def release(self, child: Child) -> None:
        """Take a child back after its call, or after it was killed."""
        if not child.is_usable:
            self._discard(child)
            self._run(child.wait_until_finished())
        elif find_reached_limit(self._recycle, child, child.call_count):
            self._retire(child)
        else:
            self._offer(child)

    async def close(self) -> None:
        """End all children; those that run a call are killed. You can call it repeatedly."""
        self._is_closed = True
        idle, self._idle = self._idle, []
        for child in self._children.difference(idle):
            child.kill()
            if child.is_ready:
                self._run(child.wait_until_finished())
        for child in idle:
            self._run(child.stop())
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _take_idle(self) -> Child | None:
        while self._idle:
            child = self._idle.pop()
            if child.is_usable:
                return child
        return None

    async def _wait_for_child(self) -> Child:
        waiter: asyncio.Future[Child] = self._loop.create_future()
        self._waiters.append(waiter)
        self._start_missing()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.release(waiter.result())
            raise

    def _start_missing(self) -> None:
        """Start a child for each waiter that none will serve, as far as the size allows."""
        # Not before the first child: most workers have none.
        from nimburion.jobs.worker.children.process import Child

        starting = sum(not child.is_ready for child in self._children)
        waiting = sum(not waiter.done() for waiter in self._waiters)
        for _ in range(min(waiting - starting, self._size - len(self._children))):
            child = Child(self._loop, self._enqueue_jobs, self._note_end)
            self._children.add(child)
            self._run(self._start(child))

    async def _start(self, child: Child) -> None:
        start = Start(
            self._application.path,
            self._application.script,
            [path or os.getcwd() for path in sys.path],  # noqa: PTH109 (sys.path holds texts)
            sys.argv,
            os.getpid(),
            logging.getLogger().getEffectiveLevel(),
        )
        try:
            await child.start(start)
        except ChildNotStarted as error:
            self._children.discard(child)
            waiters, self._waiters = self._waiters, deque()
            for waiter in waiters:  # the others would fail in the same way
                if not waiter.done():
                    waiter.set_exception(ChildNotStarted(str(error)))
            child.kill()
            await child.wait_until_finished()
        else:
            _log.debug("child process %d is ready", child.id)
            self._offer(child)

    def _offer(self, child: Child) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(child)
                return
        self._idle.append(child)

    def _retire(self, child: Child) -> None:
        self._discard(child)
        self._run(child.stop())

    def _discard(self, child: Child) -> None:
        self._children.discard(child)
        if not self._is_closed:
            self._start_missing()

    def _note_end(self, child: Child) -> None:
        if child in self._idle:
            self._idle.remove(child)
            _log.warning("an idle child process %s", child.describe_end())
        self._discard(child)

    def _run(self, work: Awaitable[None]) -> None:
        """Run a task outside of the context of the attempt that happens to need it."""
        task = self._loop.create_task(_await(work), context=ContextVariables())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _await(work: Awaitable[None]) -> None:
    await work
