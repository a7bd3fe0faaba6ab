"""Declare jobs: the class form `class SendEmail(Job, …)` and the function form `@job(…)`.

A declaration only describes jobs. It runs nothing and needs no processor. Names and policies are
validated when it is made; field types when it is registered or first enqueued.

```python
class SendEmail(Job, name="send_email", queue="default", max_retries=3):
    to: str
    subject: str
    body: str = ""

    async def process(self, ctx: Context) -> None: ...


@job(queue="reports", timeout=60, concurrency=2)
def generate_report(year: int, *, draft: bool = False) -> str: ...
```
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Collection, Coroutine, Mapping
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    ParamSpec,
    Protocol,
    Self,
    TypeVar,
    Unpack,
    cast,
    dataclass_transform,
    overload,
)
from uuid import UUID

import msgspec

from nimburion.core.errors import DefinitionError, InvalidJob
from nimburion.core.size_limits import SizeLimits, check_declared_name
from nimburion.core.text.shortening import shorten
from nimburion.core.text.suggestions import describe_unknown, find_nearest, lower_first
from nimburion.jobs.declaration.signature import (
    Signature,
    check_takes_context,
    read_batch_signature,
    read_class_fields,
    read_signature,
)
from nimburion.jobs.handling.batch_context import BatchContext
from nimburion.jobs.handling.context import Context
from nimburion.jobs.options.enqueue_options import EnqueueOptions
from nimburion.jobs.options.limits import check_limits
from nimburion.jobs.options.policy import (
    POLICY_OPTIONS,
    Batch,
    Policy,
    PolicyOptions,
    read_job_policy,
)
from nimburion.jobs.payloads.codec import Codec

CallP = ParamSpec("CallP")
P = ParamSpec("P")
T = TypeVar("T")
ContextT = TypeVar("ContextT", bound=Context[Any])
R = TypeVar("R")
if TYPE_CHECKING:
    from typing_extensions import TypeVar as TypeVarWithDefault

    from nimburion.jobs.durable.context import DurableContext

    T_co = TypeVarWithDefault("T_co", covariant=True, default=Any)
else:  # Python 3.11 has no defaults of type variables
    T_co = TypeVar("T_co", covariant=True)

_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


_FOREIGN_NAMES = frozenset(
    {
        *("delay", "delay_on_commit"),  # Celery
        "send",  # Dramatiq
        *("enqueue_job", "kiq", "kicker"),  # arq, TaskIQ
        *("perform_async", "perform_bulk"),  # Sidekiq
    }
)
"""Methods by which other job systems enqueue a function."""
_FOREIGN_OPTIONS = frozenset({"apply_async", "send_with_options"})
"""Methods by which other job systems enqueue a function with options."""
_FOREIGN_SIGNATURES = frozenset({"s", "si", "signature", "message"})
"""Methods by which other job systems make a job without enqueueing it."""
_FOREIGN_DELAYS = frozenset({"schedule", "perform_in", "perform_at", "enqueue_in", "apply_later"})
"""Methods by which other job systems enqueue a function for later."""


class Declaration:
    """The description of jobs of one name: name, queue, policy and payload codec."""

    __slots__ = ("_codec", "name", "options", "policy", "queue", "target")

    def __init__(
        self,
        target: type[Job] | JobFunction[..., ..., Any, Any],
        name: str,
        queue: str,
        options: PolicyOptions,
    ) -> None:
        self.target: type[Job] | JobFunction[..., ..., Any, Any] = target
        self.name: str = check_declared_name("the name of a job", name)
        self.queue: str = check_declared_name("queue", queue)
        self.options: PolicyOptions = options
        self.policy: Policy = read_job_policy(name, options)
        self._codec: Codec | None = None

    @property
    def codec(self) -> Codec:
        """The codec of the payloads. Built on first use: by then the types in annotations exist."""
        if self._codec is None:
            codec = self._make_codec()
            if self.policy.unique is not None:
                self.policy.unique.check_fields(self.name, codec.fields)
            check_limits(self.name, self.policy.limits, codec.fields)
            self._codec = codec
        return self._codec

    def encode(self, job: object, sizes: SizeLimits) -> bytes:
        """Return the payload of a job of this declaration; `InvalidJob` if its arguments do not
        fit."""
        codec = self._codec or self.codec
        if isinstance(job, JobCall):
            arguments = msgspec.structs.asdict(job)
        else:
            arguments = job.__dict__
            if len(arguments) != len(codec.fields):
                arguments = _read_fields(job, codec)
        return codec.encode(arguments, sizes)

    def read_arguments(self, job: object) -> dict[str, Any]:
        """Return the arguments of a job of this declaration."""
        codec = self.codec
        return msgspec.structs.asdict(job) if isinstance(job, JobCall) else _read_fields(job, codec)

    def make_partial_codec(self, missing: Collection[str]) -> Codec:
        """Return a codec of payloads without these arguments, which the worker fills in."""
        return self._make_codec(missing)

    def _make_codec(self, missing: Collection[str] = ()) -> Codec:
        base: type[msgspec.Struct] = msgspec.Struct
        if isinstance(self.target, JobFunction):
            fields, base = self.target.signature.fields, self.target.base
        else:
            fields = read_class_fields(self.name, self.target)
        return Codec(self.name, [field for field in fields if field.name not in missing], base)


class JobId(str, Generic[T_co]):
    """The id of a job: a `str`, from which type checkers know what `wait` returns.

    ```python
    job_id = await processor.enqueue(count.job("page.html"))  # JobId[int]
    words = await processor.wait(job_id)  # int
    words = await processor.wait(JobId[int](row.job_id))  # an id from your own table
    ```

    At run time every id is a plain `str`: `JobId(…)` returns one, and the type `JobId[int]` is
    `str`. So a job may have an argument `parent: JobId[int]`.
    """

    __slots__ = ()

    def __new__(cls, job_id: str | UUID) -> Self:
        """Return the id as a plain text."""
        return cast("Self", str(job_id))

    if not TYPE_CHECKING:

        def __class_getitem__(cls, result: object) -> type[str]:
            """Return `str`, which every library of types knows."""
            return str


class JobReturning(Protocol[T_co]):
    """For type checkers: a job whose result is a `T`, of a `Job` class or of a function."""

    def __result__(self) -> T_co:
        """Tells type checkers the type of the result; does not exist at run time."""
        ...


class _AsyncJob(Protocol[T_co]):
    def process(self, ctx: DurableContext[Any], /) -> Coroutine[Any, Any, T_co]: ...


class _BlockingJob(Protocol[T_co]):
    def process(self, ctx: DurableContext[Any], /) -> T_co: ...


class _ForeignMethod:
    """A method that job classes do not have: the error says how to enqueue a job instead."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type) -> object:
        kind = owner.__name__
        takes_options = self._name in _FOREIGN_DELAYS | _FOREIGN_OPTIONS
        call = f"{kind}(…), after=…" if takes_options else f"{kind}(…)"
        raise AttributeError(
            f"{kind!r} has no method {self._name!r}; write `await processor.enqueue({call})`, "
            f"or `processor.sync.enqueue({call})` in code that is not async"
        )


