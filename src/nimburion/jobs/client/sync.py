"""The client for code that is not async: enqueue jobs and query them with blocking calls.

If the client is open on a running event loop, a call runs on that loop. Otherwise the first call
starts a thread with its own loop and opens another client of the same backend there. After a fork,
the child's first call opens a new client: the child never uses the connections of its parent.

If the backend can be called without a loop (`blocking_enqueue`), `enqueue` calls it directly once
the client is open. The thread then waits for the backend only.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial, wraps
from types import MethodType, TracebackType
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    ParamSpec,
    Self,
    TypeVar,
    cast,
    overload,
)

from nimburion.core.errors import BackendUnavailable, NotOpen
from nimburion.core.timing.durations import to_seconds
from nimburion.jobs.client.batching import CALL_STARTED, choose_limit
from nimburion.jobs.client.client import Client
from nimburion.jobs.handling.loop_calls import (
    ThreadBoundConnection,
    find_running_loop,
    run_on_loop,
)

if TYPE_CHECKING:
    from datetime import datetime
    from typing import Literal, Unpack
    from uuid import UUID

    from nimburion.core.timing.durations import Duration
    from nimburion.jobs.client.client import EnqueueResult
    from nimburion.jobs.client.sync_actions import (
        SyncAuditLog,
        SyncBulk,
        SyncDeadLetters,
        SyncFlows,
        SyncLimits,
        SyncQueues,
        SyncTenants,
        SyncWorkers,
    )
    from nimburion.jobs.declaration.job import AnyJob, JobId, JobReturning
    from nimburion.jobs.durable.signals import Signal
    from nimburion.jobs.options.enqueue_options import EnqueueManyOptions, EnqueueOptions
    from nimburion.scheduler.sync_schedules import SyncSchedules

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_CLOSE_TIMEOUT = 5.0
"""Seconds to wait for the end of the thread."""
_MIN_OPEN_TIMEOUT = 1.0
"""The least number of seconds for opening a client, even if the call has a shorter timeout."""
_UNOPENED_CLOSE_TIMEOUT = 0.5
"""Seconds to wait for the end of a thread whose client could not be opened.

