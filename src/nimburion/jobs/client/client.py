"""Enqueue jobs and query them, without running anything."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import (
    Awaitable,
    Callable,
    Container,
    Iterable,
    Mapping,
    Sequence,
)
from datetime import datetime
from random import Random
from types import TracebackType
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    Literal,
    NamedTuple,
    Self,
    TypeVar,
    Unpack,
    cast,
    overload,
)
from uuid import UUID

import msgspec

from nimburion.core.backend import Backend, Transactional
from nimburion.core.errors import (
    DefinitionError,
    InvalidJob,
    JobConflict,
    JobNotFound,
    NotOpen,
    NotSupported,
    TooManySignals,
)
from nimburion.core.events import Events, JobEnqueued
from nimburion.core.ids import Entropy, JobIds
from nimburion.core.job import Enqueued, JobRecord, NewJob, require_stored
from nimburion.core.maintenance import Cancellation
from nimburion.core.service import Service
from nimburion.core.settings import Settings
from nimburion.core.size_limits import check_name
from nimburion.core.text.shortening import shorten
from nimburion.core.timing.clock import Clock, SystemClock
from nimburion.core.timing.durations import Duration, to_seconds
from nimburion.core.transactions import CallerConnection, Transaction
from nimburion.jobs.client.batching import (
    EnqueueBatcher,
    EnqueueState,
    RunOnLoop,
)
from nimburion.jobs.client.client_statistics import ClientStatistics
from nimburion.jobs.client.lazy_jobs import LazyJobs
from nimburion.jobs.client.pipeline import EnqueuePipeline
from nimburion.jobs.client.status import Status
from nimburion.jobs.declaration.job import AnyJob, JobId, JobReturning, require_declaration
from nimburion.jobs.declaration.registry import Registry
from nimburion.jobs.handling.context import CURRENT, inherit_options
from nimburion.jobs.handling.loop_calls import find_running_loop
from nimburion.jobs.handling.middleware import Enqueueing, EnqueueMiddleware
from nimburion.jobs.options.configured_policy import QueueFairness
from nimburion.jobs.options.enqueue_options import (
    NOTHING_PARSED,
    EnqueueManyOptions,
    EnqueueOptions,
    ParsedOptions,
    add_tags,
    apply_uniqueness,
    parse_options,
    read_job_id,
    read_job_ids,
)
from nimburion.jobs.options.limits import JobLimits
from nimburion.jobs.options.policy import Priority
from nimburion.jobs.payloads.codec import check_size, encode_object

if TYPE_CHECKING:
    from nimburion.actions import Actions, Operator
    from nimburion.actions.audit_log import AuditLog
    from nimburion.actions.bulk import BulkActions
    from nimburion.actions.dead_letters import DeadLetters
    from nimburion.actions.limits import LimitActions
    from nimburion.actions.queues import QueueActions
    from nimburion.actions.tenants import TenantActions
    from nimburion.actions.workers import WorkerActions
    from nimburion.core.flows import NewFlow
    from nimburion.jobs.client.status import Status
    from nimburion.jobs.client.status_reader import StatusReader
    from nimburion.jobs.durable.signals import Signal
    from nimburion.jobs.flows.flow import Flow
    from nimburion.jobs.flows.growing import Flows
    from nimburion.jobs.flows.plan import PlannedJob
    from nimburion.jobs.outbox.outbox import Outbox
    from nimburion.scheduler.schedules import Schedules
    from nimburion.telemetry.registry import MetricsRegistry

__all__ = ["Client", "Priority"]

R = TypeVar("R")
T = TypeVar("T")


class EnqueueResult(NamedTuple, Generic[R]):
    """What `enqueue_or_get` did: the id of the job, and how the call found it."""

    id: JobId[R]
    outcome: Literal["created", "existing", "replaced"]
    """- `created`: the call stored this job.
    - `existing`: a job with the id is stored already, or this job holds the unique key.
    - `replaced`: this job holds the unique key and waited; it has the new arguments and due time.
    """

    @property
    def created(self) -> bool:
        """Whether the call stored this job."""
        return self.outcome == "created"


class Client:
    """Enqueues jobs and queries them, without running anything.

    A client belongs to the event loop that opened it. All other code uses the `sync` client of a
    processor.

    Every `enqueue…` method takes the options of `enqueue`. `enqueue_many` takes all of them but
    `id`.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        settings: Settings | None = None,
        outbox: Outbox | None = None,
        registry: Registry | None = None,
        clock: Clock | None = None,
        events: Events | None = None,
        random: Random | None = None,
        entropy: Entropy = os.urandom,
    ) -> None:
        self.backend: Backend = backend
        """Where the jobs are kept."""
        self.outbox: Outbox | None = outbox
        """Takes the jobs of transactions that the backend cannot join."""
        self.settings: Settings = settings or Settings()
        """The settings of this process."""
        self.registry: Registry = registry or Registry(self.settings)
        """The handlers that are registered."""
        self.clock: Clock = clock or SystemClock()
        """The clock of this process. Tests replace it."""
        self.events: Events = events if events is not None else Events()
        """What happens to jobs in this process: `events.subscribe(function)`."""
        self._random: Random = random or Random()  # noqa: S311 (jitter, nothing secret)
        self._entropy: Entropy = entropy
        self._loop: asyncio.AbstractEventLoop | None = None
        """The event loop that the client belongs to; None while it is not open."""
        self._ids = JobIds(self.clock.now, entropy)
        self._sizes = self.settings.sizes
        self._fairness = QueueFairness(self.settings)
        self._batcher: EnqueueBatcher | None = None
        """Batches the calls on this event loop; None before the first of them."""
        self._enqueue_middlewares: list[EnqueueMiddleware] = []
        self._enqueue_state = EnqueueState(self.clock)
        """Shared with its handles for other event loops."""
        self._statistics = ClientStatistics(self.clock, self._random, entropy)
        self._metrics: MetricsRegistry | None = None
        self._operator: Operator | None = None

    def __repr__(self) -> str:
        count = len(self.registry.names)
        jobs = "1 job" if count == 1 else f"{count} jobs"
        state = "closed" if self._loop is None else "open"
        return f"<{type(self).__name__} on {self.backend.describe()}: {jobs}, {state}>"

    @property
    def metrics(self) -> MetricsRegistry:
        """The metrics of this process: its jobs, its worker and its schedules.

        `processor.metrics.render()` returns the page that Prometheus scrapes. The management
        server adds the metrics of the backend.
        """
        if self._metrics is None:
            self._metrics = self._make_metrics()
        return self._metrics

    def _make_metrics(self) -> MetricsRegistry:
        from nimburion.telemetry.call_metrics import CallMetrics
        from nimburion.telemetry.event_metrics import EventMetrics
        from nimburion.telemetry.job_metrics import JobMetrics
        from nimburion.telemetry.registry import MetricsRegistry

        metrics = MetricsRegistry()
        metrics.add_source(JobMetrics(self._statistics.list_job_counters))
        metrics.add_source(CallMetrics(self._statistics.list_call_counters))
        metrics.add_source(EventMetrics(self.events))
        return metrics

    def _new_handle(self) -> Client:
        """Return another client on the same backend, not open yet, for another event loop.

        Both share the handlers, the events and the enqueue middleware.
        """
        other = Client(
            self.backend.new_handle(),
            settings=self.settings,
            outbox=self.outbox,
            registry=self.registry,
            clock=self.clock,
            events=self.events,
            entropy=self._entropy,
        )
        other._enqueue_middlewares = self._enqueue_middlewares
        other._enqueue_state = self._enqueue_state
        other._operator = self._operator
        other._statistics.outage = self._statistics.outage
        self._statistics.add_handle(other._statistics)
        return other

    # Opening and closing

    async def open(self) -> None:
        """Open the backend on this event loop. You can call it repeatedly.

        `NotOpen` is raised when the client is open on another event loop that still runs.
        """
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        if self._loop is not None and self._loop.is_running():
            raise NotOpen("the processor is open on another event loop; use `processor.sync` here")
        await self.backend.open()
        self._loop, self._batcher = loop, None
        self._statistics.abandon()  # the loop of its writer has ended
        # After a fork, the parent may still hold the same unused randomness: start with new ids.
        self._ids = JobIds(self.clock.now, self._entropy)

    async def close(self) -> None:
        """Close the backend. You can call it repeatedly."""
        if self._loop is not None:
            owner, self._loop, self._batcher = self._loop, None, None
            self._enqueue_state.clear()
            try:
                if owner is asyncio.get_running_loop():
                    await self._statistics.finish()
            finally:
                self._statistics.abandon()
                await self.backend.close()

    # Actions of operators

    @property
    def operator(self) -> Operator:
        """Who acts through this object. The default is the user of this process, with all rights.

        ```python
        processor.operator = Operator("ann", rights=frozenset({"operate"}))
        ```
        """
        if self._operator is None:
            from nimburion.actions.operator import make_process_operator

            self._operator = make_process_operator("python")
        return self._operator

    @operator.setter
    def operator(self, operator: Operator) -> None:
        self._operator = operator

    @property
    def queues(self) -> QueueActions:
        """List, pause and resume queues."""
        return make_actions(self, self.operator).queues

    @property
    def limits(self) -> LimitActions:
        """List limits, change them at run time, and reset them."""
        return make_actions(self, self.operator).limits

    @property
    def dead(self) -> DeadLetters:
        """The failed jobs: list, show, replay and purge them."""
        return make_actions(self, self.operator).dead

    @property
    def tenants(self) -> TenantActions:
        """Set the weights of tenants."""
        return make_actions(self, self.operator).tenants

    @property
    def workers(self) -> WorkerActions:
        """List workers, and let one start no further job, start jobs again, or stop."""
        return make_actions(self, self.operator).workers

    @property
    def schedules(self) -> Schedules:
        """The schedules of the backend: list, add, pause, resume, remove and run them."""
        # Loaded when it is used: a process that only enqueues has no scheduler.
        from nimburion.scheduler.schedules import Schedules

        return Schedules(self)

    @property
    def bulk(self) -> BulkActions:
        """Change all jobs that match a filter, step by step."""
        return make_actions(self, self.operator).bulk

    @property
    def flows(self) -> Flows:
        """The flows of the backend: add members; list, show, wait for, close, cancel and replay
        them.
        """
        from nimburion.jobs.flows.growing import Flows

        return Flows(self)

    @property
    def audit(self) -> AuditLog:
        """The audit log: who changed what."""
        return make_actions(self, self.operator).audit

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

    # Enqueueing

    def use_enqueue(self, middleware: EnqueueMiddleware) -> None:
        """Wrap every enqueue in `async def middleware(enqueueing, call_next) -> id`.

        The first middleware you add is the outermost. It receives an `Enqueueing`, described in
        `nimburion.jobs.handling.middleware`. `DefinitionError` is raised when `middleware` is
        not callable.
        """
        if not callable(middleware):
            raise DefinitionError(f"a middleware is an async function, not {middleware!r}")
        self._enqueue_middlewares.append(middleware)

    async def enqueue(self, job: JobReturning[R], **options: Unpack[EnqueueOptions]) -> JobId[R]:
        """Store one job and return its id.

        When the call returns, the job is as durable as the other data of the backend.

        ```python
        job_id = await processor.enqueue(SendEmail(to="a@example.com", subject="Hi"), priority=7)
        ```

        Options, all as keywords:

        - `id`: your own id, a text or a UUID. Another call with it stores no second job.
        - `queue`: the queue, in place of the declared one.
        - `priority`: 0 to 9, higher first.
        - `at`: the time when the job becomes due, a datetime with a time zone.
        - `after`: the delay until then instead, in seconds or as a timedelta.
        - `unique_key`: at most one unfinished job of the same name holds this text.
        - `unique`: a `Unique` that says how long the job holds its key, and what the call does if
          another job holds it: `Unique(on_duplicate="existing")`, `Unique(debounce=5)`.
        - `headers`: a dict of str to str that travels with the job. With the setting
          `inherit_headers`, those of the running job are added.
        - `tenant`: a text that names the customer. The jobs of different tenants in a queue take
          turns by run time, unless the settings say `fairness: none`.
        - `correlation_id`: a text that links the job to its cause. Inside a handler, it defaults to
          that of the running job, and so does `tenant`.
        - `max_retries`: how many retries follow a first failure.
        - `timeout`: the time that one attempt may take.
        - `expires`: the time after the job is due until which it must have started. Later, it is
          cancelled, with the reason `expired`.
        - `tags`: names by which people find the job, in addition to those that the job declares.
        - `connection`: the job belongs to the open transaction of this connection or session. It
          is stored by the backend if that is the same database, else in the `outbox` of the
          processor. The memory backend stores it after the commit of a session.

        Errors:

        - `InvalidJob`: an argument or option is not valid; nothing was stored.
        - `JobConflict`: another job, with a different body, has the id.
        - `DuplicateJob`: another job holds the unique key.
        - `BackendUnavailable`: the backend did not answer for `enqueue_timeout` seconds. The
          error's `outcome` says whether the job may be stored; repeat the call with its `job_id`.
        """
        # An id is a plain text: `JobId` exists for type checkers only.
        if options or self._enqueue_middlewares or CURRENT.get() is not None:
            return await self._enqueue_one(job, *self._prepare(job, options))  # type: ignore[return-value]
        return await self._enqueue_plain(self._make_job(job, NOTHING_PARSED))  # type: ignore[return-value]

    async def enqueue_or_get(
        self, job: JobReturning[R], **options: Unpack[EnqueueOptions]
    ) -> EnqueueResult[R]:
        """Store one job as `enqueue` does, and also return what the call did.

        `outcome` is `existing` if a job with the `id` is stored already, or if another job holds
        the unique key, and `replaced` if that job took the new arguments. Then `id` is the id of
        that job. A job that would be rejected is `existing` here, unless the call says
        `unique=Unique(on_duplicate="reject")`.

        ```python
        job_id, outcome = await processor.enqueue_or_get(report.job(2026), unique_key="2026")
        ```

        If an enqueue middleware stores no job, the outcome is `existing`.
        """
        new, parsed = self._prepare(job, options)
        unique = options.get("unique")
        accepts_existing = unique is None or unique.on_duplicate is None
        if accepts_existing and new.options.on_duplicate == "reject":
            accepting = msgspec.structs.replace(new.options, on_duplicate="existing")
            new = msgspec.structs.replace(new, options=accepting)
        return await self._enqueue_and_tell(job, new, parsed)

    async def _enqueue_and_tell(
        self, job: object, new: NewJob, parsed: ParsedOptions
    ) -> EnqueueResult[Any]:
        results: list[Enqueued] = []
        job_id: JobId[Any] = JobId(await self._enqueue_one(job, new, parsed, results=results))
        outcomes = {result.outcome for result in results}
        if "created" in outcomes:
            return EnqueueResult(job_id, "created")
        return EnqueueResult(job_id, "replaced" if "replaced" in outcomes else "existing")

    @overload
    async def enqueue_many(
        self, jobs: Iterable[JobReturning[R]], **options: Unpack[EnqueueManyOptions]
    ) -> list[JobId[R]]: ...
    @overload
    async def enqueue_many(
        self,
        jobs: Iterable[AnyJob | tuple[AnyJob, EnqueueOptions]],
        **options: Unpack[EnqueueManyOptions],
    ) -> list[JobId[Any]]: ...
    async def enqueue_many(
        self, jobs: Iterable[Any], **options: Unpack[EnqueueManyOptions]
    ) -> list[Any]:
        """Store several jobs in one step and return their ids, in the order of `jobs`.

        The options are those of `enqueue` without `id`, and apply to each job. A job with options
        of its own is a pair. They take precedence, and may include an `id`, but no `connection`.

        ```python
        await processor.enqueue_many(
            [count.job("a.html"), (count.job("b.html"), {"priority": 7, "id": "b"})], queue="slow"
        )
        ```

        The call is atomic: all jobs are stored, or none (Redis: per slice of 500 jobs).
        `InvalidJob` names the job at fault, or reports more than `sizes.batch` jobs (10,000). The
        other errors are those of `enqueue`.
        """
        batch = list(jobs)
        self._check_batch(len(batch))
        if tuple in {*map(type, batch)}:
            return await self._enqueue_pairs(batch, options)
        parsed = self._parse_options(options)
        if not batch:
            return []
        if not self._enqueue_middlewares:
            return await self._store(self._make_jobs_lazily(batch, parsed), parsed)
        return await self._enqueue_together(batch, self._make_jobs(batch, parsed), parsed)

    async def _enqueue_pairs(self, batch: Sequence[Any], options: EnqueueManyOptions) -> list[str]:
        """Store several jobs, some of them pairs of a job and its options."""
        parsed = self._parse_options(options)
        jobs, new = [], []
        try:
            for each in batch:
                job, own = _split_pair(each)
                jobs.append(job)
                new.append(self._prepare(job, {**options, **own})[0])
        except InvalidJob as error:
            raise InvalidJob(f"jobs[{len(new)}]: {error}") from error
        return await self._enqueue_together(jobs, new, parsed)

    async def _enqueue_together(
        self,
        batch: Sequence[object],
        new: list[NewJob],
        parsed: ParsedOptions,
        flows: Sequence[NewFlow] = (),
    ) -> list[str]:
        """Store jobs in one step, with the enqueue middleware, and return their ids.

        With `flows`, the middleware must pass on all of the jobs, each in its place in the graph.
        """
        if not self._enqueue_middlewares or not new:
            return await self._store(new, parsed, flows=flows)

        passed_on: list[NewJob] = []

        async def store(some: list[NewJob]) -> list[str]:
            passed_on.extend(some)
            if flows:
                _check_members(new, some)
            return await self._store(some, parsed, flows=flows)

        pipeline = EnqueuePipeline(
            self._enqueue_middlewares,
            store,
            self._sizes,
            len(new),
            self.registry,
        )
        ids = await pipeline.run(
            [_make_enqueueing(job, one) for job, one in zip(batch, new, strict=True)]
        )
        if flows:  # `store` is not called if the middleware passed on none
            _check_members(new, passed_on)
        return ids

    async def enqueue_with_id(
        self,
        job: JobReturning[R],
        job_id: str | UUID | None = None,
        /,
        **options: Unpack[EnqueueOptions],
    ) -> JobId[R]:
        """Store one job under your own id, as `enqueue` does and with its options; None makes a
        new id.

        With an id, the call is safe to repeat: it stores no second job.
        """
        if job_id is not None:
            options["id"] = job_id
        return await self.enqueue(job, **options)

    async def enqueue_with_priority(
        self, job: JobReturning[R], priority: int, /, **options: Unpack[EnqueueOptions]
    ) -> JobId[R]:
        """Store one job with a priority, as `enqueue` does and with its other options.

        The priority is `Priority.HIGH` or another name, or a number from 0 to 9. Higher runs first.
        """
        options["priority"] = priority
        return await self.enqueue(job, **options)

    async def enqueue_at(
        self, job: JobReturning[R], at: datetime, /, **options: Unpack[EnqueueOptions]
    ) -> JobId[R]:
        """Store one job for a time, as `enqueue` does and with its other options.

        `at` must have a time zone; otherwise `InvalidJob` is raised. The job never runs before that
        time, by the backend's clock.
        """
        if at is None:
            raise InvalidJob("enqueue_at needs a datetime with a time zone, not None")
        options["at"] = at
        return await self.enqueue(job, **options)

    async def enqueue_after(
        self, job: JobReturning[R], after: Duration, /, **options: Unpack[EnqueueOptions]
    ) -> JobId[R]:
        """Store one job that becomes due after a delay, as `enqueue` does and with its other
        options.

        `after` is a number of seconds or a timedelta, counted from now by the backend's clock.
        """
        if after is None:
            raise InvalidJob("enqueue_after needs seconds or a timedelta, not None")
        options["after"] = after
        return await self.enqueue(job, **options)

    async def enqueue_flow(
        self,
        flow: Flow,
        *,
        id: str | UUID | None = None,  # noqa: A002 (the name of the option)
        connection: object = None,
    ) -> str:
        """Store all jobs of a flow and return its id.

        ```python
        flow_id = await processor.enqueue_flow(flow, id="import-2026-11-30")
        ```

        `id` is your own id, a text or a UUID. Another call with it and the same flow changes
        nothing, or completes a flow of which a part is stored. The ids of the jobs are
        `FLOW_ID.NAME`. `connection` is that of `enqueue`. The backend must be in the same database:
        a flow does not go through an outbox.

        A flow of up to `sizes.batch` jobs (10,000; on Redis 500) is stored whole or not at all. A
        larger one is stored in batches of this size. All arguments are validated before the first,
        and jobs run while later batches are stored. A batch that is refused stores nothing, but the
        batches before it stay. Then the flow is running and incomplete, also after `flows.cancel`:
        remove the cause and repeat the call with the same `id`. Give such a flow an `id` of your
        own.

        Inside a handler, the jobs inherit the tenant and the correlation id of its job, as in
        `enqueue`. Errors:

        - `InvalidJob`: an argument of a member is not valid, or another flow with the id is kept.
          Nothing was stored, unless your middleware is its cause in a later batch. It must keep
          `flow`, `group`, `conditions` and `results` of the options.
        - `JobConflict`, `DuplicateJob` and `BackendUnavailable`: see `enqueue`. Nothing was stored
          of this batch.
        - `NotSupported`: the backend cannot store the flow in this transaction.
        """
        # Loaded when it is used: most processes have no flows.
        from nimburion.jobs.flows.enqueueing import MemberMaker, make_batches

        flow_id = self._ids.make() if id is None else read_job_id(id)
        parsed = self._parse_options({} if connection is None else {"connection": connection})
        members = MemberMaker(self._make_job, parsed, self._sizes)
        async for batch in make_batches(flow, flow_id, members, self._sizes.batch):
            await self._enqueue_together(batch.jobs, batch.new, parsed, batch.flows)
        return flow_id

    async def enqueue_raw(
        self,
        name: str,
        payload: bytes | Mapping[str, object],
        **options: Unpack[EnqueueOptions],
    ) -> JobId[Any]:
        """Store a job by name, for code that does not have its class or function.

        The options are those of `enqueue`.
        A dict is encoded as JSON. Bytes are stored as they are, and only their size is checked: a
        payload that does not fit the handler's types fails in the worker. The queue is `default`
        unless you name another one.
        """
        return JobId(await self._enqueue_one(None, *self._prepare_raw(name, payload, options)))

    def _prepare_raw(
        self, name: str, payload: bytes | Mapping[str, object], options: EnqueueOptions
    ) -> tuple[NewJob, ParsedOptions]:
        job_id = options.pop("id", None)
        parsed = self._parse_options(options)
        new = NewJob(
            id=self._ids.make() if job_id is None else read_job_id(job_id),
            name=check_name("job name", name),
            queue=parsed.queue or "default",
            payload=self._encode_raw_payload(name, payload),
            priority=Priority.NORMAL.value if parsed.priority is None else parsed.priority,
            at=parsed.at,
            after=parsed.after,
            options=apply_uniqueness(parsed)[0],
        )
        handler = self.registry.get(name)
        if handler is not None and handler.policy.tags:
            tagged = add_tags(new.options, handler.policy.tags)
            new = msgspec.structs.replace(new, options=tagged)
        return self.registry.add_limit_keys(new), parsed

    # Queries

    async def get_status(self, job_id: str | UUID) -> Status:
        """Return the state of a job. `JobNotFound` is raised for an unknown id.

        A job that waits in the outbox is pending or scheduled.

        `BackendUnavailable` is raised when a server did not answer for `enqueue_timeout` seconds.
        The same is true of `queue_size` and `pending_count`.
        """
        checked_id = read_job_id(job_id)
        status = (await self._make_reader().get_statuses([checked_id]))[checked_id]
        if status is None:
            raise JobNotFound(checked_id)
        return status

    async def get_statuses(self, job_ids: Iterable[str | UUID]) -> dict[str, Status | None]:
        """Return the states of several jobs: by id, in the order of `job_ids`.

        The value of an unknown id is None. The backend is read once for each 1,000 ids. The errors
        are those of `get_status`.

        ```python
        statuses = await processor.get_statuses([first, second])
        ```
        """
        return await self._make_reader().get_statuses(read_job_ids(job_ids))

    @overload
    async def wait(
        self, job_id: JobId[R], timeout: Duration | None = None, *, missing_ok: bool = False
    ) -> R: ...
    @overload
    async def wait(  # for type checkers: a value of another type than R is expected
        self, job_id: JobId[Any], timeout: Duration | None = None, *, missing_ok: bool = False
    ) -> object: ...
    @overload
    async def wait(
        self, job_id: str | UUID, timeout: Duration | None = None, *, missing_ok: bool = False
    ) -> Any: ...  # noqa: ANN401
    async def wait(
        self, job_id: str | UUID, timeout: Duration | None = None, *, missing_ok: bool = False
    ) -> Any:
        """Wait until the job is completed, and return the handler's result.

        `timeout` is a number of seconds or a timedelta; None waits without a limit. The method
        queries the backend at growing intervals, up to one second. With `missing_ok`, it also waits
        for a job that is not stored yet, such as a job that another job enqueues.

        A type checker knows the type of the result from the `JobId`. For an id from elsewhere,
        write `JobId[int](text)`.

        Errors:

        - `JobNotCompleted`: the job failed or was cancelled.
        - `ResultNotKept`: the job is completed, but what its handler returned could not be stored,
          or was returned after `ctx.transaction()` had completed the job. None means that the
          handler returned nothing, or that the job has `result=False`.
        - `WaitTimeout`: the job did not end within `timeout`, or the backend or the outbox did not
          answer. The job continues.
        - `BackendUnavailable`: the backend or the database of the outbox cannot be reached.
        - `JobNotFound`: no job has the id, the outbox holds none that is committed, and
          `missing_ok` is not set.
        """
        (result,) = await Client.wait_all(self, [job_id], timeout, missing_ok=missing_ok)
        return result

    @overload
    async def wait_all(
        self,
        job_ids: Iterable[JobId[R]],
        timeout: Duration | None = None,
        *,
        return_exceptions: Literal[False] = False,
        missing_ok: bool = False,
    ) -> list[R]: ...
    @overload
    async def wait_all(
        self,
        job_ids: Iterable[JobId[R]],
        timeout: Duration | None = None,
        *,
        return_exceptions: Literal[True],
        missing_ok: bool = False,
    ) -> list[R | Exception]: ...
    @overload
    async def wait_all(  # for type checkers: values of another type than R are expected
        self,
        job_ids: Iterable[JobId[Any]],
        timeout: Duration | None = None,
        *,
        return_exceptions: bool = False,
        missing_ok: bool = False,
    ) -> list[object]: ...
    @overload
    async def wait_all(
        self,
        job_ids: Iterable[str | UUID],
        timeout: Duration | None = None,
        *,
        return_exceptions: bool = False,
        missing_ok: bool = False,
    ) -> list[Any]: ...
    async def wait_all(
        self,
        job_ids: Iterable[str | UUID],
        timeout: Duration | None = None,
        *,
        return_exceptions: bool = False,
        missing_ok: bool = False,
    ) -> list[Any]:
        """Wait until several jobs are completed, and return their results in the order of
        `job_ids`.

        One query reads all jobs that are not finished yet. The first error is raised at once, and
        the other jobs continue. With `return_exceptions`, the call waits for all jobs, and the
        error of each is in the place of its result. The errors, `timeout` and `missing_ok` are
        those of `wait`; `timeout` is for all jobs together.

        ```python
        first, second = await processor.wait_all([first_id, second_id], timeout=60)
        ```
        """
        ids = read_job_ids(job_ids)
        seconds = None if timeout is None else to_seconds(timeout)
        reader = self._make_reader()
        return await reader.wait_all(
            ids, seconds, return_exceptions=return_exceptions, missing_ok=missing_ok
        )

    async def cancel(self, job_id: str | UUID) -> Cancellation:
        """Cancel a job and return what happened to it.

        - `cancelled`: the job will not run.
        - `requested`: the job runs, and its worker is told to end it. If the job completes first,
          the completion counts.
        - `finished`: the job has ended already; nothing changes.

        `JobNotFound` is raised for an unknown id. A job that waits in the outbox is relayed first.
        """
        return await self._change_job(job_id, self.backend.producing.cancel)

    async def signal(
        self,
        job_id: str | UUID,
        signal: Signal[R],
        value: R,
        *,
        id: str | UUID | None = None,  # noqa: A002 (the name of the option)
    ) -> bool:
        """Send a signal to a durable run. Return False if it was not stored now.

        ```python
        await processor.signal(job_id, confirmed, Confirmed("ann"), id="mail-4711")
        ```

        The signal is stored when the call returns. It is kept until the run takes it, in the order
        of the calls, so it may be sent before the run waits for it. With an `id` of your own, the
        call is safe to repeat: the job gets one signal with it.

        False means that the job has ended, or has a signal with this id. Errors:

        - `JobNotFound`: there is no job with this id.
        - `InvalidJob`: the value has another type than the signal, or is larger than 64 KiB.
        - `TooManySignals`: the job has 1,000 unread signals.
        - `BackendUnavailable`: it is not known whether the signal was stored.
        """
        from nimburion.core.runs import NewSignal, SignalOutcome  # most processes send none

        self._check_open()
        target = read_job_id(job_id)
        signal_id = self._ids.make() if id is None else read_job_id(id)
        new = NewSignal(target, signal.name, signal_id, signal.encode(value))
        (outcome,) = await self.backend.producing.send_signals([new])
        if outcome is SignalOutcome.UNKNOWN:
            raise JobNotFound(target)
        if outcome is SignalOutcome.FULL:
            raise TooManySignals(target)
        return outcome is SignalOutcome.STORED

    async def run_now(self, job_id: str | UUID) -> bool:
        """Make a job due now that waits for a later time, and return whether it waited for one.

        It is a scheduled job, or one that waits for its next attempt. A worker starts it as soon as
        it has a slot for it; failures and history stay as they are. False: the job was due already,
        runs or has ended, and nothing changes.

        ```python
        await processor.run_now(job_id)
        ```

        `JobNotFound` is raised for an unknown id. A job that waits in the outbox is relayed first.
        """
        return await self._change_job(job_id, self._make_due)

    async def _make_due(self, job_id: str) -> bool:
        """Make a stored job due now; return whether it waited for a later time."""
        from nimburion.core.bulk_operations import BulkAction

        if (await self.backend.maintenance.change_jobs(BulkAction.RUN_NOW, (job_id,))).ids:
            return True
        await self.backend.reads.get_job(job_id)  # raises JobNotFound
        return False

    async def queue_size(self, queue: str | None = None) -> int:
        """Return the number of jobs that are due and not processing, in one queue or in all."""
        infos = await self._make_reader().list_queues()
        return sum(info.size for info in infos if queue in (None, info.name))

    async def pending_count(self) -> int:
        """Return the number of jobs that wait: pending, retrying and scheduled."""
        return sum(info.size + info.scheduled for info in await self._make_reader().list_queues())

    # Internals

    def _check_open(self) -> None:
        if self._loop is None:
            raise NotOpen(f"{_explain_opening(sys.modules)}; it is {self!r}")
        if self._loop is not asyncio.get_running_loop():
            raise NotOpen(
                "the processor is open on another event loop: use `processor.sync` here, or open "
                "it on this loop after the other loop has ended"
            )

    def _make_reader(self) -> StatusReader:
        from nimburion.jobs.client.status_reader import StatusReader  # many processes only enqueue

        return StatusReader(
            self.backend,
            self.outbox,
            self.registry,
            self.clock,
            timeout=self.settings.enqueue_timeout,
            check_open=self._check_open,
        )

    async def _change_job(self, job_id: str | UUID, change: Callable[[str], Awaitable[T]]) -> T:
        """Apply `change` to a job, which is relayed first if it waits in the outbox."""
        self._check_open()
        job_id = read_job_id(job_id)
        try:
            return await change(job_id)
        except JobNotFound:
            if self.outbox is None:
                raise
        await self._send_waiting(self.outbox, job_id)
        return await change(job_id)

    async def _send_waiting(self, outbox: Outbox, job_id: str) -> None:
        """Store a job of the outbox in the backend. Its relay finds it there, and deletes the row.

        So no relay can store the job after an action of an operator has decided about it.
        """
        from nimburion.jobs.outbox.outbox import get_rows  # loaded already: there is an outbox

        rows = get_rows(outbox)
        async with rows.open_database() as database:
            waiting = await rows.find_waiting(database, [job_id])
        if waiting:
            await send_jobs(self, [msgspec.json.decode(waiting[job_id].job, type=NewJob)])

    def _require_batcher(self) -> EnqueueBatcher:
        """Return the batcher of this event loop; `NotOpen` if the client is not open on it."""
        self._check_open()
        if self._batcher is None:
            self._batcher = EnqueueBatcher(
                self.backend.producing,
                self.clock,
                self.settings.enqueue_timeout,
                self._statistics.calls,
                self._enqueue_state,
            )
        return self._batcher

    def _parse_options(self, options: EnqueueManyOptions) -> ParsedOptions:
        """Return the validated options; what they leave out is inherited from the running job, or
        from the web request that is answered here."""
        current = CURRENT.get()
        if current is not None:
            inherit_options(
                current,
                cast("dict[str, Any]", options),
                inherits_headers=self.settings.inherit_headers,
            )
        return parse_options(self._sizes, **options) if options else NOTHING_PARSED

    def _make_job(
        self,
        job: JobReturning[Any],
        parsed: ParsedOptions,
        job_id: str | None = None,
        payload: bytes | None = None,
    ) -> NewJob:
        """Return a job in the backend's form; without `job_id`, with a new id.

        `payload` is that of a job with arguments that are not known yet.

        Hot path: runs for each job of a bulk enqueue.
        """
        declaration = require_declaration(job)
        priority = parsed.priority
        if payload is None:
            payload = declaration.encode(job, self._sizes)
        options, after, unique = parsed.options, parsed.after, declaration.policy.unique
        if unique is not None or parsed.key_rule is not None:
            options, after = apply_uniqueness(parsed, unique, payload, job)
        if declaration.policy.limits:
            limits = JobLimits(declaration.name, declaration.policy.limits)
            options = limits.apply(options, payload, job)
        if declaration.policy.tags:
            options = add_tags(options, declaration.policy.tags)
        return NewJob(
            job_id or self._ids.make(),
            declaration.name,
            parsed.queue or declaration.queue,
            payload,
            declaration.policy.priority if priority is None else priority,
            parsed.at,
            after,
            options,
        )

    def _make_jobs(
        self, jobs: Sequence[JobReturning[Any]], parsed: ParsedOptions, start: int = 0
    ) -> list[NewJob]:
        """Return jobs in the backend's form; the first one has the index `start` in its call."""
        new: list[NewJob] = []
        try:
            for job, job_id in zip(jobs, self._ids.make_many(len(jobs)), strict=True):
                new.append(self._make_job(job, parsed, job_id))
        except InvalidJob as error:
            raise InvalidJob(f"jobs[{start + len(new)}]: {error}") from error
        return new

    def _make_jobs_lazily(
        self, jobs: Sequence[JobReturning[Any]], parsed: ParsedOptions
    ) -> Sequence[NewJob]:
        """Return jobs in the backend's form, encoded while the backend stores them if it supports
        that."""
        if parsed.connection is not None or not self.backend.capabilities.lazy_batches:
            return self._make_jobs(jobs, parsed)
        return LazyJobs(
            len(jobs), lambda start, stop: self._make_jobs(jobs[start:stop], parsed, start)
        )

    def _check_batch(self, count: int) -> None:
        if count > self._sizes.batch:
            raise InvalidJob(
                f"{count} jobs in one call, over the limit of {self._sizes.batch}; "
                "enqueue them in several calls"
            )

    def _encode_raw_payload(self, name: str, payload: object) -> bytes:
        if isinstance(payload, Mapping):
            return encode_object(name, payload, self._sizes)
        if not isinstance(payload, bytes | bytearray | memoryview):
            raise InvalidJob(f"job {name!r}: the payload must be bytes or a dict, not {payload!r}")
        check_size(name, raw := bytes(payload), self._sizes)
        return raw

    def _prepare(
        self, job: JobReturning[Any], options: EnqueueOptions
    ) -> tuple[NewJob, ParsedOptions]:
        job_id = options.pop("id", None)
        try:
            parsed = self._parse_options(options)
        except InvalidJob:
            require_declaration(job)  # if that is the mistake, its error is the better one
            raise
        checked_id = None if job_id is None else read_job_id(job_id)
        return self._make_job(job, parsed, checked_id), parsed

    async def _enqueue_one(
        self,
        job: object,
        new: NewJob,
        parsed: ParsedOptions,
        *,
        results: list[Enqueued] | None = None,
    ) -> str:
        """Store one job and return its id; append the backend's result to `results`."""
        if not self._enqueue_middlewares:
            return (await self._store([new], parsed, results))[0]
        pipeline = EnqueuePipeline(
            self._enqueue_middlewares,
            lambda some: self._store(some, parsed, results),
            self._sizes,
            1,
            self.registry,
        )
        return (await pipeline.run([_make_enqueueing(job, new)]))[0]

    async def _enqueue_plain(self, job: NewJob) -> str:
        """Do what `_store` does for one job without options, in fewer calls."""
        batcher = self._batcher
        if batcher is None or self._loop is not asyncio.get_running_loop():
            batcher = self._require_batcher()
        if self._fairness.has_exceptions:
            job = self._fairness.apply(job)
        result = await batcher.enqueue(job)
        if result.outcome != "created":
            require_stored(job, result)
        statistics = self._statistics
        if statistics.writer is None or JobEnqueued in self.events.wanted:
            await self._note_stored([job], [result])
        else:
            statistics.jobs.count_one(job, result)
        return result.id

    @property
    def _needs_no_backend(self) -> bool:
        """Whether the jobs of a transaction always go to the outbox, so that a process can enqueue
        them although it has not reached the backend yet."""
        can = self.backend.capabilities
        return self.outbox is not None and can.shared and not can.supports_transactions

    def _needs_loop(self, options: Mapping[str, object]) -> bool:
        """Return whether `enqueue` with these options does anything on the event loop besides the
        call of the backend."""
        return (
            self._batcher is None
            or self._statistics.writer is None
            or not self.backend.capabilities.blocking_enqueue
            or "connection" in options
            or bool(self._enqueue_middlewares)
            or JobEnqueued in self.events.wanted
        )

    def _enqueue_blocking(
        self, run_on_loop: RunOnLoop, job: JobReturning[Any], **options: Unpack[EnqueueOptions]
    ) -> str:
        """Do what `enqueue` does, on a thread that waits for the backend without the event loop.

        Only repeated tries run on the loop. Call it only if `_needs_loop` returns False.
        """
        new = self._prepare(job, options)[0]
        if self._fairness.has_exceptions:
            new = self._fairness.apply(new)
        assert self._batcher is not None, "the client has enqueued on its loop before"
        result = self._batcher.enqueue_blocking(new, run_on_loop)
        if result.outcome != "created":
            require_stored(new, result)
        self._statistics.jobs.count_one(new, result)
        return result.id

    async def _store(
        self,
        jobs: Sequence[NewJob],
        parsed: ParsedOptions,
        all_results: list[Enqueued] | None = None,
        flows: Sequence[NewFlow] = (),
    ) -> list[str]:
        if self._fairness.has_exceptions:
            jobs = [self._fairness.apply(job) for job in jobs]
        if parsed.connection is not None:
            if not self._needs_no_backend:
                self._check_open()
            from nimburion.jobs.client.caller_transactions import enqueue_in_transaction

            caller = _to_caller_connection(parsed.connection)
            joined = await enqueue_in_transaction(
                self,
                caller,
                jobs,
                needs_outcome=all_results is not None,
                count_stored=self._count_stored_later,
                flows=flows,
            )
            if joined is None:
                return [job.id for job in jobs]
            results = joined
        else:
            results = await self._send(jobs, flows)
        ids = [
            result.id if result.outcome == "created" else require_stored(job, result)
            for job, result in zip(jobs, results, strict=True)
        ]
        if all_results is not None:
            all_results += results
        await self._note_stored(jobs, results, in_transaction=parsed.connection is not None)
        return ids

    async def _note_stored(
        self, jobs: Sequence[NewJob], results: list[Enqueued], *, in_transaction: bool = False
    ) -> None:
        """Count and announce stored jobs; the first call starts to store the statistics.

        The backend counts the jobs of a caller's transaction, when it commits.
        """
        if in_transaction:
            self._statistics.enqueues_in_transactions = True
        else:
            self._statistics.jobs.count_enqueued(jobs, results)
        if self._statistics.writer is None:
            await self._statistics.start(self.backend)
        if JobEnqueued in self.events.wanted:
            self._emit_enqueued(jobs, results)

    async def _send(self, jobs: Sequence[NewJob], flows: Sequence[NewFlow] = ()) -> list[Enqueued]:
        """Call the backend, and repeat the call until it answers, for `enqueue_timeout` seconds."""
        batcher = self._require_batcher()
        if len(jobs) == 1 and not flows:
            return [await batcher.enqueue(jobs[0])]
        return await batcher.enqueue_all(jobs, flows)

    def _make_transaction(self, connection: object) -> Transaction:
        """Return a transaction for a handler; see `Context.transaction`."""
        return self._require_transactions().transaction(
            None if connection is None else _to_caller_connection(connection)
        )

    def _require_transactions(self) -> Transactional:
        if not self.backend.capabilities.supports_transactions:
            raise NotSupported(
                f"{self.backend.describe()} cannot complete a job in a transaction of its handler; "
                "commit first, and return from the handler"
            )
        return cast("Transactional", self.backend.producing)

    def _count_stored_later(self, jobs: Sequence[NewJob], results: list[Enqueued]) -> None:
        """Count and announce jobs that were stored after a commit, on any thread."""
        self._statistics.jobs.count_enqueued(jobs, results)
        loop = self._loop
        if JobEnqueued not in self.events.wanted or loop is None or not loop.is_running():
            return
        if find_running_loop() is loop:
            self._emit_enqueued(jobs, results)
        else:
            loop.call_soon_threadsafe(self._emit_enqueued, jobs, results)

    def _emit_enqueued(self, jobs: Sequence[NewJob], results: list[Enqueued]) -> None:
        for job, result in zip(jobs, results, strict=True):
            created = result.outcome == "created"
            self.events.emit(JobEnqueued(result.id, job.name, job.queue, created))