class _ForeignRetry:
    """The method `retry` that tasks of Celery have: the error says what to raise instead."""

    def __get__(self, instance: object, owner: type) -> object:
        raise AttributeError(
            f"{owner.__name__!r} has no method 'retry'; write `raise Retry(after=…)`"
        )


@dataclass_transform(kw_only_default=True, field_specifiers=(dataclasses.field, dataclasses.Field))
class Job:
    """The base of job classes: annotated attributes are the arguments, `process` does the work.

    A subclass becomes a dataclass with keyword-only arguments. The class statement takes options,
    all inherited except `name`:

    - `name`: the job's name; by default the class name in snake case, `send_email` for `SendEmail`.
    - `queue`: the queue of its jobs; `default` by default.
    - `max_retries`: how many retries follow a first failure.
    - `retry_backoff`: seconds, a list of seconds, or a function of the failure's number (1, 2, …);
      with `Backoff`, also the largest delay and the end of the retries.
    - `retry_on`: the only exception classes after which a retry is made; all others are permanent.
    - `permanent`: instead of `retry_on`, exception classes after which no retry is made.
    - `timeout`: the time that one attempt may take.
    - `expires`: the time after a job is due until which it must have started. Later, it is
      cancelled, with the reason `expired`.
    - `concurrency`: how many of these jobs may run at the same time, over all workers.
    - `rate`: how many of these jobs may start in a time, over all workers: `"100/min"`.
    - `limits`: a list of `Limit`, for each key, for several job names, or with a burst or a cost.
    - `priority`: 0 to 9, higher first.
    - `tags`: names by which people find the jobs in a list.
    - `result`: whether the handler's return value is stored.
    - `unique`: names of arguments, or True for all: at most one unfinished job has these values.
      `Unique` says for how long, and what a second enqueue does.
    - `on_failure`: a function of (ctx, error), called when an attempt has failed and is retried.
    - `on_dead`: a function of (ctx, error), called when the job becomes a dead letter.
    - `execution`: where the handler runs. `"auto"`: an `async def` on the event loop, a `def` in a
      thread. `"process"`: in a child process, which a timeout or a cancel kills; with
      `ChildProcess`, with a limit of memory.

    Times are seconds, a timedelta or a text like `"1h30m"`. `DefinitionError` is raised for an
    option that is unknown or has a wrong value.

    ```python
    class SendEmail(Job, queue="mail", max_retries=5, timeout=30):
        to: str
        subject: str = "Hello"

        async def process(self, ctx: Context) -> None: ...
    ```
    """

    __job__: Declaration

    def __init_subclass__(
        cls,
        *,
        name: str | None = None,
        queue: str | None = None,
        **policy: Unpack[PolicyOptions],
    ) -> None:
        super().__init_subclass__()
        name = name if name is not None else _HUMP.sub("_", cls.__name__).lower()
        inherited = getattr(cls, "__job__", None)
        _make_dataclass(cls, name)
        _check_body(name, cls)
        check_takes_context(name, cls)
        if policy.get("batch") is not None:
            raise DefinitionError(
                f"job {name!r}: a Job class handles one job in a call; for a batch, write a "
                "function that takes a list: @job(batch=…)"
            )
        cls.__job__ = Declaration(
            cls,
            name,
            queue or (inherited.queue if inherited else "default"),
            cast("PolicyOptions", {**(inherited.options if inherited else {}), **policy}),
        )

    if not TYPE_CHECKING:
        # A subclass may have fields and methods of these names.
        delay = _ForeignMethod()
        delay_on_commit = _ForeignMethod()
        apply_async = _ForeignMethod()
        send = _ForeignMethod()
        send_with_options = _ForeignMethod()
        enqueue_job = _ForeignMethod()
        perform_async = _ForeignMethod()
        perform_in = _ForeignMethod()
        perform_at = _ForeignMethod()
        enqueue = _ForeignMethod()
        enqueue_sync = _ForeignMethod()
        retry = _ForeignRetry()

    if TYPE_CHECKING:

        @overload
        def __result__(self: _AsyncJob[T]) -> T: ...
        @overload
        def __result__(self: _BlockingJob[T]) -> T: ...
        def __result__(self) -> Any: ...

    def process(self, ctx: DurableContext[Any], /) -> Any:  # noqa: ANN401 (a subclass says what)
        """Do the work of the job, in an `async def` or a `def` method.

        Its parameter is a `Context`. With a `DurableContext`, the job is durable: it remembers its
        steps.

        The return value is stored as the job's result. An exception is the failure of the attempt.
        """
        raise NotImplementedError(f"{type(self).__name__} has no process method")


