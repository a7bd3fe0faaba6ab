"""A job function that belongs to a processor: what `@processor.job` returns.

```python
@processor.job(queue="images")
async def thumbnail(path: str, width: int = 200) -> None: ...


await thumbnail.enqueue("cat.png", width=100)
await thumbnail.options(priority=7, after=30).enqueue("cat.png")
```
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    ParamSpec,
    Protocol,
    TypeVar,
    Unpack,
    cast,
    overload,
)

from nimburion.core.errors import UseAwait
from nimburion.jobs.declaration.job import JobFunction
from nimburion.jobs.handling.batch_context import BatchContext
from nimburion.jobs.handling.context import Context
from nimburion.jobs.options.enqueue_options import check_option_names

if TYPE_CHECKING:
    from nimburion.jobs.client.sync import SyncClient
    from nimburion.jobs.declaration.job import JobId, JobReturning
    from nimburion.jobs.options.enqueue_options import EnqueueOptions
    from nimburion.jobs.options.policy import Batch, PolicyOptions

CallP = ParamSpec("CallP")
P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
ContextT = TypeVar("ContextT", bound=Context[Any])


class Enqueuer(Protocol):
    """What a registered job needs of its processor."""

    async def enqueue(self, job: JobReturning[T], **options: Unpack[EnqueueOptions]) -> JobId[T]:
        """Store a job and return its id."""
        ...

    @property
    def sync(self) -> SyncClient:
        """The same for code that is not async."""
        ...


class RegisteredJob(JobFunction[CallP, P, R, T]):
    """A function that is a job of one processor. Call it as before, or enqueue it.

    `find_processor` returns the processor when a job is enqueued.
    """

    def __init__(
        self,
        function: Callable[CallP, R],
        name: str | None,
        queue: str,
        policy: PolicyOptions,
        find_processor: Callable[[], Enqueuer],
    ) -> None:
        super().__init__(function, name, queue, policy)
        self._find_processor = find_processor

    async def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> JobId[T]:
        """Store a job with these arguments and return its id.

        The arguments are those of the function, without the context. To set a queue, a priority or
        a delay, call `options` first. The errors are those of `Processor.enqueue`.
        """
        return await self._find_processor().enqueue(self.job(*args, **kwargs))

    def enqueue_sync(self, *args: P.args, **kwargs: P.kwargs) -> JobId[T]:
        """Store a job as `enqueue` does, for code that is not async: blocks until it is stored."""
        try:
            return self._find_processor().sync.enqueue(self.job(*args, **kwargs))
        except UseAwait:
            raise _make_use_await(f"{self.__name__}.enqueue(…)") from None

    def options(self, **options: Unpack[EnqueueOptions]) -> JobWithOptions[P, T]:
        """Return the job with options of `Processor.enqueue`, such as `priority=7` or `after=30`.

        They are `id`, `queue`, `priority`, `at`, `after`, `unique_key`, `unique`, `headers`,
        `tenant`, `correlation_id`, `max_retries`, `timeout`, `expires`, `tags` and `connection`, as
        `help(processor.enqueue)` describes them. An unknown name raises `InvalidJob` at once;
        values are checked when the job is enqueued.
        """
        check_option_names(options)
        return JobWithOptions(self, self._find_processor, options)


def find_processor(job: RegisteredJob[..., ..., Any, Any]) -> Enqueuer:
    """Return the processor of a job. For tests only."""
    return job._find_processor()  # noqa: SLF001


class JobWithOptions(Generic[P, T]):
    """A registered job and the options to enqueue it with. Returned by `RegisteredJob.options`."""

    __slots__ = ("_find_processor", "_function", "_options")

    def __init__(
        self,
        function: JobFunction[..., P, Any, T],
        find_processor: Callable[[], Enqueuer],
        options: EnqueueOptions,
    ) -> None:
        self._function = function
        self._find_processor = find_processor
        self._options = options

    async def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> JobId[T]:
        """Store a job with these arguments and the options, and return its id."""
        job = self._function.job(*args, **kwargs)
        return await self._find_processor().enqueue(job, **self._copy())

    def enqueue_sync(self, *args: P.args, **kwargs: P.kwargs) -> JobId[T]:
        """Store a job as `enqueue` does, for code that is not async: blocks until it is stored."""
        job = self._function.job(*args, **kwargs)
        try:
            return self._find_processor().sync.enqueue(job, **self._copy())
        except UseAwait:
            raise _make_use_await(f"{self._function.__name__}.options(…).enqueue(…)") from None

    def _copy(self) -> EnqueueOptions:
        return cast("EnqueueOptions", dict(self._options))

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self._options.items())
        return f"<{self._function!r} with {given}>"


def _make_use_await(call: str) -> UseAwait:
    """Return the error of `enqueue_sync` on the processor's event loop, with the call to write."""
    return UseAwait(
        "the processor is open on this event loop, and `enqueue_sync` would block it: write "
        f"`await {call}`"
    )


