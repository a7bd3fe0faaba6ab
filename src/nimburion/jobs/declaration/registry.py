"""The handlers of a process: the job names that it can run, and how it runs them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any, Unpack, cast

import msgspec

from nimburion.core.errors import DefinitionError
from nimburion.core.job import NewJob
from nimburion.core.limits import LimitRule
from nimburion.core.settings import Settings
from nimburion.core.size_limits import SizeLimits, check_declared_name
from nimburion.jobs.declaration.job import (
    Declaration,
    Job,
    JobFunction,
    find_declaration,
    get_constructor,
)
from nimburion.jobs.declaration.signature import (
    describe_place,
    is_async,
    read_batch_return_type,
    read_return_type,
    takes_durable_context,
)
from nimburion.jobs.handling.batch_context import BatchContext, read_outcomes
from nimburion.jobs.handling.context import Context
from nimburion.jobs.options.configured_policy import (
    configure_policy,
    find_misspelt_queues,
    find_unknown_names,
    make_queue_limits,
)
from nimburion.jobs.options.limits import JobLimits, describe_rule, describe_rules
from nimburion.jobs.options.policy import Policy, PolicyOptions, read_job_policy
from nimburion.jobs.payloads.codec import ResultCodec, UnreadablePayload
from nimburion.jobs.payloads.fields import check_type

NO_DURABLE_FUNCTION = (
    "DurableContext is the context of a function or a Job class; write `@processor.job` and "
    "`async def NAME(ctx: DurableContext, …)`"
)
"""What to write in place of a raw handler that is to be durable."""

RawHandler = Callable[[Context[Any], bytes], Any]
BatchCall = Callable[[BatchContext[Any], list[Any]], Any]
Target = type[Job] | JobFunction[..., ..., Any, Any] | RawHandler


class Handler:
    """The handler of the jobs of one name.

    Built once, at registration, so that an attempt needs no other lookup.
    """

    __slots__ = (
        "_result",
        "_result_limit",
        "call",
        "call_batch",
        "decode",
        "get_batch_argument",
        "is_async",
        "is_durable",
        "keeps_result",
        "name",
        "policy",
        "queue",
        "returns_value",
        "target",
    )

    def __init__(
        self,
        *,
        name: str,
        queue: str,
        policy: Policy,
        target: Target,
        function: Callable[..., Any],
        call: Callable[[Any, Context[Any]], Any],
        decode: Callable[[bytes], Any],
        sizes: SizeLimits,
        call_batch: BatchCall | None = None,
        get_batch_argument: Callable[[Any], Any] | None = None,
        is_durable: bool = False,
    ) -> None:
        self.name: str = name
        self.queue: str = queue
        """The queue of its jobs, unless an enqueue names another one."""
        self.policy: Policy = policy
        self.target: Target = target
        self.is_async: bool = is_async(function)
        """Whether `call` returns a coroutine; otherwise it blocks."""
        if self.is_async and policy.execution == "thread":
            raise DefinitionError(
                f'job {name!r}: execution="thread" is for `def` handlers, and this one is an '
                "`async def`, which runs on the event loop"
            )
        self.is_durable: bool = is_durable
        """Whether the handler takes a `DurableContext`."""
        if is_durable:
            _check_durable(name, policy, function, is_async=self.is_async)
        self.call: Callable[[Any, Context[Any]], Any] = call
        """Calls the handler with the return value of `decode` and the context."""
        self.decode: Callable[[bytes], Any] = decode
        """Decodes a payload to arguments; `UnreadablePayload`. A raw handler gets the payload
        unchanged."""
        self.call_batch: BatchCall = call_batch or _call_no_batch
        """Calls a batch handler with its context and the arguments of its jobs."""
        self.get_batch_argument: Callable[[Any], Any] = get_batch_argument or _call_no_batch
        """Returns what a batch handler receives of one job, from the return value of `decode`."""
        kind = _read_result_type(name, function, policy) if policy.result else None
        self._result = ResultCodec(name, kind) if policy.result else None
        self._result_limit = sizes.result
        self.keeps_result: bool = policy.result
        """Whether the return value is kept."""
        self.returns_value: bool = kind not in (None, type(None), Any, object)
        """Whether the return value is kept, and its annotation promises more than None."""

    def encode_result(self, value: object) -> bytes | None:
        """Return the bytes to store for a return value: JSON, or None.

        `UnstorableResult` is raised when the value cannot be stored.
        """
        return None if self._result is None else self._result.encode(value, self._result_limit)

    def decode_result(self, result: bytes) -> Any:  # noqa: ANN401
        """Return a stored result, in the handler's annotated return type."""
        return msgspec.json.decode(result) if self._result is None else self._result.decode(result)

    def __repr__(self) -> str:
        return f"<Handler {self.name}>"