_NO_ARGUMENTS = frozenset({"max_retries", "retry_backoff", "retry_on", "on_failure", "on_dead"})
"""Options that no job has as arguments: as annotated attributes they are a mistake too."""
_HOOKS = frozenset({"on_failure", "on_dead"})


def _check_body(name: str, cls: type[Job]) -> None:
    """Raise `DefinitionError` for an option in the body of a class, where it has no effect.

    Other job systems have options and hooks there. A field of the dataclass is an argument of the
    job, and a method of another name than a hook is the class's own.
    """
    fields = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for attribute in [*fields, *vars(cls)]:
        if attribute in fields:
            is_mistake = attribute in _NO_ARGUMENTS
        elif attribute in _HOOKS:
            is_mistake = True
        else:
            is_option = attribute == "queue" or attribute in POLICY_OPTIONS
            is_mistake = is_option and not hasattr(vars(cls)[attribute], "__get__")
        if is_mistake:
            raise DefinitionError(
                f"job {name!r}: {attribute!r} is an option, and has no effect in the body of the "
                f"class; write `class {cls.__name__}(Job, {attribute}=…)`"
            )


class JobCall(msgspec.Struct, Generic[T]):
    """A job of a function: its arguments, by name. Made by `function.job(…)`."""

    if TYPE_CHECKING:

        def __result__(self) -> T: ...


AnyJob = Job | JobCall[Any]
"""What can be enqueued: an instance of a job class, or `function.job(…)`."""