def prepare_job(client: Client, job: AnyJob, **options: Unpack[EnqueueManyOptions]) -> NewJob:
    """Return a job in the backend's form, with a new id, without storing it.

    Raises `InvalidJob`, as `enqueue` does. For operations other than `enqueue` that store jobs,
    such as the tick of a schedule.
    """
    return client._make_job(job, client._parse_options(options))


async def run_enqueue_middleware(
    client: Client, job: object, new: NewJob, store: Callable[[NewJob], Awaitable[str]]
) -> str:
    """Run the client's enqueue middleware around `store`, another operation that stores one job.

    Returns the id that the outermost middleware returns.
    """
    middlewares = client._enqueue_middlewares
    if not middlewares:
        return await store(apply_fairness(client, new))

    async def enqueue_new(jobs: list[NewJob]) -> list[str]:
        return [await store(apply_fairness(client, jobs[0]))]

    pipeline = EnqueuePipeline(middlewares, enqueue_new, client._sizes, 1, client.registry)
    return (await pipeline.run([_make_enqueueing(job, new)]))[0]


def apply_fairness(client: Client, job: NewJob) -> NewJob:
    """Return a job as the setting `fairness` of its queue wants it. `enqueue` does this itself."""
    return client._fairness.apply(job)


async def enqueue_raw_or_get(
    client: Client,
    name: str,
    payload: bytes | Mapping[str, object],
    **options: Unpack[EnqueueOptions],
) -> EnqueueResult[Any]:
    """Store a job by name, as `Client.enqueue_raw` does, and also return what the call did.

    Raises `DuplicateJob` unless the options accept the job that holds the unique key.
    """
    return await client._enqueue_and_tell(None, *client._prepare_raw(name, payload, options))


