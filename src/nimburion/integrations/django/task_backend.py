"""A backend of Django's tasks (`django.tasks`, Django 6.0 and newer).

```python
TASKS = {
    "default": {"BACKEND": "nimburion.integrations.django.task_backend.NimburionBackend"},
}
```

A task is a job named after its function, `shop.tasks.send_receipt`. Workers run the tasks that the
modules of the project declare; nothing is ever imported because a stored job names it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from functools import partial
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

import msgspec
from django.conf import settings
from django.tasks import Task, TaskContext, TaskResult, TaskResultStatus, task_backends
from django.tasks.backends.base import BaseTaskBackend
from django.tasks.base import TaskError
from django.tasks.exceptions import InvalidTask, InvalidTaskBackend, TaskResultDoesNotExist
from django.tasks.signals import task_enqueued, task_finished, task_started
from django.utils import timezone
from django.utils.json import normalize_json

from nimburion.core.errors import DefinitionError, InvalidJob, JobNotFound, RemoteError
from nimburion.core.job import NO_JOB_OPTIONS, AttemptError, JobRecord, NewJob, State
from nimburion.core.size_limits import check_name
from nimburion.integrations.django import get_processor
from nimburion.integrations.django.django_processor import DjangoProcessor
from nimburion.jobs.client.client import Client
from nimburion.jobs.client.collector import JobCollector
from nimburion.jobs.handling.context import Context
from nimburion.jobs.options.enqueue_options import EnqueueOptions, read_job_id
from nimburion.jobs.options.policy import PolicyOptions, Priority, read_policy
from nimburion.jobs.options.uniqueness import Unique

P = ParamSpec("P")
R = TypeVar("R")

if TYPE_CHECKING:
    AnyTask = Task[..., Any]
else:
    AnyTask = Task

_ALIAS, _ENQUEUED_AT, _RUN_AFTER = "django-backend", "django-enqueued-at", "django-run-after"
"""The headers of a job that is a task."""

_POLICY = (
    "max_retries",
    "retry_backoff",
    "permanent",
    "timeout",
    "concurrency",
    "execution",
)
"""The options of `@processor.job` that a task can have."""

_STATUSES: Mapping[State, TaskResultStatus] = {
    State.PENDING: TaskResultStatus.READY,
    State.SCHEDULED: TaskResultStatus.READY,
    State.RETRYING: TaskResultStatus.READY,
    State.SUSPENDED: TaskResultStatus.READY,
    State.PROCESSING: TaskResultStatus.RUNNING,
    State.COMPLETED: TaskResultStatus.SUCCESSFUL,
    State.FAILED: TaskResultStatus.FAILED,
    State.CANCELLED: TaskResultStatus.FAILED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NimburionTask(AnyTask):
    """A task with a policy: `@task(max_retries=3, timeout=60)`, on Django 6.1 and newer.

    The policy options are those of `@processor.job`. None means the value of `OPTIONS` in `TASKS`
    or, without one, the default: no retries.
    """

    max_retries: int | None = None
    retry_backoff: Any = None
    permanent: Any = None
    timeout: Any = None
    concurrency: int | None = None
    execution: Any = None
    unique_key: str | None = None
    """At most one unfinished task of the same function holds this key."""
    unique: Unique | None = None
    """How long a task holds its key, and what a second enqueue does: `Unique(on_duplicate=…)`."""

    def using(
        self,
        *,
        unique_key: str | None = None,
        priority: int | None = None,
        queue_name: str | None = None,
        run_after: datetime | None = None,
        backend: str | None = None,
    ) -> NimburionTask:
        """Return a copy with other values for one enqueue, as `Task.using` does."""
        chosen = {
            "unique_key": unique_key,
            "priority": priority,
            "queue_name": queue_name,
            "run_after": run_after,
            "backend": backend,
        }
        changes: Any = {name: value for name, value in chosen.items() if value is not None}
        return replace(self, **changes)


class StoredTaskError(TaskError):
    """An error as the backend keeps it. No module is imported to find its class."""

    @property
    def exception_class(self) -> type[BaseException]:
        """The class of the exception.

        Raises `ImportError` if this process has not imported its module, and `ValueError` if the
        path is not that of an exception.
        """
        path = self.exception_class_path
        module, _, name = path.rpartition(".")
        while module and module not in sys.modules:
            module, _, outer = module.rpartition(".")
            name = f"{outer}.{name}"
        if not module:
            raise ImportError(f"The module of {path!r} is not imported in this process.")
        found: object = sys.modules[module]
        for step in name.split("."):
            found = getattr(found, step, None)
        if isinstance(found, type) and issubclass(found, BaseException):
            return found
        raise ValueError(f"{path!r} does not reference a valid exception.")


class NimburionBackend(BaseTaskBackend):
    """Runs tasks as jobs of the project's processor.

    `OPTIONS` are policies for all tasks of the backend, such as `{"max_retries": 3}`.
    """

    task_class: type[Task[..., Any]] = NimburionTask
    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        self._policy = _check_options(alias, self.options)
        self._processor: DjangoProcessor = get_processor()
        self._processor.task_queues |= self.queues

    def validate_task(self, task: AnyTask) -> None:
        """Check a task as Django does, and make its function known to the processor."""
        super().validate_task(task)
        try:
            check_name("the name of a task", task.module_path)
            check_name("queue", task.queue_name)
            _register(self._processor, task, self._policy)
        except (InvalidJob, DefinitionError) as error:
            raise InvalidTask(str(error)) from error

    def enqueue(
        self, task: Task[P, R], args: list[Any], kwargs: dict[str, Any]
    ) -> TaskResult[P, R]:
        """Enqueue a task, in the open transaction if the jobs live in its database."""
        made = self._prepare(task, args, kwargs)
        result: Any = made.finish(self._processor.sync.enqueue_made(made.make_jobs))
        if result is None:
            result = self.get_result(made.ids[0])
            return cast("TaskResult[P, R]", result)
        task_enqueued.send(type(self), task_result=result)
        return cast("TaskResult[P, R]", result)

    async def aenqueue(
        self, task: Task[P, R], args: list[Any], kwargs: dict[str, Any]
    ) -> TaskResult[P, R]:
        """Enqueue a task from async code, without a thread."""
        made = self._prepare(task, args, kwargs)
        result: Any = made.finish(await self._processor.sync.enqueue_made_async(made.make_jobs))
        if result is None:
            result = await self.aget_result(made.ids[0])
            return cast("TaskResult[P, R]", result)
        await task_enqueued.asend(type(self), task_result=result)
        return cast("TaskResult[P, R]", result)

    def get_result(self, result_id: str) -> TaskResult[..., Any]:
        """Return the state of a task. Raises `TaskResultDoesNotExist`.

        That is also raised for a task that this process does not know, that another backend
        enqueued, or whose return value is not kept any more.
        """
        try:
            record = self._processor.sync.call(read_record, result_id)
        except (JobNotFound, InvalidJob) as error:
            raise TaskResultDoesNotExist(result_id) from error
        return self._convert(record)

    async def aget_result(self, result_id: str) -> TaskResult[..., Any]:
        """Return the state of a task from async code, without a thread; see `get_result`."""
        try:
            record = await self._processor.sync.call_async(read_record, result_id)
        except (JobNotFound, InvalidJob) as error:
            raise TaskResultDoesNotExist(result_id) from error
        return self._convert(record)

    def _prepare(self, task: AnyTask, args: list[Any], kwargs: dict[str, Any]) -> _PreparedTask:
        self.validate_task(task)
        return _PreparedTask(self.alias, task, args, kwargs)

    def _convert(self, record: JobRecord) -> TaskResult[..., Any]:
        task = self._processor.tasks.get(record.name)
        if task is None or record.options.headers.get(_ALIAS) != self.alias:
            raise TaskResultDoesNotExist(record.id)
        return make_result(cast("AnyTask", task), record)


class _PreparedTask:
    """A task to enqueue: its job, and its result as long as nothing has happened."""

    def __init__(self, alias: str, task: AnyTask, args: list[Any], kwargs: dict[str, Any]) -> None:
        self.result: TaskResult[..., Any] = TaskResult(
            task=task,
            id="",
            status=TaskResultStatus.READY,
            enqueued_at=timezone.now(),
            started_at=None,
            finished_at=None,
            last_attempted_at=None,
            args=list(args),
            kwargs=kwargs,
            backend=alias,
            errors=[],
            worker_ids=[],
        )
        self.ids: list[str] = []
        self._own_id = ""

    async def make_jobs(self, client: Client) -> list[NewJob]:
        """Return the job of the task, validated and with the enqueue middleware of the client."""
        task, result = self.result.task, self.result
        collector = JobCollector(client)
        options: dict[str, Any] = {
            "queue": task.queue_name,
            "headers": _make_headers(result),
            "at": None if task.run_after is None else _make_aware(task.run_after),
            "unique_key": getattr(task, "unique_key", None),
            "unique": getattr(task, "unique", None),
        }
        payload = {"args": result.args, "kwargs": result.kwargs}
        await collector.enqueue_raw(task.module_path, payload, **cast("EnqueueOptions", options))
        (job,) = collector.collected
        self._own_id = job.id
        return [msgspec.structs.replace(job, priority=Priority.NORMAL + task.priority)]

    def finish(self, ids: list[str]) -> TaskResult[..., Any] | None:
        """Return the result of the enqueued task; None if an equal task exists instead."""
        self.ids = ids
        if ids != [self._own_id]:
            return None
        object.__setattr__(self.result, "id", self._own_id)
        return self.result


async def read_record(client: Client, job_id: str) -> JobRecord:
    """Return the record of a job. Raises `JobNotFound`, and `InvalidJob` for a malformed id."""
    return await client.backend.reads.get_job(read_job_id(job_id))


def make_result(task: AnyTask, record: JobRecord) -> TaskResult[..., Any]:
    """Return the state of a task from the record of its job.

    Raises `TaskResultDoesNotExist` if the return value or the arguments are not kept any more.
    """
    headers, attempts = record.options.headers, record.attempts
    returned = record.result
    if record.state is State.COMPLETED and returned is None:
        raise TaskResultDoesNotExist(record.id)
    args, kwargs = _read_call(record.payload)
    result: TaskResult[..., Any] = TaskResult(
        task=_restore_task(task, record),
        id=record.id,
        status=_STATUSES[record.state],
        enqueued_at=_follow_use_tz(datetime.fromisoformat(headers[_ENQUEUED_AT])),
        started_at=_to_datetime(attempts[0].started_at) if attempts else None,
        finished_at=_to_datetime(record.finished_at),
        last_attempted_at=_to_datetime(attempts[-1].started_at) if attempts else None,
        args=args,
        kwargs=kwargs,
        backend=headers[_ALIAS],
        errors=[_make_error(error) for error in record.history],
        worker_ids=[attempt.session for attempt in attempts],
    )
    if record.state is State.CANCELLED:
        result.errors.append(
            StoredTaskError(
                exception_class_path="nimburion.core.errors.Cancel",
                traceback=f"Cancelled: {record.reason or 'on request'}",
            )
        )
    if returned is not None:
        object.__setattr__(result, "_return_value", msgspec.json.decode(returned)["return_value"])
    return result


def _register(processor: DjangoProcessor, task: AnyTask, defaults: Mapping[str, Any]) -> None:
    """Register the handler of a task once; the latest function of a name runs."""
    name = task.module_path
    known = processor.tasks.get(name)
    if known is None:
        own = {option: getattr(task, option, None) for option in _POLICY}
        chosen = {option: value for option, value in own.items() if value is not None}
        policy: dict[str, Any] = {"max_retries": 0, **defaults, **chosen}
        handler = _run_task_async if iscoroutinefunction(task.func) else _run_task
        processor.registry.add_raw(
            name,
            partial(handler, processor),
            queue=task.queue_name,
            **cast("PolicyOptions", {**policy, "on_dead": partial(_report_dead, processor)}),
        )
    if known is None or cast("AnyTask", known).func is not task.func:
        processor.tasks[name] = task


def _run_task(processor: DjangoProcessor, ctx: Context[Any], payload: bytes) -> object:
    """Run a task in this thread, with Django's signals, and return what is stored of it."""
    record = processor.sync.call(read_record, ctx.job_id) if ctx.attempt > 1 else None
    running = _RunningTask(processor, ctx, payload, record)
    task_started.send(running.sender, task_result=running.result)
    value = running.call()
    running.succeed(value)
    task_finished.send(running.sender, task_result=running.result)
    return {"return_value": running.result.return_value}