class JobFunction(Generic[CallP, P, R, T]):
    """A function that is also a job: call it as before, or make a job of it with `.job(…)`.

    For type checkers, a call returns `R`, and the result of a job is `T`.
    """

    __name__: str

    def __init__(
        self, function: Callable[CallP, R], name: str | None, queue: str, policy: PolicyOptions
    ) -> None:
        if isinstance(function, type) and issubclass(function, Job):
            raise DefinitionError(
                f"{function.__name__} is a job already; write `processor.register("
                f"{function.__name__})`"
            )
        if isinstance(function, type) or not callable(function):
            raise DefinitionError(f"@job decorates functions, not {function!r}")
        functools.update_wrapper(self, function)
        self.function: Callable[CallP, R] = function
        own_name = str(getattr(function, "__name__", ""))
        self.__job__: Declaration = Declaration(
            self, own_name if name is None else name, queue, policy
        )
        self.base: type[JobCall[T]] = type(
            "Call", (JobCall,), {"__job__": self.__job__, "__module__": __name__}
        )
        self._signature: Signature | None = None

    @property
    def signature(self) -> Signature:
        """The function's parameters; `DefinitionError` if one of them cannot be a job's
        argument."""
        if self._signature is None:
            is_batch = self.__job__.policy.batch is not None
            read = read_batch_signature if is_batch else read_signature
            self._signature = read(self.__job__.name, self.function)
        return self._signature

    def __call__(self, *args: CallP.args, **kwargs: CallP.kwargs) -> R:
        """Call the function directly, without a job."""
        return self.function(*args, **kwargs)

    def job(self, *args: P.args, **kwargs: P.kwargs) -> JobCall[T]:
        """Return a job with these arguments, to be enqueued. The context is not among the
        arguments.

        `TypeError` is raised for an argument that is missing or unknown.
        """
        try:
            return cast("JobCall[T]", self.__job__.codec.struct(*args, **kwargs))
        except TypeError as error:
            raise TypeError(self._explain_arguments(error, kwargs)) from None

    def _explain_arguments(self, error: TypeError, given: Mapping[str, object]) -> str:
        """Return the text for arguments that the function does not take."""
        text = f"job {self.__job__.name!r}: {lower_first(str(error))}"
        known = self.__job__.codec.fields
        unknown = next((name for name in given if name not in known), None)
        if unknown is None:
            return text
        from nimburion.jobs.options.unknown_options import find_call_option

        option = find_call_option(unknown, EnqueueOptions.__annotations__)
        if option is not None:
            own = self.__dict__.get("__name__", "function")
            how = (
                f"{own}.options({option}=…).enqueue(…)"
                if hasattr(type(self), "options")
                else f"processor.enqueue({own}.job(…), {option}=…)"
            )
            return f"{text}; it is an option of `enqueue`, so write `await {how}`"
        near = find_nearest(unknown, known)
        return f"{text}; did you mean {near!r}?" if near else text

    def __get__(self, instance: object, owner: type | None = None) -> JobFunction[CallP, P, R, T]:
        if instance is not None:
            raise DefinitionError(
                f"{self.__job__.name!r} is a method: a job has no instance to run on; "
                "use a function, or a Job class"
            )
        return self

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> object:
            """Say how to enqueue a job where another job system has a method for it."""
            own = self.__dict__.get("__name__", "function")
            if name in _FOREIGN_DELAYS:
                how = f"{own}.options(after=…).enqueue(…)"
                if not hasattr(type(self), "enqueue"):
                    how = f"processor.enqueue({own}.job(…), after=…)"
                raise AttributeError(f"the job {own!r} has no method {name!r}; write `await {how}`")
            if name in _FOREIGN_SIGNATURES:
                raise AttributeError(
                    f"the job {own!r} has no method {name!r}; `{own}.job(…)` is a job to enqueue "
                    "later"
                )
            if name in _FOREIGN_OPTIONS:
                how = f"{own}.options(after=…).enqueue(…)"
                if not hasattr(type(self), "enqueue"):
                    how = f"processor.enqueue({own}.job(…), after=…)"
                raise AttributeError(
                    f"the job {own!r} has no method {name!r}; write `await {how}`; the options are "
                    "those of `enqueue`"
                )
            if name in _FOREIGN_NAMES and hasattr(type(self), "enqueue"):
                raise AttributeError(
                    f"the job {own!r} has no method {name!r}; write `await {own}.enqueue(…)`, or "
                    f"`{own}.enqueue_sync(…)` in code that is not async"
                )
            if name in _FOREIGN_NAMES or name in ("enqueue", "enqueue_sync", "options"):
                call = f"enqueue({own}.job(…){', after=…' if name == 'options' else ''})"
                raise AttributeError(
                    f"the job {own!r} has no method {name!r}; write `await processor.{call}`, or "
                    f"`processor.sync.{call}` in code that is not async; a job of @processor.job "
                    f"has `{own}.enqueue(…)`, `{own}.enqueue_sync(…)` and `{own}.options(…)`"
                )
            if name == "retry":
                raise AttributeError(
                    f"the job {own!r} has no method 'retry'; write `raise Retry(after=…)`"
                )
            raise AttributeError(f"the job {own!r} has no attribute {name!r}")

    def __repr__(self) -> str:
        return f"<job {self.__job__.name} in {self.__job__.queue}>"