async def enqueue_and_tell(
    client: Client, job: AnyJob, **options: Unpack[EnqueueOptions]
) -> EnqueueResult[Any]:
    """Store a job as `Client.enqueue` does, and also return what the call did.

    Raises `DuplicateJob` unless the options accept the job that holds the unique key.
    """
    return await client._enqueue_and_tell(job, *client._prepare(job, options))


async def enqueue_prepared(client: Client, new: NewJob) -> str:
    """Store a job that is in the backend's form already, with the enqueue middleware, and return
    its id. The errors are those of `Client.enqueue`.
    """
    return await client._enqueue_one(None, new, NOTHING_PARSED)


async def read_records(client: Client, job_ids: Sequence[str]) -> dict[str, JobRecord]:
    """Return the records of those jobs that exist, by id, with their results and without their
    payloads. Raises `BackendUnavailable` if the backend does not answer in time.
    """
    return await client._make_reader().read_records(job_ids)


def share_outage_log(client: Client, service: Service) -> None:
    """Let a service log outages together with the client, its worker and its other services."""
    service.outage = client._statistics.outage


async def count_stored(client: Client, job: NewJob) -> None:
    """Count a job that another operation than `enqueue` has stored, in the metrics and in the
    statistics."""
    statistics = client._statistics
    statistics.jobs.get_lane(job.queue, job.name).enqueued += 1
    if statistics.writer is None and client._loop is asyncio.get_running_loop():
        await statistics.start(client.backend)