class Registry:
    """The handlers of one processor, by name."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._handlers: dict[str, Handler] = {}
        self._queue_limits = make_queue_limits(settings)
        self.get: Callable[[str], Handler | None] = self._handlers.get
        """Returns the handler of a name; None when it is not registered."""
        self.has_durable: bool = False
        """Whether a handler is durable."""

    def add(self, *jobs: type[Job] | JobFunction[..., ..., Any, Any]) -> None:
        """Register job classes and job functions.

        Registering the same one again changes nothing. `DefinitionError` is raised when another job
        has the name.
        """
        for handler in [self._make_handler(job) for job in jobs]:
            self._add(handler)

    def add_raw(
        self,
        name: str,
        handler: RawHandler,
        *,
        queue: str = "default",
        **policy: Unpack[PolicyOptions],
    ) -> None:
        """Register `handler(ctx, data)` for jobs of `name`; `data` is the payload, in bytes."""
        if not callable(handler):
            raise DefinitionError(f"the handler of {name!r} must be callable, not {handler!r}")
        if takes_durable_context(handler):
            raise DefinitionError(f"the raw handler of {name!r}: {NO_DURABLE_FUNCTION}")
        if "batch" in policy:
            raise DefinitionError(
                f"job {name!r}: a raw handler takes one job; for a batch, use a function: "
                "@job(batch=…)"
            )
        if policy.get("unique"):
            raise DefinitionError(
                f"job {name!r}: a raw handler has no arguments that could be unique; pass "
                "unique_key when you enqueue the job"
            )
        self._add(
            Handler(
                name=check_declared_name("the name of a job", name),
                queue=check_declared_name("queue", queue),
                policy=self._configure(name, read_job_policy(name, policy)),
                target=handler,
                function=handler,
                call=_make_raw_call(handler),
                decode=bytes,
                sizes=self._settings.sizes,
            )
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The registered names, sorted."""
        return tuple(sorted(self._handlers))

    @property
    def queues(self) -> tuple[str, ...]:
        """The queues that the registered jobs declare, sorted."""
        return tuple(sorted({handler.queue for handler in self._handlers.values()}))

    @property
    def handlers(self) -> list[Handler]:
        """All handlers, in the order of registration."""
        return list(self._handlers.values())

    @property
    def process_names(self) -> frozenset[str]:
        """The names of the jobs whose handlers run in child processes."""
        return frozenset(
            handler.name
            for handler in self._handlers.values()
            if handler.policy.execution == "process"
        )

    @property
    def batch_handlers(self) -> list[Handler]:
        """The handlers that one call gives several jobs."""
        return [handler for handler in self._handlers.values() if handler.policy.batch is not None]

    @property
    def limits(self) -> dict[str, dict[str, LimitRule]]:
        """The fleet-wide limits, by job name and then by the name of the limit.

        The limits of whole queues are among those of each job name: a job may be in any queue.
        """
        limits = {
            handler.name: self._queue_limits | _make_rules(handler)
            for handler in self._handlers.values()
        }
        return {name: rules for name, rules in limits.items() if rules}

    def describe_limits(self) -> dict[str, str]:
        """Return the limits of each job and queue that has some, for people."""
        described = {
            handler.name: describe_rules(_make_rules(handler))
            for handler in self._handlers.values()
        }
        described |= {name: describe_rule(rule) for name, rule in self._queue_limits.items()}
        return {name: text for name, text in sorted(described.items()) if text}

    def find_unknown_names(self) -> list[str]:
        """Return a message for each job or limit that the settings name and that is not here."""
        limits = [name for rules in self.limits.values() for name in rules]
        queues = {*self.queues, *(queue.name for queue in self._settings.queues)}
        return [
            *find_unknown_names(self._settings, self.names, limits),
            *find_misspelt_queues(self._settings, queues),
        ]

    def add_limit_keys(self, job: NewJob) -> NewJob:
        """Return a job with its keys for the limits by key that its name declares, if its handler
        is registered here. `enqueue` does this itself.

        A payload that the handler cannot read gets no keys: its job fails at once. Raises
        `InvalidJob` if the function of a key or of a cost fails.
        """
        return self.try_add_limit_keys(job) or job

    def try_add_limit_keys(self, job: NewJob) -> NewJob | None:
        """Return a job as `add_limit_keys` does; None if the name has no limits or no handler here,
        or the handler cannot read the payload."""
        handler = self.get(job.name)
        if handler is None or not handler.policy.limits:
            return None
        try:
            arguments = handler.decode(job.payload)
        except UnreadablePayload:
            return None
        limits = JobLimits(job.name, handler.policy.limits)
        options = limits.apply(job.options, job.payload, arguments)
        return msgspec.structs.replace(job, options=options)

    def _configure(self, name: str, policy: Policy) -> Policy:
        return configure_policy(name, policy.with_defaults(self._settings), self._settings)

    def _add(self, handler: Handler) -> None:
        _make_rules(handler)  # raises if two of its limits have one name
        known = self._handlers.setdefault(handler.name, handler)
        self.has_durable = self.has_durable or handler.is_durable
        if known is not handler and known.target is not handler.target:
            raise DefinitionError(
                f"the name {handler.name!r} is taken by {_describe(known.target)}; "
                f"give {_describe(handler.target)} another name"
            )

    def _make_handler(self, job: object) -> Handler:
        declaration = find_declaration(job)
        call_batch = get_batch_argument = None
        decode: Callable[[bytes], Any]
        if isinstance(job, JobFunction) and declaration and declaration.policy.batch is not None:
            function, call_batch = job.function, _make_batch_call(job)
            get_batch_argument = attrgetter(job.signature.fields[0].name)
            call = _make_call_of_one(function, call_batch, get_batch_argument)
            decode = partial(declaration.codec.decode, sizes=self._settings.sizes)
        elif isinstance(job, JobFunction) and declaration:
            function, call = job.function, _make_function_call(job)
            decode = partial(declaration.codec.decode, sizes=self._settings.sizes)
        elif isinstance(job, type) and issubclass(job, Job) and declaration:
            function = job.process
            call = cast("Callable[[Any, Context[Any]], Any]", function)
            decode = _make_instance_decoder(job, declaration, self._settings.sizes)
        else:
            raise DefinitionError(
                f"cannot register {_describe(job)}: pass Job classes and @job functions, "
                "or a name and a raw handler"
            )
        return Handler(
            name=declaration.name,
            queue=declaration.queue,
            policy=self._configure(declaration.name, declaration.policy),
            target=job,
            function=function,
            call=call,
            decode=decode,
            sizes=self._settings.sizes,
            call_batch=call_batch,
            get_batch_argument=get_batch_argument,
            is_durable=takes_durable_context(function, 0 if isinstance(job, JobFunction) else 1),
        )


