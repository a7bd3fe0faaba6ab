"""The methods of a processor as blocking calls, for code that is not async: `processor.sync`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from nimburion.core.errors import UseAwait
from nimburion.jobs.client.sync import SyncClient
from nimburion.jobs.declaration.loop_calls import find_running_loop, run_on_loop

if TYPE_CHECKING:
    from nimburion.jobs.processor import Processor

T = TypeVar("T")


class SyncProcessor(SyncClient):
    """The blocking methods of a processor: those of `SyncClient`, `drain` and `process_one`.

    ```python
    job_id = processor.sync.enqueue(SendEmail(to="a@example.com", subject="Hi"))
    processor.sync.drain()  # in a test or a script; elsewhere a worker runs the job
    ```
    """

    def __init__(self, processor: Processor) -> None:
        super().__init__(processor)
        self._processor = processor

    def drain(self, *, advance: bool = False) -> int:
        """Run due jobs, one after another, until no job is due. Return the number of attempts.

        With `advance` and a fake clock, scheduled jobs run too: the clock moves to each due time.

        If the processor is open on a running event loop, the jobs run there. Otherwise the call
        opens the processor on an event loop of its own, and closes it at the end. `UseAwait` is
        raised on a thread that runs an event loop: await the processor's own method there.
        `NothingRegistered` is raised when no due job has a handler in this processor.
        """
        return self._run("drain", lambda: self._processor.drain(advance=advance))

    def process_one(self) -> bool:
        """Run one due job here and now. Return False when no job is due.

        The event loop and the errors are those of `drain`.
        """
        return self._run("process_one", self._processor.process_one)

    def _run(self, name: str, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        loop = self._find_owning_loop()
        if loop is not None:
            return run_on_loop(loop, make, instead=f"write `await processor.{name}()`")
        if find_running_loop() is not None:
            raise UseAwait(
                f"this thread runs an event loop, and `sync.{name}` would block it: write "
                f"`async with processor:` and `await processor.{name}()`"
            )
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            return runner.run(self._open_and_run(make))

    async def _open_and_run(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        async with self._processor:
            return await make()