def _to_caller_connection(connection: object) -> CallerConnection:
    return connection if isinstance(connection, CallerConnection) else CallerConnection(connection)


def make_actions(client: Client, operator: Operator) -> Actions:
    """Return the actions of an operator, who stores jobs as the client does."""
    from nimburion.actions import Actions

    async def send(jobs: Sequence[NewJob]) -> list[Enqueued]:
        for job in jobs:
            check_size(job.name, job.payload, client._sizes)
        return await send_jobs(client, [client.registry.add_limit_keys(job) for job in jobs])

    return Actions(client.backend, operator, send, client.clock)


async def add_members(
    client: Client,
    flow_id: str,
    group: str | None,
    name: str | None,
    jobs: Sequence[JobReturning[Any]],
) -> list[str]:
    """Store jobs as members of a stored flow, or of a group in it, and return their ids.

    `name` comes between the id of the flow and the numbers of the jobs; None: a new name.
    """
    from nimburion.jobs.flows.growing import list_grown_flows, plan_additions

    planned = plan_additions(flow_id, group, name or client._ids.make(), jobs)
    return await enqueue_members(client, planned, list_grown_flows(flow_id, group))


async def enqueue_members(
    client: Client,
    planned: Sequence[PlannedJob],
    flows: Sequence[NewFlow],
) -> list[str]:
    """Store planned members with the flows that they belong to, in batches, and return their ids.

    `JobConflict` is raised after all batches if some members were stored before with other
    arguments, which they keep.
    """
    from nimburion.jobs.flows.enqueueing import MemberMaker

    parsed, size = client._parse_options({}), client._sizes.batch
    new = MemberMaker(client._make_job, parsed, client._sizes).make(planned)
    conflict: JobConflict | None = None
    for start in range(0, len(new), size):
        some = slice(start, start + size)
        calls = [one.job for one in planned[some]]
        try:
            await client._enqueue_together(calls, new[some], parsed, flows)
        except JobConflict as error:
            conflict = conflict or error
    if conflict is not None:
        raise conflict
    return [job.id for job in new]