async def _run_task_async(processor: DjangoProcessor, ctx: Context[Any], payload: bytes) -> object:
    """Run an async task, with Django's signals, and return what is stored of it."""
    record = None
    if ctx.attempt > 1:
        record = await processor.sync.call_async(read_record, ctx.job_id)
    running = _RunningTask(processor, ctx, payload, record)
    await task_started.asend(running.sender, task_result=running.result)
    value = await running.call()
    running.succeed(value)
    await task_finished.asend(running.sender, task_result=running.result)
    return {"return_value": running.result.return_value}


def _report_dead(processor: DjangoProcessor, ctx: Context[Any], error: AttemptError) -> None:
    """Send the signal of a task that has failed for good."""
    record = processor.sync.call(read_record, ctx.job_id)
    if len(record.history) < ctx.attempt:
        record = msgspec.structs.replace(record, history=[*record.history, error])
    record = msgspec.structs.replace(record, state=State.FAILED, finished_at=processor.clock.now())
    result = make_result(cast("AnyTask", processor.tasks[ctx.name]), record)
    try:
        raise RemoteError(error)  # noqa: TRY301 (Django's log takes its text from here)
    except RemoteError:
        task_finished.send(type(task_backends[result.backend]), task_result=result)


class _RunningTask:
    """An attempt at a task, with its result as `TaskContext` shows it."""

    def __init__(
        self,
        processor: DjangoProcessor,
        ctx: Context[Any],
        payload: bytes,
        record: JobRecord | None,
    ) -> None:
        task = cast("AnyTask", processor.tasks[ctx.name])
        now = processor.clock.now()
        self.result: TaskResult[..., Any] = make_result(
            task,
            record or _make_first_record(ctx, payload, now),
        )
        self.sender: type[BaseTaskBackend] = type(task_backends[self.result.backend])
        self._task = task

    def call(self) -> Any:  # noqa: ANN401 (what the task returns; a coroutine if it is async)
        """Call the function of the task."""
        front = [TaskContext(task_result=self.result)] if self._task.takes_context else []
        return self._task.func(*front, *self.result.args, **self.result.kwargs)

    def succeed(self, value: object) -> None:
        """Note the end of the task. Raises `TypeError` for a value without a JSON form."""
        object.__setattr__(self.result, "_return_value", normalize_json(value))
        object.__setattr__(self.result, "finished_at", timezone.now())
        object.__setattr__(self.result, "status", TaskResultStatus.SUCCESSFUL)