class JobDecorator:
    """The decorator that `@job(…)` returns when called with options."""

    def __init__(self, name: str | None, queue: str, policy: PolicyOptions) -> None:
        self._name, self._queue, self._policy = name, queue, policy

    @overload
    def __call__(
        self, function: Callable[Concatenate[ContextT, P], Coroutine[Any, Any, T]], /
    ) -> JobFunction[Concatenate[ContextT, P], P, Coroutine[Any, Any, T], T]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[ContextT, P], T], /
    ) -> JobFunction[Concatenate[ContextT, P], P, T, T]: ...
    @overload
    def __call__(
        self, function: Callable[P, Coroutine[Any, Any, T]], /
    ) -> JobFunction[P, P, Coroutine[Any, Any, T], T]: ...
    @overload
    def __call__(self, function: Callable[P, T], /) -> JobFunction[P, P, T, T]: ...
    def __call__(self, function: Callable[..., Any], /) -> JobFunction[..., ..., Any, Any]:
        """Return the function as a job."""
        return JobFunction(function, self._name, self._queue, self._policy)


class BatchJobDecorator:
    """The decorator that `@job(batch=…)` returns."""

    def __init__(self, name: str | None, queue: str, policy: PolicyOptions) -> None:
        self._name, self._queue, self._policy = name, queue, policy

    @overload
    def __call__(
        self, function: Callable[[BatchContext[Any], list[T]], R], /
    ) -> JobFunction[[BatchContext[Any], list[T]], [T], R, Any]: ...
    @overload
    def __call__(
        self, function: Callable[[list[T]], R], /
    ) -> JobFunction[[list[T]], [T], R, Any]: ...
    def __call__(self, function: Callable[..., Any], /) -> JobFunction[..., ..., Any, Any]:
        """Return the function as a job."""
        return JobFunction(function, self._name, self._queue, self._policy)


@overload
def job(
    function: Callable[Concatenate[ContextT, P], Coroutine[Any, Any, T]], /
) -> JobFunction[Concatenate[ContextT, P], P, Coroutine[Any, Any, T], T]: ...
@overload
def job(
    function: Callable[Concatenate[ContextT, P], T], /
) -> JobFunction[Concatenate[ContextT, P], P, T, T]: ...
@overload
def job(
    function: Callable[P, Coroutine[Any, Any, T]], /
) -> JobFunction[P, P, Coroutine[Any, Any, T], T]: ...
@overload
def job(function: Callable[P, T], /) -> JobFunction[P, P, T, T]: ...
@overload
def job(
    *, name: str | None = None, queue: str = "default", **policy: Unpack[PolicyOptions]
) -> JobDecorator: ...
@overload
def job(
    *,
    name: str | None = None,
    queue: str = "default",
    batch: int | Batch,
    **policy: Unpack[PolicyOptions],
) -> BatchJobDecorator: ...
def job(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    queue: str = "default",
    **policy: Any,
) -> Any:
    """Make a job of a typed function: `@job`, or `@job(queue="reports", timeout=60)`.

    The name defaults to the function's own; the other options are those of `Job`. A first parameter
    annotated `Context`, or named `ctx` without an annotation, receives the context. It is not an
    argument of the job.

    ```python
    @job(queue="reports", timeout=60)
    def generate_report(ctx: Context, year: int) -> str: ...


    await processor.enqueue(generate_report.job(2024))
    ```

    With `batch=100`, one call takes a list with the arguments of up to 100 jobs, each of which is
    one argument. With `batch=Batch(100, wait=0.5)`, it starts when they are collected, or half a
    second after the first. It returns None, or a list with one result or exception for each job.

    ```python
    @job(batch=Batch(100, wait=0.5))
    async def index(documents: list[Document]) -> None: ...


    await processor.enqueue(index.job(Document("plan")))
    ```

    `DefinitionError` is raised for an option that is unknown or has a wrong value.
    """
    kind = JobDecorator if policy.get("batch") is None else BatchJobDecorator
    decorator = kind(name, queue, cast("PolicyOptions", policy))
    return decorator if function is None else decorator(function)


