"""The processor of a Django project: it follows the transactions and the databases of Django."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import (
    AsyncIterator,
    Callable,
    Collection,
    Coroutine,
    Iterator,
    Sequence,
)
from contextlib import contextmanager
from functools import cached_property, wraps
from typing import TYPE_CHECKING, Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import msgspec
from asgiref.sync import sync_to_async
from django.db import close_old_connections, connections, transaction

from nimburion.backends import open_backend
from nimburion.core.backend import Backend
from nimburion.core.errors import (
    BackendError,
    ConfigurationError,
    DuplicateJob,
    JobConflict,
    NotSupported,
)
from nimburion.core.settings import Config, QueueSettings, Settings
from nimburion.integrations.django.databases import find_shared_database
from nimburion.integrations.django.project_settings import ProjectSettings, read_project_settings
from nimburion.jobs.client.client import Client
from nimburion.jobs.client.collector import JobCollector, enqueue_collected
from nimburion.jobs.outbox.outbox import Outbox
from nimburion.jobs.processor import Processor, SyncProcessor, trace_as_configured
from nimburion.jobs.worker.inline import InlineRunner

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

    from nimburion.core.job import AttemptError, NewJob
    from nimburion.jobs.handling.context import Context
    from nimburion.jobs.handling.middleware import Next

_log = logging.getLogger("nimburion.jobs")

IMPORT_PATH = "nimburion.integrations.django:load_processor"
"""Where workers and child processes find the processor of the project."""

_CLIENTS = "nimburion_clients"
"""The attribute of a database's creation object that holds the clients to close before teardown."""

P = ParamSpec("P")
AsyncMethod = Callable[..., Coroutine[Any, Any, Any]]
R = TypeVar("R")

MakeJobs = Callable[[Client], Coroutine[Any, Any, "list[NewJob]"]]
"""Makes jobs in the backend's form with the client of an event loop; a `JobCollector` helps."""


class FailedAttempt(NamedTuple):
    """An attempt that failed while `collect_failures` was active."""

    job_id: str
    name: str
    attempt: int
    error: AttemptError
    """What is stored of the error."""
    exception: BaseException | None
    """What the handler raised; None if it raised nothing, as in a lost worker."""

    def __str__(self) -> str:
        return f"job {self.name!r} ({self.job_id}) failed in attempt {self.attempt}"