def _make_first_record(ctx: Context[Any], payload: bytes, now: float) -> JobRecord:
    """Return the record of a first attempt that runs, which needs no read."""
    return JobRecord(
        id=ctx.job_id,
        name=ctx.name,
        queue=ctx.queue,
        state=State.PROCESSING,
        priority=ctx.priority,
        payload=payload,
        due=now,
        created_at=now,
        started_at=now,
        session=ctx.worker_id,
        options=msgspec.structs.replace(NO_JOB_OPTIONS, headers=ctx.headers),
    )


def _check_options(alias: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the policies of `OPTIONS`. Raises `InvalidTaskBackend` if one is wrong."""
    place = f'TASKS["{alias}"]["OPTIONS"]'
    for name in options:
        if name not in _POLICY:
            raise InvalidTaskBackend(f"{place}: {name!r} is none of {', '.join(_POLICY)}")
    try:
        read_policy(options)
    except DefinitionError as error:
        raise InvalidTaskBackend(f"{place}: {error}") from error
    return dict(options)


def _make_headers(result: TaskResult[..., Any]) -> dict[str, str]:
    headers = {
        _ALIAS: result.backend,
        _ENQUEUED_AT: _make_aware(cast("datetime", result.enqueued_at)).isoformat(),
    }
    if result.task.run_after is not None:
        headers[_RUN_AFTER] = _make_aware(result.task.run_after).isoformat()
    return headers


def _make_aware(moment: datetime) -> datetime:
    """Return a time with a zone: with `USE_TZ = False`, Django's times are local ones."""
    return timezone.make_aware(moment) if timezone.is_naive(moment) else moment


def _restore_task(task: AnyTask, record: JobRecord) -> AnyTask:
    """Return the task as it was enqueued.

    It is not validated: its queue may have been removed from the settings since.
    """
    run_after = record.options.headers.get(_RUN_AFTER)
    enqueued = {
        "priority": record.priority - Priority.NORMAL,
        "queue_name": record.queue,
        "backend": record.options.headers[_ALIAS],
        "run_after": None
        if run_after is None
        else _follow_use_tz(datetime.fromisoformat(run_after)),
        "unique_key": record.options.unique_key,
    }
    restored = object.__new__(type(task))
    for field in fields(task):
        value = enqueued.get(field.name, getattr(task, field.name))
        object.__setattr__(restored, field.name, value)
    return restored


def _read_call(payload: bytes | None) -> tuple[list[Any], dict[str, Any]]:
    """Return the arguments of a task; none if the backend does not keep them any more."""
    if payload is None:
        return [], {}
    call = msgspec.json.decode(payload)
    return call["args"], call["kwargs"]


def _make_error(error: AttemptError) -> StoredTaskError:
    if error.kind == "timeout":
        path = "builtins.TimeoutError"
    elif error.kind == "lost":
        path = "nimburion.core.errors.LeaseLost"
    else:
        path = f"{error.module or 'builtins'}.{error.type}"
    return StoredTaskError(
        exception_class_path=path, traceback=error.traceback or f"{error.type}: {error.message}"
    )


def _to_datetime(seconds: float | None) -> datetime | None:
    return None if seconds is None else _follow_use_tz(datetime.fromtimestamp(seconds, UTC))


def _follow_use_tz(moment: datetime) -> datetime:
    """Return a time as Django has them: with `USE_TZ = False`, local and without a zone."""
    return moment if settings.USE_TZ else timezone.make_naive(moment)