def find_declaration(thing: object) -> Declaration | None:
    """Return the declaration of a job class, a job function, or a job; None for anything else."""
    found = getattr(thing, "__job__", None)
    return found if isinstance(found, Declaration) else None


def require_declaration(job: object) -> Declaration:
    """Return the declaration of a job to be enqueued; `InvalidJob` says what to pass instead."""
    found = getattr(type(job), "__job__", None)
    if isinstance(found, Declaration):
        return found
    if isinstance(job, JobFunction):
        hint = f"pass {job.__job__.name}.job(…), with its arguments"
    elif isinstance(job, type) and issubclass(job, Job):
        hint = f"pass {job.__name__}(…), with its arguments"
    elif inspect.iscoroutine(job):
        job.close()
        hint = f"the function was called; pass {job.__name__}.job(…), with its arguments"
    elif callable(job):
        hint = "decorate the function with @job and pass function.job(…)"
    else:
        hint = "pass an instance of a Job class or function.job(…); or use enqueue_raw(name, …)"
    raise InvalidJob(f"{_describe(job)} is not a job: {hint}")


def _make_dataclass(cls: type[Job], name: str) -> None:
    if "__init__" in cls.__dict__:
        raise DefinitionError(
            f"job {name!r}: the constructor is generated from the fields; "
            "validate in __post_init__, not in __init__"
        )
    try:
        dataclasses.dataclass(kw_only=True)(cls)
    except (TypeError, ValueError) as error:
        raise DefinitionError(f"job {name!r}: {error}") from error
    if "process" in cls.__dataclass_fields__:  # type: ignore[attr-defined]
        raise DefinitionError(f"job {name!r}: a field cannot be named 'process'")
    cls.__init__ = _explain_mistakes(cls.__init__, cls.__name__, name)  # type: ignore[method-assign]


def get_constructor(cls: type[Job]) -> Callable[..., None]:
    """Return the constructor of a job class without the explanations of wrong arguments."""
    constructor: Callable[..., None] = getattr(cls.__init__, "__wrapped__", cls.__init__)
    return constructor


def _explain_mistakes(
    construct: Callable[..., None], class_name: str, name: str
) -> Callable[..., None]:
    """Return the constructor, whose `TypeError` for wrong arguments says what to write."""

    @functools.wraps(construct)
    def __init__(self: Job, *args: object, **fields: object) -> None:  # noqa: N807 (becomes one)
        try:
            construct(self, *args, **fields)
        except TypeError:
            mistake = _find_mistake(construct, class_name, args, fields)
            if mistake is None:  # `__post_init__` raised it
                raise
            raise TypeError(f"job {name!r}: {mistake}") from None

    return __init__


def _find_mistake(
    construct: Callable[..., None],
    class_name: str,
    args: tuple[object, ...],
    given: Mapping[str, object],
) -> str | None:
    """Return what is wrong with the arguments of a constructor; None if they fit."""
    _, *parameters = inspect.signature(construct).parameters.values()
    known = [parameter.name for parameter in parameters]
    if args:
        fields = ", ".join(f"{field}=…" for field in known)
        return f"fields are passed by name; write {class_name}({fields})"
    option = next((field for field in given if field in EnqueueOptions.__annotations__), None)
    if option is not None and option not in known:
        return (
            f"there is no field {option!r}; it is an option of `enqueue`, so write "
            f"`await processor.enqueue({class_name}(…), {option}=…)`"
        )
    unknown = describe_unknown("field", given, known)
    if unknown is not None:
        return unknown if known else unknown.replace("known: ", "the class declares none")
    missing = [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty and parameter.name not in given
    ]
    if missing:
        fields = ", ".join(f"{field}=…" for field in missing)
        return f"a value is missing; write {class_name}({fields})"
    return None


def _read_fields(job: object, codec: Codec) -> dict[str, Any]:
    """Return the arguments of a job, without other attributes of the instance."""
    return {field: getattr(job, field) for field in codec.fields if hasattr(job, field)}


def _describe(value: object) -> str:
    return shorten(repr(value), 80)