class RegisterDecorator:
    """The decorator that `@processor.job(…)` returns when called with options."""

    def __init__(
        self,
        find_processor: Callable[[], Enqueuer],
        register: Callable[[RegisteredJob[..., ..., Any, Any]], object],
        name: str | None,
        queue: str,
        policy: PolicyOptions,
    ) -> None:
        self._find_processor = find_processor
        self._register = register
        self._name, self._queue, self._policy = name, queue, policy

    @overload
    def __call__(
        self, function: Callable[Concatenate[ContextT, P], Coroutine[Any, Any, T]], /
    ) -> RegisteredJob[Concatenate[ContextT, P], P, Coroutine[Any, Any, T], T]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[ContextT, P], T], /
    ) -> RegisteredJob[Concatenate[ContextT, P], P, T, T]: ...
    @overload
    def __call__(
        self, function: Callable[P, Coroutine[Any, Any, T]], /
    ) -> RegisteredJob[P, P, Coroutine[Any, Any, T], T]: ...
    @overload
    def __call__(self, function: Callable[P, T], /) -> RegisteredJob[P, P, T, T]: ...
    def __call__(self, function: Callable[..., Any], /) -> RegisteredJob[..., ..., Any, Any]:
        """Return the function as a job, registered with the processor."""
        registered: RegisteredJob[..., ..., Any, Any] = RegisteredJob(
            function, self._name, self._queue, self._policy, self._find_processor
        )
        self._register(registered)
        return registered


class RegisterBatchDecorator:
    """The decorator that `@processor.job(batch=…)` returns."""

    def __init__(self, decorator: RegisterDecorator) -> None:
        self._decorator = decorator

    @overload
    def __call__(
        self, function: Callable[[BatchContext[Any], list[T]], R], /
    ) -> RegisteredJob[[BatchContext[Any], list[T]], [T], R, Any]: ...
    @overload
    def __call__(
        self, function: Callable[[list[T]], R], /
    ) -> RegisteredJob[[list[T]], [T], R, Any]: ...
    def __call__(self, function: Callable[..., Any], /) -> RegisteredJob[..., ..., Any, Any]:
        """Return the function as a job, registered with the processor."""
        return self._decorator(function)


class DeclaresJobs:
    """Has the decorator `job`. A processor has it, and the jobs of a Flask application."""

    def _find_processor(self) -> Enqueuer:
        """Return the processor of the jobs when one is enqueued."""
        raise NotImplementedError

    def register(self, job: JobFunction[..., ..., Any, Any], /) -> None:
        """Register a job."""
        raise NotImplementedError

    @overload
    def job(
        self, function: Callable[Concatenate[ContextT, P], Coroutine[Any, Any, T]], /
    ) -> RegisteredJob[Concatenate[ContextT, P], P, Coroutine[Any, Any, T], T]: ...
    @overload
    def job(
        self, function: Callable[Concatenate[ContextT, P], T], /
    ) -> RegisteredJob[Concatenate[ContextT, P], P, T, T]: ...
    @overload
    def job(
        self, function: Callable[P, Coroutine[Any, Any, T]], /
    ) -> RegisteredJob[P, P, Coroutine[Any, Any, T], T]: ...
    @overload
    def job(self, function: Callable[P, T], /) -> RegisteredJob[P, P, T, T]: ...
    @overload
    def job(
        self,
        /,
        *,
        name: str | None = None,
        queue: str = "default",
        **policy: Unpack[PolicyOptions],
    ) -> RegisterDecorator: ...
    @overload
    def job(
        self,
        /,
        *,
        name: str | None = None,
        queue: str = "default",
        batch: int | Batch,
        **policy: Unpack[PolicyOptions],
    ) -> RegisterBatchDecorator: ...
    def job(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        queue: str = "default",
        **policy: Any,
    ) -> Any:
        """Make a job of a typed function and register it: `@job` and `register` in one step.

        The options are those of `@job`. The function can then be enqueued without naming the
        processor again.

        ```python
        @processor.job(queue="images")
        async def thumbnail(path: str, width: int = 200) -> None: ...


        await thumbnail.enqueue("cat.png", width=100)
        ```

        The errors are those of `@job` and of `register`.
        """
        options = cast("PolicyOptions", policy)
        decorator = RegisterDecorator(self._find_processor, self.register, name, queue, options)
        if function is not None:
            return decorator(function)
        return decorator if policy.get("batch") is None else RegisterBatchDecorator(decorator)