async def send_jobs(client: Client, jobs: Sequence[NewJob]) -> list[Enqueued]:
    """Store jobs that are in the backend's form already, without the enqueue middleware; count and
    announce them. Return the results of the backend, refusals too.
    """
    results = await client._send(jobs)
    await client._note_stored(jobs, results)
    return results


_OPENING_LINES = (
    ("fastapi", "FastAPI", "app.include_router(nimburion.integrations.fastapi.router(processor))"),
    (
        "starlette",
        "Starlette",
        "Starlette(lifespan=nimburion.integrations.starlette.lifespan(processor))",
    ),
)


def _explain_opening(modules: Container[str]) -> str:
    """Return what to write so that the processor is open, with the line for the web framework
    that this process has imported."""
    text = "open the processor first: `async with processor:`; or use `processor.sync`"
    for module, framework, line in _OPENING_LINES:
        if module in modules:
            return f"{text}; in {framework}, write `{line}`, and in tests `with TestClient(app):`"
    return text


def _make_enqueueing(job: object, new: NewJob) -> Enqueueing:
    return Enqueueing(
        job=job,
        id=new.id,
        name=new.name,
        queue=new.queue,
        payload=new.payload,
        priority=new.priority,
        at=new.at,
        after=new.after,
        options=new.options,
    )