Short, because the caller has already waited for the opening.
"""


class SyncMethod(Generic[P, R]):
    """A method of `SyncClient` that runs an async method of `Client`, with the same signature."""

    def __init__(self, method: Callable[Concatenate[Client, P], Coroutine[Any, Any, R]]) -> None:
        self.method: Callable[Concatenate[Client, P], Coroutine[Any, Any, R]] = method
        self.__doc__: str | None = method.__doc__
        self.__name__: str = method.__name__

        @wraps(method)  # so that help() shows the parameters and the text of the async method
        def call(client: SyncClient, *args: P.args, **kwargs: P.kwargs) -> R:
            return client.call(method, *args, **kwargs)

        self._call = call

    @overload
    def __get__(self, instance: None, owner: type[SyncClient]) -> SyncMethod[P, R]: ...
    @overload
    def __get__(self, instance: SyncClient, owner: type[SyncClient]) -> Callable[P, R]: ...
    def __get__(
        self, instance: SyncClient | None, owner: type[SyncClient]
    ) -> SyncMethod[P, R] | Callable[P, R]:
        if instance is None:
            return self
        return cast("Callable[P, R]", MethodType(self._call, instance))


def _make_sync(
    method: Callable[Concatenate[Client, P], Coroutine[Any, Any, R]],
) -> Callable[[Callable[[SyncClient], None]], SyncMethod[P, R]]:
    """Return a decorator that replaces a method with the blocking form of `method`."""
    return lambda _: SyncMethod(method)


class SyncClient:
    """The methods of `Client` as blocking calls: `processor.sync`.

    ```python
    job_id = processor.sync.enqueue(SendEmail(to="a@example.com", subject="Hi"))
    ```

    You can call it from any thread, except the thread of the event loop that owns the processor:
    there each call raises `UseAwait`.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._owner_process = os.getpid()
        # Keyed by process: after a fork, the child does not use its parent's portal.
        self._portals: dict[int, _ProcessPortal] = {}

    def __repr__(self) -> str:
        return f"<sync of {self._client!r}>"

    if TYPE_CHECKING:  # a SyncMethod cannot carry the type variable of a job's result

        def enqueue(self, job: JobReturning[T], **options: Unpack[EnqueueOptions]) -> JobId[T]: ...
        def enqueue_or_get(
            self, job: JobReturning[T], **options: Unpack[EnqueueOptions]
        ) -> EnqueueResult[T]: ...
        @overload
        def enqueue_many(
            self, jobs: Iterable[JobReturning[T]], **options: Unpack[EnqueueManyOptions]
        ) -> list[JobId[T]]: ...
        @overload
        def enqueue_many(
            self,
            jobs: Iterable[AnyJob | tuple[AnyJob, EnqueueOptions]],
            **options: Unpack[EnqueueManyOptions],
        ) -> list[JobId[Any]]: ...
        def enqueue_many(
            self, jobs: Iterable[Any], **options: Unpack[EnqueueManyOptions]
        ) -> list[Any]: ...
        def enqueue_with_id(
            self,
            job: JobReturning[T],
            job_id: str | UUID | None = None,
            /,
            **options: Unpack[EnqueueOptions],
        ) -> JobId[T]: ...
        def enqueue_with_priority(
            self, job: JobReturning[T], priority: int, /, **options: Unpack[EnqueueOptions]
        ) -> JobId[T]: ...
        def enqueue_at(
            self, job: JobReturning[T], at: datetime, /, **options: Unpack[EnqueueOptions]
        ) -> JobId[T]: ...
        def enqueue_after(
            self, job: JobReturning[T], after: Duration, /, **options: Unpack[EnqueueOptions]
        ) -> JobId[T]: ...
        @overload
        def wait(
            self, job_id: JobId[T], timeout: Duration | None = None, *, missing_ok: bool = False
        ) -> T: ...
        @overload
        def wait(
            self, job_id: JobId[Any], timeout: Duration | None = None, *, missing_ok: bool = False
        ) -> object: ...
        @overload
        def wait(
            self, job_id: str | UUID, timeout: Duration | None = None, *, missing_ok: bool = False
        ) -> Any: ...  # noqa: ANN401
        def wait(
            self, job_id: str | UUID, timeout: Duration | None = None, *, missing_ok: bool = False
        ) -> Any: ...
        @overload
        def wait_all(  # pyright: ignore[reportOverlappingOverload]
            self,
            job_ids: Iterable[JobId[T]],
            timeout: Duration | None = None,
            *,
            return_exceptions: Literal[False] = False,
            missing_ok: bool = False,
        ) -> list[T]: ...
        @overload
        def wait_all(
            self,
            job_ids: Iterable[JobId[T]],
            timeout: Duration | None = None,
            *,
            return_exceptions: Literal[True],
            missing_ok: bool = False,
        ) -> list[T | Exception]: ...
        @overload
        def wait_all(
            self,
            job_ids: Iterable[JobId[Any]],
            timeout: Duration | None = None,
            *,
            return_exceptions: bool = False,
            missing_ok: bool = False,
        ) -> list[object]: ...
        @overload
        def wait_all(
            self,
            job_ids: Iterable[str | UUID],
            timeout: Duration | None = None,
            *,
            return_exceptions: bool = False,
            missing_ok: bool = False,
        ) -> list[Any]: ...
        def wait_all(
            self,
            job_ids: Iterable[str | UUID],
            timeout: Duration | None = None,
            *,
            return_exceptions: bool = False,
            missing_ok: bool = False,
        ) -> list[Any]: ...

    else:
        enqueue = SyncMethod(Client.enqueue)
        enqueue_or_get = SyncMethod(Client.enqueue_or_get)
        enqueue_many = SyncMethod(Client.enqueue_many)
        enqueue_with_id = SyncMethod(Client.enqueue_with_id)
        enqueue_with_priority = SyncMethod(Client.enqueue_with_priority)
        enqueue_at = SyncMethod(Client.enqueue_at)
        enqueue_after = SyncMethod(Client.enqueue_after)
        wait = SyncMethod(Client.wait)
        wait_all = SyncMethod(Client.wait_all)

    @_make_sync(Client.enqueue_flow)
    def enqueue_flow(self) -> None: ...
    @_make_sync(Client.enqueue_raw)
    def enqueue_raw(self) -> None: ...
    @_make_sync(Client.get_status)
    def get_status(self) -> None: ...
    @_make_sync(Client.get_statuses)
    def get_statuses(self) -> None: ...
    @_make_sync(Client.cancel)
    def cancel(self) -> None: ...

    if TYPE_CHECKING:

        def signal(
            self,
            job_id: str | UUID,
            signal: Signal[T],
            value: T,
            *,
            id: str | UUID | None = None,  # noqa: A002
        ) -> bool: ...

    else:
        signal = SyncMethod(Client.signal)

    @_make_sync(Client.run_now)
    def run_now(self) -> None: ...
    @_make_sync(Client.queue_size)
    def queue_size(self) -> None: ...
    @_make_sync(Client.pending_count)
    def pending_count(self) -> None: ...

    @property
    def queues(self) -> SyncQueues:
        """`queues` of the client as blocking calls."""
        from nimburion.jobs.client.sync_actions import SyncQueues

        return SyncQueues(self, "queues")

    @property
    def limits(self) -> SyncLimits:
        """`limits` of the client as blocking calls."""
        from nimburion.jobs.client.sync_actions import SyncLimits

        return SyncLimits(self, "limits")

    @property
    def dead(self) -> SyncDeadLetters:
        """`dead` of the client as blocking calls."""
        from nimburion.jobs.client.sync_actions import SyncDeadLetters

        return SyncDeadLetters(self, "dead")

    @property
    def tenants(self) -> SyncTenants:
        """`tenants` of the client as blocking calls."""
        from nimburion.jobs.client.sync_actions import SyncTenants

        return SyncTenants(self, "tenants")

    @property
    def workers(self) -> SyncWorkers:
        """`workers` of the client as blocking calls."""
        from nimburion.jobs.client.sync_actions import SyncWorkers

        return SyncWorkers(self, "workers")

    @property
    def schedules(self) -> SyncSchedules:
        """`schedules` of the client as blocking calls."""
        from nimburion.scheduler.sync_schedules import SyncSchedules

        return SyncSchedules(self, "schedules")

    @property
    def flows(self) -> SyncFlows:
        """`flows` of the client as blocking calls."""
        from nimburion.jobs.client.sync_actions import SyncFlows

        return SyncFlows(self, "flows")

    @property
    def audit(self) -> SyncAuditLog:
        """`audit` of the client as blocking calls."""
        from nimburion.jobs.client.sync_actions import SyncAuditLog

        return SyncAuditLog(self, "audit")

    @property
    def bulk(self) -> SyncBulk:
        """`bulk` of the client as blocking calls."""
        from nimburion.jobs.client.sync_actions import SyncBulk

        return SyncBulk(self, "bulk")

    def call(
        self,
        method: Callable[Concatenate[Client, P], Coroutine[Any, Any, R]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """Run one async method of the client on the right event loop, and block until it
        returns."""
        if method is Client.enqueue:
            enqueue_blocking = self._find_blocking_enqueue(kwargs)
            if enqueue_blocking is not None:
                with suppress(NotOpen):  # closed in between: open it again
                    return cast("R", enqueue_blocking(*args, **kwargs))
        connection = None
        if kwargs.get("connection") is not None:  # usually bound to this thread: use it here only
            kwargs["connection"] = connection = ThreadBoundConnection(kwargs["connection"])
        loop = self._find_owning_loop()
        if loop is not None:
            make = partial(method, self._client, *args, **kwargs)
            instead = f"write `await processor.{method.__name__}(…)`"
            return run_on_loop(loop, make, connection, instead=instead)
        seconds = _measure_time(method, args, kwargs)
        with self._find_portal().use_portal() as portal:
            call = partial(method, portal.client, *args, **kwargs)
            if connection is not None and portal.client._needs_no_backend:
                return run_on_loop(portal.loop, call, connection)
            return run_on_loop(portal.loop, partial(portal.call, call, seconds), connection)

    async def call_async(
        self,
        method: Callable[Concatenate[Client, P], Coroutine[Any, Any, R]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """Run one async method of the client on its own event loop, and await it on this one.

        For async code on event loops that come and go, as in Django: no loop has to open the
        processor, and no thread is blocked.
        """
        loop = self._find_owning_loop()
        if loop is asyncio.get_running_loop():
            return await method(self._client, *args, **kwargs)
        if loop is not None:
            make = partial(method, self._client, *args, **kwargs)
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(make(), loop))
        seconds = _measure_time(method, args, kwargs)
        with self._find_portal().use_portal() as portal:
            call = portal.call(partial(method, portal.client, *args, **kwargs), seconds)
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call, portal.loop))

    def close(self) -> None:
        """Close the client and the thread that calls from outside a loop have opened.

        You can call it repeatedly, and a later call opens them again. The processor stays open.
        """
        self._find_portal().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def is_open(self) -> bool:
        """Whether calls from outside a loop have opened a client in this process."""
        portals = self._portals.get(os.getpid())
        return portals is not None and portals.is_open

    def _find_blocking_enqueue(self, options: Mapping[str, Any]) -> Callable[..., str] | None:
        """Return the `enqueue` of the client that is open in this process, for this thread; None if
        there is none, or if the call needs the event loop of the client.
        """
        client, loop = self._client, self._find_owning_loop()
        if loop is None:
            portal = self._find_portal().open_portal
            if portal is None:
                return None
            client, loop = portal.client, portal.loop
        if loop is find_running_loop() or client._needs_loop(options):
            return None
        return partial(client._enqueue_blocking, partial(run_on_loop, loop))

    def _find_owning_loop(self) -> asyncio.AbstractEventLoop | None:
        """Return the event loop that the client is open on, if it runs in this process."""
        loop = self._client._loop
        usable = loop is not None and loop.is_running() and os.getpid() == self._owner_process
        return loop if usable else None

    def _find_portal(self) -> _ProcessPortal:
        process = os.getpid()
        found = self._portals.get(process)
        if found is None:
            # setdefault is atomic: two threads that race here get the same portal.
            found = self._portals.setdefault(process, _ProcessPortal(self._client))
        return found


class _ProcessPortal:
    """The portal of one process: at most one, made when first needed.

    A portal whose client could not be opened ends when no caller waits for it any more.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._portal: _Portal | None = None

    @contextmanager
    def use_portal(self) -> Iterator[_Portal]:
        """Yield the portal, and count its user while the block runs."""
        with self._lock:
            if self._portal is None:
                self._portal = _Portal(self._client._new_handle())
                atexit.register(self.close)
            portal = self._portal
            portal.users += 1
        try:
            yield portal
        finally:
            self._leave(portal)

    def _leave(self, portal: _Portal) -> None:
        with self._lock:
            portal.users -= 1
            if portal.users or not portal.has_failed or self._portal is not portal:
                return
            self._portal = None
        atexit.unregister(self.close)
        portal.stop(_UNOPENED_CLOSE_TIMEOUT)

    @property
    def open_portal(self) -> _Portal | None:
        """The portal, if its client is open."""
        portal = self._portal
        return None if portal is None or portal.client._loop is None else portal

    @property
    def is_open(self) -> bool:
        return self.open_portal is not None

    def close(self) -> None:
        if os.getpid() != self._process:  # at a child's exit: the portal belongs to the parent
            return
        with self._lock:
            portal, self._portal = self._portal, None
        if portal is not None:
            atexit.unregister(self.close)
            portal.close()


class _Portal:
    """A client on its own event loop in its own thread. The first call opens the client."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.loop = asyncio.new_event_loop()
        self.users = 0
        """The number of calls in progress; guarded by the lock of `_ProcessPortal`."""
        self._opening: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="nimburion-sync", daemon=True)
        self._thread.start()

    @property
    def has_failed(self) -> bool:
        """Whether the client could not be opened."""
        return self.client._loop is None and self._opening is not None

    async def call(self, make: Callable[[], Coroutine[Any, Any, R]], seconds: float | None) -> R:
        """Run a method of the client. The time to open the client counts towards the call's
        timeout."""
        if self.client._loop is None:
            CALL_STARTED.set(self.client.clock.monotonic())
            await self._wait_until_open(seconds)
        return await make()

    async def _wait_until_open(self, seconds: float | None) -> None:
        """Wait until the client is open. Concurrent calls share one opening and its result."""
        timeout = self.client.settings.enqueue_timeout
        limit = choose_limit(timeout if seconds is None else min(seconds, timeout))
        limit = max(limit, _MIN_OPEN_TIMEOUT)
        if self._opening is None or self._opening.done():
            self._opening = asyncio.create_task(self.client.open())
            self._opening.add_done_callback(lambda done: done.cancelled() or done.exception())
        done, _ = await asyncio.wait({self._opening}, timeout=limit)
        if not done:
            error = BackendUnavailable(
                f"{self.client.backend.describe()} could not be opened within {limit:.3g} s; "
                "nothing was written",
                outcome="not applied",
            )
            self.client._enqueue_state.note_failure(error)
            raise error
        failure = self._opening.exception()
        if failure is not None:
            self.client._enqueue_state.note_failure(failure)
            raise failure

    def close(self) -> None:
        """Close the client and end the thread."""
        try:
            run_on_loop(self.loop, self.client.close)
        finally:
            self.stop(_CLOSE_TIMEOUT)

    def stop(self, seconds: float) -> None:
        """End the thread, and wait at most `seconds` for it."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(seconds)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            _cancel_all(self.loop)
            self.loop.close()


def _measure_time(
    method: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> float | None:
    """Return the timeout that the caller passed to the call, in seconds; None if there is none."""
    if method is not Client.wait and method is not Client.wait_all:
        return None
    timeout = args[1] if len(args) > 1 else kwargs.get("timeout")
    return None if timeout is None else to_seconds(timeout)


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
