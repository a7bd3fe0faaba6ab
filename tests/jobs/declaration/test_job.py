"""Declaring jobs in both forms, and registering them."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from typing import TYPE_CHECKING, Any

import pytest

from nimburion.backends.memory import MemoryBackend
from nimburion.core.errors import DefinitionError, InvalidJob, Retry
from nimburion.core.lease import Delivery, Lease, Token
from nimburion.core.limits import LimitRule
from nimburion.core.settings import Settings
from nimburion.core.size_limits import SizeLimits
from nimburion.jobs.declaration.job import Job, job, require_declaration
from nimburion.jobs.declaration.registry import Handler, Registry
from nimburion.jobs.handling.attempt_record import AttemptRecord, WorkerServices
from nimburion.jobs.handling.context import Context
from nimburion.jobs.payloads.codec import UnreadablePayload, UnstorableResult
from nimburion.jobs.processor import Processor

if TYPE_CHECKING:
    from decimal import Decimal as Unseen

LIMITS = SizeLimits()


class SendEmail(Job, name="send_email", queue="mail", max_retries=3, retry_backoff=1.0):
    to: str
    subject: str
    body: str = ""

    async def process(self, ctx: Context, /) -> str:
        return f"{ctx.job_id}: {self.to}"


@job(queue="reports", timeout=60, concurrency=2)
def generate_report(year: int, *, draft: bool = False) -> str:
    """Write it."""
    return f"{year}{' draft' if draft else ''}"


@job
async def count(ctx: Context, first: int, /, second: int = 2) -> dict[str, int]:
    return {ctx.job_id: first + second}


@job
def untyped_context(ctx, word: str):  # type: ignore[no-untyped-def]
    return ctx.job_id + word


@job
def plain_ctx(ctx: str) -> str:
    return ctx


def context() -> Context:
    delivery = Delivery(Lease("j1", Token(1, bytes(16))), "n", "q", b"{}")
    return Context(AttemptRecord(delivery, "session"), WorkerServices(lambda: 0.0, lambda *_: None))


def handler_of(*jobs: Any) -> Handler:
    registry = Registry(Settings())
    registry.add(*jobs)
    return registry.handlers[-1]


def outcome_of(job: Any, instance: Any) -> Any:
    """Encode, decode and run one, as a worker does."""
    handler = handler_of(job)
    arguments = handler.decode(job.__job__.encode(instance, LIMITS))
    result = handler.call(arguments, context())
    return asyncio.run(result) if handler.is_async else result


# Classes


def test_a_class_says_name_queue_and_policy() -> None:
    declared = SendEmail.__job__
    assert (declared.name, declared.queue) == ("send_email", "mail")
    assert declared.policy.max_retries == 3


def test_a_job_is_a_dataclass_with_keywords() -> None:
    made = SendEmail(to="a", subject="b")
    assert made == SendEmail(to="a", subject="b", body="")
    assert repr(made).endswith("SendEmail(to='a', subject='b', body='')")
    with pytest.raises(TypeError):
        SendEmail("a", "b")  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        SendEmail(to="a")  # type: ignore[call-arg]


def test_a_class_runs_with_the_arguments_it_was_enqueued_with() -> None:
    assert outcome_of(SendEmail, SendEmail(to="a", subject="b")) == "j1: a"


def test_the_name_defaults_to_the_class_in_snake_case() -> None:
    class HTTPCallToV2Api(Job):
        pass

    assert HTTPCallToV2Api.__job__.name == "http_call_to_v2_api"


def test_all_but_the_name_is_inherited_and_can_be_overridden() -> None:
    class Mail(Job, queue="mail", max_retries=9, timeout=5):
        to: str

    class Newsletter(Mail, max_retries=1):
        issue: int

    declared = Newsletter.__job__
    assert (declared.name, declared.queue) == ("newsletter", "mail")
    assert (declared.policy.max_retries, declared.policy.timeout) == (1, 5.0)
    assert declared.codec.fields == ("to", "issue")


def test_computed_and_foreign_attributes_do_not_travel() -> None:
    class Computed(Job):
        word: str
        length: int = dataclasses.field(init=False, default=0)

        def __post_init__(self) -> None:
            self.length = len(self.word)

        def process(self, ctx: Context, /) -> int:
            return self.length

    made = Computed(word="four")
    made.note = "not a field"  # type: ignore[attr-defined]
    assert Computed.__job__.encode(made, LIMITS) == b'{"word":"four"}'
    assert outcome_of(Computed, made) == 4


def test_post_init_checks_on_both_sides() -> None:
    class Positive(Job):
        number: int

        def __post_init__(self) -> None:
            if self.number < 0:
                raise ValueError("number must not be negative")

        def process(self, ctx: Context, /) -> None: ...

    with pytest.raises(ValueError, match="must not be negative"):
        Positive(number=-1)
    with pytest.raises(UnreadablePayload, match="job 'positive': number must not be negative"):
        handler_of(Positive).decode(b'{"number":-1}')


def test_a_missing_argument_shows_at_the_worker_as_an_unreadable_payload() -> None:
    with pytest.raises(UnreadablePayload, match="missing required field `to`"):
        handler_of(SendEmail).decode(b'{"subject":"b"}')


# Functions


def test_a_job_function_can_still_be_called() -> None:
    assert generate_report(2026, draft=True) == "2026 draft"
    assert generate_report.__name__ == "generate_report"
    assert generate_report.__doc__ == "Write it."


def test_a_job_of_a_function_shows_and_compares_by_its_arguments() -> None:
    made = generate_report.job(2026)
    assert repr(made) == "generate_report(year=2026, draft=False)"
    assert made == generate_report.job(year=2026, draft=False)
    assert made != generate_report.job(2027)


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "result"),
    [
        (generate_report, (2026,), {"draft": True}, "2026 draft"),
        (generate_report, (), {"year": 1}, "1"),
        (count, (1,), {}, {"j1": 3}),
        (count, (1, 5), {}, {"j1": 6}),
        (untyped_context, ("x",), {}, "j1x"),
        (plain_ctx, ("value",), {}, "value"),
    ],
)
def test_a_function_runs_with_the_arguments_it_was_enqueued_with(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> None:
    assert outcome_of(function, function.job(*args, **kwargs)) == result


@pytest.mark.parametrize(("args", "kwargs"), [((), {}), ((1, 2), {}), ((1,), {"other": 1})])
def test_arguments_bind_as_for_a_call(args: Any, kwargs: Any) -> None:
    with pytest.raises(TypeError):
        generate_report.job(*args, **kwargs)


def test_a_mutable_default_is_not_shared_between_jobs() -> None:
    @job
    def tagged(tags: list[str] = ["a"]) -> None: ...  # noqa: B006

    first: Any = tagged.job()
    first.tags.append("b")
    assert tagged.job() != first


def test_a_function_is_a_job_with_its_policy() -> None:
    handler = handler_of(generate_report)
    assert (handler.name, handler.queue, handler.is_async) == ("generate_report", "reports", False)
    assert (handler.policy.timeout, handler.policy.concurrency) == (60.0, 2)


# What cannot be declared


def declare_bad_name() -> None:
    class Bad(Job, name="a name"):
        pass


def declare_bad_queue() -> None:
    job(queue="")(context)


def declare_bad_policy() -> None:
    class Bad(Job, timeout=-1):
        pass


def declare_own_constructor() -> None:
    class Bad(Job):
        def __init__(self) -> None: ...


def declare_field_named_process() -> None:
    class Bad(Job):
        process: str  # type: ignore[assignment]


def declare_mutable_default() -> None:
    class Bad(Job):
        tags: list[str] = []  # noqa: RUF012


def decorate_a_class() -> None:
    job(dict)  # type: ignore[call-overload,unused-ignore]


def decorate_a_job_class() -> None:
    job(SendEmail)  # type: ignore[call-overload,unused-ignore]


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (declare_bad_name, "the name of a job must be 1-128 characters"),
        (declare_bad_queue, "queue must be 1-128 characters"),
        (declare_bad_policy, "job 'bad': timeout must be"),
        (declare_own_constructor, "validate in __post_init__"),
        (declare_field_named_process, "a field cannot be named 'process'"),
        (declare_mutable_default, "default_factory"),
        (decorate_a_class, "@job decorates functions"),
        (decorate_a_job_class, "is a job already; write `processor.register(SendEmail)`"),
    ],
)
def test_a_wrong_declaration_is_refused_where_it_stands(declare: Any, message: str) -> None:
    with pytest.raises(DefinitionError) as refused:
        declare()
    assert message in str(refused.value)


def test_an_unknown_option_is_refused_and_the_nearest_is_named() -> None:
    message = "there is no option 'max_retrys'; did you mean 'max_retries'?"
    with pytest.raises(DefinitionError, match=re.escape(f"job 'context': {message}")):
        job(max_retrys=3)(context)  # type: ignore[call-overload]
    with pytest.raises(DefinitionError, match=re.escape(f"job 'one': {message}")):
        type("One", (Job,), {}, max_retrys=3)
    processor = Processor(MemoryBackend())
    with pytest.raises(DefinitionError, match=re.escape(f"job 'raw': {message}")):
        processor.register("raw", lambda _ctx, _data: None, max_retrys=3)  # type: ignore[call-overload]
    with pytest.raises(DefinitionError, match="timeout: declare the options of a typed job"):
        processor.register(SendEmail, timeout=3)  # type: ignore[call-overload]


def test_a_process_that_does_not_take_the_context_is_refused() -> None:
    async def process(self: object) -> None: ...

    with pytest.raises(DefinitionError, match=r"job 'one': process\(self: .*write `async def"):
        type("One", (Job,), {"process": process})
    with pytest.raises(DefinitionError, match="job 'two': process"):
        type("Two", (Job,), {"process": staticmethod(lambda: None)})
    for fits in (
        lambda self, ctx: None,
        lambda *_: None,
        lambda self, ctx, more=1: None,
        staticmethod(lambda ctx: None),
        classmethod(lambda cls, ctx: None),
    ):
        type("Fits", (Job,), {"process": fits})


@job
def star(*args: int) -> None: ...


@job
def bare(value) -> None: ...  # type: ignore[no-untyped-def]


@job
def unseen(value: Unseen) -> None: ...


@job
def yielding(value: int) -> Any:
    yield value


@job
def bad_result() -> complex:
    return 1j


class Silent(Job):
    value: int


class WithInitVar(Job):
    value: dataclasses.InitVar[int]

    def process(self, ctx: Context, /) -> None: ...


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        (star, "parameter 'args': name each argument"),
        (bare, "parameter 'value': annotate it"),
        (unseen, "not only under TYPE_CHECKING"),
        (yielding, "is a generator"),
        (bad_result, "return type"),
        (Silent, "Silent has no process method"),
        (WithInitVar, "InitVar"),
        (outcome_of, "pass Job classes and @job functions"),
        (SendEmail(to="a", subject="b"), "pass Job classes and @job functions"),
    ],
)
def test_what_cannot_run_is_refused_at_registration(declared: Any, message: str) -> None:
    with pytest.raises(DefinitionError) as refused:
        Registry(Settings()).add(declared)
    assert message in str(refused.value)


def test_an_unkept_result_may_be_of_any_type() -> None:
    @job(result=False)
    def free() -> Any:
        return 1j

    assert handler_of(free).encode_result(1j) is None


def test_a_context_named_only_for_type_checkers_is_still_the_context() -> None:
    def process(context: Context, value: int) -> int:
        return value

    process.__annotations__["context"] = "unknown.module.Context"
    assert job(process).signature.takes_context


def test_a_method_is_no_job() -> None:
    class Service:
        @job
        def work(self, value: int) -> None: ...

    with pytest.raises(DefinitionError, match="no instance to run on"):
        _ = Service().work


# The registry


def test_the_same_job_again_changes_nothing_and_another_under_its_name_is_refused() -> None:
    @job(name="send_email")
    def impostor() -> None: ...

    registry = Registry(Settings())
    registry.add(SendEmail, SendEmail)
    kept = registry.get("send_email")
    registry.add(SendEmail)
    assert registry.get("send_email") is kept
    with pytest.raises(DefinitionError, match=r"'send_email' is taken by .*SendEmail; give .*"):
        registry.add(impostor)
    assert registry.get("send_email") is kept


def test_the_registry_lists_names_queues_and_limits() -> None:
    registry = Registry(Settings(max_retries=8))
    registry.add(SendEmail, generate_report)
    registry.add_raw("hook", lambda _, data: data, queue="hooks", concurrency=1)
    assert registry.names == ("generate_report", "hook", "send_email")
    assert registry.queues == ("hooks", "mail", "reports")
    assert registry.limits == {
        "generate_report": {"job:generate_report": LimitRule(2)},
        "hook": {"job:hook": LimitRule(1)},
    }
    assert registry.get("unknown") is None
    hook = registry.get("hook")
    assert hook is not None
    assert hook.policy.max_retries == 8


def test_a_raw_handler_gets_the_bytes_as_they_are() -> None:
    async def hook(ctx: Context, data: bytes) -> bytes:
        return data

    registry = Registry(Settings())
    registry.add_raw("hook", hook)
    registry.add_raw("hook", hook)
    [handler] = registry.handlers
    assert handler.is_async
    assert handler.decode(b"\xff not JSON") == b"\xff not JSON"
    assert asyncio.run(handler.call(b"x", context())) == b"x"


def test_an_object_with_an_async_call_is_async() -> None:
    class Hook:
        async def __call__(self, ctx: Context, data: bytes) -> None: ...

    registry = Registry(Settings())
    registry.add_raw("hook", Hook())
    assert registry.handlers[0].is_async


# Results


def test_results_are_kept_as_json_of_the_declared_type() -> None:
    handler = handler_of(count)
    assert handler.encode_result(None) is None
    assert handler.encode_result({"a": 1}) == b'{"a":1}'
    assert handler.decode_result(b'{"a":1}') == {"a": 1}
    assert handler.decode_result(b'["of an older version"]') == ["of an older version"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (object(), "`object` cannot be encoded as JSON"),
        ("x" * 300_000, "300002 bytes, over the limit of 262144"),
        ("\ud800", "lone surrogate"),
        (b"\xff".decode("utf-8", "surrogateescape"), "lone surrogate"),
    ],
)
def test_a_result_that_cannot_be_kept_says_why(value: Any, message: str) -> None:
    with pytest.raises(UnstorableResult, match=message):
        handler_of(generate_report).encode_result(value)


# What is no job


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (SendEmail, r"pass SendEmail(…), with its arguments"),
        (generate_report, r"pass generate_report.job(…)"),
        (context, "decorate the function with @job"),
        ({"to": "a"}, "use enqueue_raw"),
        (Job(), "pass an instance of a Job class"),
        (None, "None is not a job"),
    ],
)
def test_what_is_no_job_is_refused_with_a_hint(thing: Any, message: str) -> None:
    with pytest.raises(InvalidJob) as refused:
        require_declaration(thing)
    assert message in str(refused.value)


def test_wrong_arguments_of_a_class_say_what_to_write() -> None:
    class SendText(Job):
        to: str
        words: str = "hello"

        def process(self, ctx: Context) -> None: ...

    class Empty(Job):
        def process(self, ctx: Context) -> None: ...

    line = "await processor.enqueue(SendText(…), priority=…)"
    wrong: list[tuple[type[Any], tuple[object, ...], dict[str, object], str]] = [
        (SendText, ("ann",), {}, "fields are passed by name; write SendText(to=…, words=…)"),
        (SendText, (), {"too": "ann"}, "there is no field 'too'; did you mean 'to'?"),
        (SendText, (), {"x": "ann"}, "there is no field 'x'; known: to, words"),
        (SendText, (), {}, "a value is missing; write SendText(to=…)"),
        (Empty, (), {"to": 1}, "there is no field 'to'; the class declares none"),
        (
            SendText,
            (),
            {"to": "ann", "priority": 7},
            f"there is no field 'priority'; it is an option of `enqueue`, so write `{line}`",
        ),
    ]
    for kind, args, fields, message in wrong:
        with pytest.raises(TypeError) as caught:
            kind(*args, **fields)
        assert str(caught.value) == f"job {kind.__job__.name!r}: {message}"


def test_a_type_error_of_post_init_is_raised_unchanged() -> None:
    class Strict(Job):
        to: str

        def __post_init__(self) -> None:
            raise TypeError("own")

        def process(self, ctx: Context) -> None: ...

    with pytest.raises(TypeError, match=r"^own$"):
        Strict(to="ann")


@pytest.mark.parametrize(
    ("body", "option"),
    [
        ({"max_retries": 1}, "max_retries"),
        ({"queue": "mail"}, "queue"),
        ({"timeout": 30}, "timeout"),
        ({"on_dead": lambda _self, _ctx, _error: None}, "on_dead"),
        ({"__annotations__": {"max_retries": int}, "max_retries": 5}, "max_retries"),
    ],
)
def test_an_option_in_the_body_of_a_class_is_refused(body: dict[str, Any], option: str) -> None:
    with pytest.raises(DefinitionError, match=rf"write `class Mail\(Job, {option}=…\)`"):
        type("Mail", (Job,), {"__module__": __name__, **body})


def test_arguments_and_methods_may_have_the_names_of_options() -> None:
    class Export(Job):
        timeout: int = 5
        queue: str

        def result(self) -> str:
            return self.queue

        def process(self, ctx: Context) -> str:
            return self.result()

    assert Export(queue="a").timeout == 5


def test_tasks_of_celery_that_retry_learn_what_to_raise() -> None:
    for owner in (SendEmail, SendEmail(to="a", subject="b"), generate_report):
        with pytest.raises(AttributeError, match=r"write `raise Retry\(after=…\)`"):
            getattr(owner, "retry")  # noqa: B009
    wrong: Any = 60
    with pytest.raises(TypeError, match=r"write `Retry\(after=60\)`"):
        Retry(wrong)