def _check_durable(
    name: str, policy: Policy, function: Callable[..., Any], *, is_async: bool
) -> None:
    """Raise `DefinitionError` if a handler with these properties cannot be durable."""
    if policy.batch is not None:
        raise DefinitionError(
            f"job {name!r}: a batch handler takes a BatchContext; it cannot be durable"
        )
    if policy.execution == "process":
        raise DefinitionError(
            f'job {name!r}: a durable function runs in the worker, not with execution="process"; '
            "run what needs a process of its own as a child job: `await ctx.run(…)`"
        )
    if not is_async:
        raise DefinitionError(
            f"job {name!r}, {describe_place(function)}: a durable function is an `async def`, and "
            "this is a `def`; write `async def`, await its operations, and call what blocks in "
            "steps: `await ctx.step(function, …)` calls a `def` function in a thread"
        )


def _make_rules(handler: Handler) -> dict[str, LimitRule]:
    """Return the limits of a handler by name, without those of queues."""
    policy = handler.policy
    return JobLimits(handler.name, policy.limits).make_rules(policy.concurrency, policy.rate)


def _make_raw_call(handler: RawHandler) -> Callable[[bytes, Context[Any]], Any]:
    return lambda payload, ctx: handler(ctx, payload)


def _make_function_call(job: JobFunction[..., ..., Any, Any]) -> Callable[[Any, Context[Any]], Any]:
    """Return a callable that calls the function with its decoded arguments and the context."""
    function, signature = job.function, job.signature
    by_name = msgspec.structs.asdict
    if signature.positional_only:
        return _make_positional_call(job)
    if signature.takes_context:
        return lambda call, ctx: function(ctx, **by_name(call))
    return lambda call, _: function(**by_name(call))