def _check_members(jobs: Sequence[NewJob], passed_on: Sequence[NewJob]) -> None:
    """Raise `InvalidJob` if a middleware kept a member of a flow, or changed its place in it."""
    missing = {job.id for job in jobs} - {job.id for job in passed_on}
    if missing:
        raise InvalidJob(
            f"an enqueue middleware did not pass on job {min(missing)!r} under its id; a flow "
            "needs all of its jobs, because others wait for them"
        )
    planned = {job.id: job for job in jobs}
    for job in passed_on:
        if job.id not in planned:
            continue
        old, new = planned[job.id].options, job.options
        if (new.flow, new.group, new.conditions, new.results) != (
            old.flow,
            old.group,
            old.conditions,
            old.results,
        ):
            raise InvalidJob(
                f"an enqueue middleware changed the place of job {job.id!r} in its flow; keep "
                "`flow`, `group`, `conditions` and `results` of the options as they are"
            )
        if new.unique_key is not None and new.on_duplicate != "reject":
            raise InvalidJob(
                f"an enqueue middleware gave job {job.id!r} a unique key with "
                f"on_duplicate={new.on_duplicate!r}, so another job could take its place; a member "
                'of a flow needs on_duplicate="reject", or no unique key'
            )


def _split_pair(entry: object) -> tuple[Any, EnqueueOptions]:
    """Return a job of `enqueue_many` and its own options."""
    if not isinstance(entry, tuple):
        return entry, {}
    if len(entry) != 2 or not isinstance(entry[1], Mapping):
        raise InvalidJob(
            "a job with its own options is a pair like (job, {'priority': 7}), not "
            f"{shorten(repr(entry), 80)}"
        )
    job, own = entry
    if own.get("connection") is not None:
        raise InvalidJob("all jobs of a call are stored in one transaction: pass `connection` once")
    return job, own