def _on_any_loop(method: AsyncMethod) -> AsyncMethod:
    """Return the async method of a client, for any event loop."""

    @wraps(method)
    async def call(processor: DjangoProcessor, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        return await processor._call(method, *args, **kwargs)  # noqa: SLF001 (of this class)

    return call


class DjangoProcessor(Processor):
    """The processor of a Django project.

    It does what `Processor` does, and besides:

    - `sync` and `enqueue_sync` follow Django's transactions. Inside `atomic()`, a job is stored
      with the transaction if it lives in that database or goes through the outbox, otherwise after
      the commit.
    - The async methods work on any event loop, and no loop has to open the processor.
    - Handlers get a usable database connection: Django closes old ones around each of them.
    - The test runner renames the databases; jobs in them move along.
    """

    def __init__(self, project: ProjectSettings) -> None:
        backend, problem = _open_backend(project)
        super().__init__(backend, project.config.jobs, import_path=IMPORT_PATH)
        self.outbox: Outbox | None = _make_outbox(project)
        trace_as_configured(self, project.config.telemetry)
        self._project = project
        self._problem = problem
        self._database_name = self._first_database_name = _read_database_name(project)
        self._is_stale = False
        self._lock = threading.Lock()
        self.transactions: Transactions = Transactions(project)
        """Finds the transaction that an enqueue joins or waits for."""
        self.sync: DjangoSyncClient = DjangoSyncClient(self)  # pyright: ignore[reportIncompatibleVariableOverride]
        self.tasks: dict[str, object] = {}
        """The tasks of `django.tasks` that this process knows, by the name of their job."""
        self.task_queues: set[str] = set()
        """The queues that `TASKS` names; workers serve them unless their queues are set."""
        self.around_handler(_close_old_connections)
        self.around_handler(self._close_old_connections_async)
        self._is_in_memory = False
        """Whether the jobs are in memory because a test wants it; see `keep_jobs_in_memory`."""
        self._shared_connections: dict[str, BaseDatabaseWrapper] = {}
        """The connections that handlers use in a test, by alias; see `share_connections`."""
        self.around_handler(self._use_shared_connections)

    # Async methods on any event loop. Async code has no transactions in Django, so a job is stored
    # at once.

    if not TYPE_CHECKING:  # type checkers see the methods of `Client`, with their signatures
        enqueue = _on_any_loop(Client.enqueue)
        enqueue_or_get = _on_any_loop(Client.enqueue_or_get)
        enqueue_many = _on_any_loop(Client.enqueue_many)
        enqueue_raw = _on_any_loop(Client.enqueue_raw)
        get_status = _on_any_loop(Client.get_status)
        get_statuses = _on_any_loop(Client.get_statuses)
        wait = _on_any_loop(Client.wait)
        wait_all = _on_any_loop(Client.wait_all)
        cancel = _on_any_loop(Client.cancel)
        run_now = _on_any_loop(Client.run_now)
        queue_size = _on_any_loop(Client.queue_size)
        pending_count = _on_any_loop(Client.pending_count)

    async def _call(
        self, method: Callable[..., Coroutine[Any, Any, R]], *args: Any, **kwargs: Any
    ) -> R:
        if self._loop is asyncio.get_running_loop():
            return await method(self, *args, **kwargs)
        self.follow_settings()
        return await self.sync.call_async(method, *args, **kwargs)

    # Opening

    async def open(self) -> None:
        """Open the backend on this event loop, as `Processor.open` does.

        Raises `ConfigurationError` if the setting `NIMBURION` is wrong or a driver is missing.
        """
        self.follow_settings()
        await super().open()

    async def start(self) -> None:
        """Start to run jobs in the background, as `Processor.start` does."""
        self._serve_task_queues()
        await super().start()

    def _new_handle(self) -> Client:
        self.follow_settings()
        return super()._new_handle()

    def stop_from_thread(self, grace: float) -> None:
        """Stop the worker from another thread than that of its event loop, and wait for its end.

        Does nothing if no worker runs.
        """
        loop = self._loop
        if loop is not None and loop.is_running():
            asyncio.run_coroutine_threadsafe(self.stop(grace), loop).result()

    # Tests

    @contextmanager
    def collect_failures(self) -> Iterator[list[FailedAttempt]]:
        """Yield a list that receives the attempts that fail in the block, for tests."""
        failures: list[FailedAttempt] = []
        raised: dict[str, BaseException] = {}

        async def keep_exception(ctx: Context[Any], call_next: Next[Context[Any]]) -> object:
            try:
                return await call_next(ctx)
            except BaseException as error:
                raised[ctx.job_id] = error
                raise

        def keep_failure(ctx: Context[Any], error: AttemptError) -> None:
            failures.append(
                FailedAttempt(ctx.job_id, ctx.name, error.attempt, error, raised.get(ctx.job_id))
            )

        setup = self.handler_setup
        hooks = (setup.failure_hooks.on_failure, setup.failure_hooks.on_dead)
        setup.middlewares.insert(0, keep_exception)
        for each in hooks:
            each.append(keep_failure)
        try:
            yield failures
        finally:
            setup.middlewares.remove(keep_exception)
            for each in hooks:
                each.remove(keep_failure)

    @contextmanager
    def keep_jobs_in_memory(self) -> Iterator[None]:
        """Keep the jobs of the block in memory, for a test whose transaction never commits.

        That transaction of a `TestCase` then counts as none. A job that is enqueued in another
        `atomic` block inside it is stored when this block commits.
        """
        self._is_in_memory = True
        self.mark_stale()
        try:
            yield
        finally:
            self._is_in_memory = False
            self.mark_stale()

    @contextmanager
    def share_connections(self) -> Iterator[None]:
        """Let `def` handlers use the connections of this thread that have an open transaction.

        For a test: its handlers see what it has not committed. This thread must wait meanwhile.
        """
        shared = {
            each.alias: each
            for each in connections.all(initialized_only=True)
            if each.in_atomic_block
        }
        for each in shared.values():
            each.inc_thread_sharing()
        self._shared_connections = shared
        try:
            yield
        finally:
            self._shared_connections = {}
            for each in shared.values():
                each.dec_thread_sharing()

    def _use_shared_connections(self, _: Context[Any]) -> Iterator[None]:
        """Use the connections of `share_connections` in the thread of a `def` handler."""
        shared = self._shared_connections
        own = {
            each.alias: each
            for each in connections.all(initialized_only=True)
            if each.alias in shared
        }
        for alias, connection in shared.items():
            connections[alias] = connection
        try:
            yield
        finally:
            for alias in shared:
                del connections[alias]
            for alias, connection in own.items():
                connections[alias] = connection

    async def _close_old_connections_async(self, _: Context[Any]) -> AsyncIterator[None]:
        """Close connections that are too old or broken, in the thread of Django's async code.

        In a test, these connections are those of the test, with its open transaction.
        """
        close = sync_to_async(self._close_own_connections, thread_sensitive=True)
        await close()
        try:
            yield
        finally:
            await close()

    def _close_own_connections(self) -> None:
        if not self._shared_connections:
            close_old_connections()

    def check_is_for_tests(self) -> None:
        """Raise `ConfigurationError` unless the jobs are in memory or in a test database."""
        self.follow_settings()
        if not self.backend.capabilities.shared:
            return
        is_renamed = self._database_name != self._first_database_name
        if self.transactions.shared != self._project.database or not is_renamed:
            raise ConfigurationError(
                f"the jobs are in {self.backend.describe()}, which is no test database, so they "
                'are not deleted: in the settings of the tests, write NIMBURION["url"] = '
                '"memory://"'
            )

    def create_tables(self, alias: str) -> None:
        """Create the tables of the jobs if they live in this database and are missing.

        A transaction that enqueues the first job could not create them. Does nothing if the role
        of the application may not create them: `nimburion migrate up` does it then.
        """
        self.follow_settings()
        if alias == self.transactions.shared:
            try:
                self.sync.call(_open)
            except BackendError as error:
                _log.warning("the tables of the jobs are not created: %s", error)
            finally:
                self.sync.close()

    def _open_inline_runner(self) -> InlineRunner:
        self._serve_task_queues()
        return super()._open_inline_runner()

    def _serve_task_queues(self) -> None:
        """Serve the queues of `TASKS` too, unless the settings say which queues to serve."""
        declared = self.registry.queues
        if self.tasks and not self.settings.queues and not self.task_queues <= {*declared}:
            names = sorted({*declared, *self.task_queues})
            queues = tuple(QueueSettings(name) for name in names)
            self.settings: Settings = msgspec.structs.replace(self.settings, queues=queues)

    def _choose_kept_arguments(self) -> tuple[bool, dict[str, bool]]:
        """Keep the arguments of completed jobs if there are tasks, whose results show them."""
        default, by_queue = super()._choose_kept_arguments()
        return default or (bool(self.tasks) and self.settings.keep_arguments != "no"), by_queue

    def mark_stale(self) -> None:
        """Read the settings again at the next use: a test has changed them."""
        self._is_stale = True

    def follow_settings(self) -> None:
        """Use the backend that the settings name now: the test runner renames databases.

        Cheap if nothing changed, and without effect while this processor is open. Raises
        `ConfigurationError` if the setting `NIMBURION` is wrong or a driver is missing.
        """
        if self._is_stale or self._database_name != _read_database_name(self._project):
            self._move()
        if self._problem is not None:
            raise self._problem

    def _move(self) -> None:
        """Replace the backend by that of the current settings."""
        with self._lock:
            if self._loop is not None:
                return
            self._is_stale = False
            project = read_project_settings()
            self._database_name = _read_database_name(project)
            self.sync.close()
            if self._is_in_memory:
                project = project._replace(config=_move_to_memory(project.config))
            self._project = project
            self.settings = msgspec.structs.replace(self.settings, url=project.config.jobs.url)
            backend, self._problem = _open_backend(project)
            self.backend: Backend = backend
            self.outbox = _make_outbox(project)
            self.transactions = Transactions(project, ignores_tests=self._is_in_memory)
            _close_before_teardown(self.sync, project.database)


class Transactions:
    """Which open transaction of Django an enqueue joins, and for which it waits."""

    def __init__(self, project: ProjectSettings, *, ignores_tests: bool = False) -> None:
        self._database = project.database
        self._url = project.config.jobs.url
        self._ignores_tests = ignores_tests
        """Whether the transaction that a `TestCase` rolls back counts as none."""

    @cached_property
    def shared(self) -> str | None:
        """The alias of the database that the jobs live in; None: they live in none of Django's."""
        return find_shared_database(self._url)

    def find_open(self) -> BaseDatabaseWrapper | None:
        """Return the connection of this thread whose `atomic` block is open; None: there is none.

        It is that of the database which holds the jobs, or else that of `NIMBURION["database"]`.
        """
        for alias in dict.fromkeys((self.shared, self._database)):
            if alias is not None and self._is_open(connections[alias]):
                return connections[alias]
        return None

    def _is_open(self, connection: BaseDatabaseWrapper) -> bool:
        if not connection.in_atomic_block or not self._ignores_tests:
            return connection.in_atomic_block
        blocks: list[Any] = connection.atomic_blocks
        return not all(block._from_testcase for block in blocks)  # noqa: SLF001 (as Django's tests)


class EnqueueOnCommit:
    """The callback of a transaction that stores its jobs after the commit."""

    def __init__(
        self, enqueue: Callable[[tuple[NewJob, ...]], None], jobs: tuple[NewJob, ...]
    ) -> None:
        self._enqueue = enqueue
        self.waiting: tuple[NewJob, ...] = jobs
        """The jobs until the callback is called. A `TestCase` keeps its callbacks after that."""

    def __call__(self) -> None:
        """Store the jobs."""
        jobs, self.waiting = self.waiting, ()
        self._enqueue(jobs)


def list_waiting_jobs() -> list[NewJob]:
    """Return the jobs that this thread has enqueued and that wait for the commit of Django's
    transactions."""
    callbacks = [
        callback
        for each in connections.all(initialized_only=True)
        for _, callback, *_ in each.run_on_commit
    ]
    return [
        job
        for callback in callbacks
        if isinstance(callback, EnqueueOnCommit)
        for job in callback.waiting
    ]


def enqueue_handler_jobs(known: Collection[str]) -> bool:
    """Store the jobs that handlers have enqueued inside `atomic` in a test that never commits.

    `known` are the ids of the jobs that waited before the handlers ran. Return whether there were
    others.
    """
    callbacks = [
        callback
        for each in connections.all(initialized_only=True)
        for _, callback, *_ in each.run_on_commit
        if isinstance(callback, EnqueueOnCommit)
        and any(job.id not in known for job in callback.waiting)
    ]
    for callback in callbacks:
        callback()
    return bool(callbacks)


class DjangoSyncClient(SyncProcessor):
    """The blocking methods of the processor; those that enqueue follow Django's transactions."""

    def __init__(self, processor: DjangoProcessor) -> None:
        super().__init__(processor)
        self._processor: DjangoProcessor = processor

    def call(
        self,
        method: Callable[Concatenate[Client, P], Coroutine[Any, Any, R]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """Run one async method of the client, as `SyncProcessor.call` does.

        An enqueue joins the open transaction of its thread, or runs after the commit.
        """
        self._processor.follow_settings()
        opened = None
        if method in _ENQUEUE_METHODS and kwargs.get("connection") is None:
            opened = self._processor.transactions.find_open()
        if opened is None:
            return super().call(method, *args, **kwargs)
        if not self._joins(opened):
            return self._collect(opened.alias, method, *args, **kwargs)
        kwargs["connection"] = opened
        return super().call(method, *args, **kwargs)

    def enqueue_made(self, make: MakeJobs) -> list[str]:
        """Make jobs and enqueue them in the open transaction, after its commit, or at once.

        Returns the ids of the jobs.
        """
        self._processor.follow_settings()
        opened = self._processor.transactions.find_open()
        if opened is None:
            return super().call(_make_and_enqueue, make)
        if self._joins(opened):
            return super().call(_make_and_enqueue, make, connection=opened)
        jobs = super().call(make)
        self._enqueue_after_commit(opened.alias, jobs)
        return [job.id for job in jobs]

    def _joins(self, opened: BaseDatabaseWrapper) -> bool:
        """Return whether a job is stored in this transaction, by the backend or in the outbox.

        Jobs in the memory of the process are stored after the commit.
        """
        processor = self._processor
        if opened.alias == processor.transactions.shared:
            return True
        return processor.outbox is not None and processor.backend.capabilities.shared

    async def enqueue_made_async(self, make: MakeJobs) -> list[str]:
        """Make jobs and enqueue them at once: async code has no transactions in Django."""
        self._processor.follow_settings()
        return await self.call_async(_make_and_enqueue, make)

    def _collect(
        self,
        alias: str,
        method: Callable[Concatenate[Client, P], Coroutine[Any, Any, R]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """Validate the jobs of an enqueue now, and store them after the commit."""
        if method is Client.enqueue_or_get:
            raise NotSupported(
                "enqueue_or_get() cannot say inside `atomic` whether it creates the job, because "
                "the job is stored after the commit; write transaction.on_commit(lambda: …), or "
                "use enqueue()"
            )

        async def collect(client: Client) -> tuple[R, list[NewJob]]:
            collector = JobCollector(client)
            return await method(collector, *args, **kwargs), collector.collected

        result, jobs = super().call(collect)
        self._enqueue_after_commit(alias, jobs)
        return result

    def _enqueue_after_commit(self, alias: str, jobs: Sequence[NewJob]) -> None:
        transaction.on_commit(EnqueueOnCommit(self._enqueue_now, tuple(jobs)), using=alias)

    def _enqueue_now(self, jobs: Sequence[NewJob]) -> None:
        """Store jobs after a commit, which cannot be undone: an error is logged."""
        try:
            super().call(enqueue_collected, jobs)
        except (BackendError, DuplicateJob, JobConflict):
            names = ", ".join(f"{job.name} {job.id}" for job in jobs)
            _log.exception("could not be enqueued after the commit, and is lost: %s", names)


async def _make_and_enqueue(
    client: Client, make: MakeJobs, *, connection: object = None
) -> list[str]:
    return await enqueue_collected(client, await make(client), connection=connection)


_ENQUEUE_METHODS: frozenset[object] = frozenset(
    {
        Client.enqueue,
        Client.enqueue_or_get,
        Client.enqueue_many,
        Client.enqueue_with_id,
        Client.enqueue_with_priority,
        Client.enqueue_at,
        Client.enqueue_after,
        Client.enqueue_raw,
    }
)


def _close_old_connections(_: Context[Any]) -> Iterator[None]:
    """Close connections that are too old or broken, in the thread of a `def` handler."""
    close_old_connections()
    try:
        yield
    finally:
        close_old_connections()


async def _open(_: Client) -> None:
    """Do nothing: the call has opened the backend."""


def _open_backend(project: ProjectSettings) -> tuple[Backend, ConfigurationError | None]:
    """Return the backend of the project, or one in memory and the reason."""
    problem = project.error
    if problem is None:
        try:
            return open_backend(project.config.jobs.url), None
        except ConfigurationError as error:
            problem = error
    return open_backend("memory://"), problem


def _move_to_memory(config: Config) -> Config:
    """Return the configuration with the jobs in memory."""
    return msgspec.structs.replace(
        config, jobs=msgspec.structs.replace(config.jobs, url="memory://")
    )


def _make_outbox(project: ProjectSettings) -> Outbox | None:
    """Return the outbox in the database of the project, if the settings want it.

    Jobs in memory need none: they are stored after the commit.
    """
    jobs = project.config.jobs
    if jobs.url.startswith("memory:"):
        return None
    return Outbox(lambda: connections[project.database]) if project.outbox else None


def _read_database_name(project: ProjectSettings) -> object:
    """Return the name of the project's database now; the test runner changes it."""
    if project.error is not None:
        return None
    return connections[project.database].settings_dict["NAME"]


def _close_before_teardown(client: SyncProcessor, alias: str) -> None:
    """Close the client before the test runner drops the database: a connection would prevent it.

    A test suite calls this about once a test, so the method is replaced only once.
    """
    creation: Any = connections[alias].creation
    clients: set[SyncProcessor] | None = getattr(creation, _CLIENTS, None)
    if clients is not None:
        clients.add(client)
        return
    to_close = {client}
    destroy = creation.destroy_test_db

    def close_and_destroy(*args: object, **kwargs: object) -> None:
        for each in to_close:
            each.close()
        destroy(*args, **kwargs)

    creation.destroy_test_db = close_and_destroy
    setattr(creation, _CLIENTS, to_close)