def _make_batch_call(job: JobFunction[..., ..., Any, Any]) -> BatchCall:
    """Return a callable that calls a batch handler with its context and a list."""
    function = job.function
    if job.signature.takes_context:
        return function
    return lambda _, arguments: function(arguments)


def _make_call_of_one(
    function: Callable[..., Any], call_batch: BatchCall, get_argument: Callable[[Any], Any]
) -> Callable[[Any, Context[Any]], Any]:
    """Return a callable that calls a batch handler for a single job, with the decoded arguments
    of this job and the context: for a job that runs alone in a child process.
    """

    def read_outcome(context: BatchContext[Any], returned: object) -> object:
        (outcome,) = read_outcomes(returned, context)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    async def call_async(job: object, ctx: Context) -> object:
        context = BatchContext([ctx])
        return read_outcome(context, await call_batch(context, [get_argument(job)]))

    def call(job: object, ctx: Context) -> object:
        context = BatchContext([ctx])
        return read_outcome(context, call_batch(context, [get_argument(job)]))

    return call_async if is_async(function) else call


def _call_no_batch(*_: object) -> Any:  # noqa: ANN401
    raise DefinitionError("this job has no batch handler")


def _make_positional_call(
    job: JobFunction[..., ..., Any, Any],
) -> Callable[[Any, Context[Any]], Any]:
    function, signature = job.function, job.signature
    names = [field.name for field in signature.fields[: signature.positional_only]]

    def call_by_position(call: msgspec.Struct, ctx: Context) -> object:
        named = msgspec.structs.asdict(call)
        front = [named.pop(name) for name in names]
        return function(*([ctx] if signature.takes_context else []), *front, **named)

    return call_by_position


def _make_instance_decoder(
    cls: type[Job], declaration: Declaration, sizes: SizeLimits
) -> Callable[[bytes], Job]:
    if cls.process is Job.process:
        raise DefinitionError(f"job {declaration.name!r}: {cls.__name__} has no process method")
    decode = partial(declaration.codec.decode, sizes=sizes)
    decode_plain = declaration.codec.decode_plain or decode
    by_name, new, construct = msgspec.structs.asdict, cls.__new__, get_constructor(cls)

    def decode_instance(payload: bytes) -> Job:
        instance = new(cls)
        try:
            construct(instance, **by_name(decode_plain(payload)))
            return instance
        except (ValueError, TypeError) as error:
            decode(payload)  # raises the better error if the payload is at fault
            raise UnreadablePayload(
                f"the payload does not fit job {declaration.name!r}: {error}"
            ) from error

    return decode_instance


def _read_result_type(name: str, function: Callable[..., Any], policy: Policy) -> Any:  # noqa: ANN401
    """Return the annotated type of a job's result; `DefinitionError` if it has no JSON form."""
    read = read_return_type if policy.batch is None else read_batch_return_type
    kind = read(name, function)
    check_type(f"job {name!r}, return type (declare result=False if it is not to be kept)", kind)
    return kind


def _describe(target: object) -> str:
    module = getattr(target, "__module__", None)
    name = getattr(target, "__qualname__", None)
    return f"{module}.{name}" if module and name else repr(target)
