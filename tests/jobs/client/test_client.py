"""The way in and the questions, on the memory backend with a clock that stands still."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from nimburion.actions import Operator
from nimburion.backends.memory import MemoryBackend
from nimburion.core.audit import list_audit
from nimburion.core.errors import (
    DuplicateJob,
    InvalidJob,
    JobConflict,
    JobNotCompleted,
    JobNotFound,
    NotOpen,
    NotSupported,
    PermanentError,
    ResultNotKept,
    UnusableConnection,
    WaitTimeout,
)
from nimburion.core.events import Event, JobEnqueued
from nimburion.core.job import JobRecord, State
from nimburion.core.maintenance import Cancellation
from nimburion.core.settings import Settings
from nimburion.core.size_limits import SizeLimits
from nimburion.jobs import Context, Job, Priority, Processor, Unique, job
from nimburion.jobs.client.client import Client
from nimburion.jobs.client.registered_job import RegisteredJob
from nimburion.jobs.handling.middleware import Enqueueing, Next
from nimburion.testing import FakeClock
from tests.overridden import OverridableBackend
from tests.waiting import wait_until

NAIVE = datetime(2026, 1, 2, 12)  # noqa: DTZ001


class SendEmail(Job, name="send_email", queue="mail", priority=6):
    to: str


@job
async def double(number: int) -> int:
    return 2 * number


@job
async def fail(message: str) -> None:
    raise PermanentError(message)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def processor(clock: FakeClock) -> AsyncIterator[Processor]:
    made = Processor(MemoryBackend(clock=clock), clock=clock)
    made.register(double, fail)
    async with made:
        yield made


# Enqueueing


async def test_a_job_is_stored_as_its_declaration_says(processor: Processor) -> None:
    job_id = await processor.enqueue(SendEmail(to="a"))
    record = await processor.backend.reads.get_job(job_id)
    assert (record.name, record.queue, record.priority) == ("send_email", "mail", 6)
    assert record.payload == b'{"to":"a"}'
    assert record.state is State.PENDING


async def test_every_option_travels(processor: Processor, clock: FakeClock) -> None:
    job_id = await processor.enqueue(
        SendEmail(to="a"),
        id="own",
        queue="slow",
        priority=Priority.HIGH,
        after=timedelta(minutes=1),
        unique_key="k",
        unique=Unique(for_=60),
        headers={"a": "b"},
        tenant="acme",
        correlation_id="c1",
        max_retries=1,
        timeout=timedelta(seconds=30),
    )
    record = await processor.backend.reads.get_job(job_id)
    assert (record.id, record.queue, record.priority) == ("own", "slow", 7)
    assert record.due == clock.now() + 60
    options = record.options
    assert (options.tenant, options.correlation_id, options.headers) == ("acme", "c1", {"a": "b"})
    assert (options.unique_key, options.unique_for) == ("k", 60.0)
    assert (options.max_retries, options.timeout) == (1, 30.0)


async def test_the_shorthands_of_the_guide(processor: Processor, clock: FakeClock) -> None:
    noon = datetime(2030, 1, 2, 12, tzinfo=UTC)
    assert await processor.enqueue_with_id(double.job(1), "own") == "own"
    assert await processor.enqueue_with_id(double.job(1), id="own") == "own"
    made = await processor.enqueue_with_id(double.job(1))
    low = await processor.enqueue_with_priority(double.job(1), Priority.LOW)
    at = await processor.enqueue_at(double.job(1), noon)
    after = await processor.enqueue_after(double.job(1), 30, tenant="acme")
    get = processor.backend.reads.get_job
    assert made != "own"
    assert (await get(low)).priority == 3
    assert (await get(at)).due == noon.timestamp()
    assert (await get(after)).due == clock.now() + 30
    assert (await get(after)).options.tenant == "acme"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"id": "a b"}, "job id must be 1-128 characters"),
        ({"id": 5}, "job id must be 1-128 characters"),
        ({"id": ""}, "job id must be 1-128 characters"),
        ({"queue": "a/b"}, "queue must be 1-128 characters"),
        ({"priority": 10}, "priority must be from 0 to 9 (higher first), not 10"),
        ({"priority": -1}, "priority must be a whole number"),
        ({"priority": True}, "priority must be a whole number"),
        ({"at": NAIVE}, "at must have a time zone"),
        ({"at": 1_000.0}, "at must be a datetime with a time zone"),
        ({"after": -1}, "after must be 0 seconds or more, not -1"),
        ({"after": timedelta(seconds=-1)}, "after must be 0 seconds or more, not "),
        ({"after": "5"}, "after must be a number of seconds, a timedelta or a text like '1h30m'"),
        ({"after": float("inf")}, "after must be a number of seconds, a timedelta"),
        ({"at": datetime.now(UTC), "after": 1}, "pass `at` or `after`, not both"),
        ({"unique_key": "x" * 513}, "unique_key must have 1-512 characters, not 513"),
        ({"unique_key": "a\ud800"}, "unique_key must be valid Unicode; character 2 is U+D800, "),
        ({"unique_key": b"k"}, "unique_key must be a text, not b'k'"),
        ({"unique": Unique(for_=5)}, "unique needs a unique_key"),
        ({"unique_key": "k", "unique": Unique(for_=0)}, "for_ must be more than 0"),
        ({"throttle": 5}, "there is no option 'throttle'; write `unique=Unique(throttle=5)`"),
        (
            {"unique": Unique(on_duplicate="drop")},  # type: ignore[arg-type]
            "on_duplicate must be one of 'reject', 'existing', 'replace'",
        ),
        ({"headers": {"a": 1}}, "headers must be a dict of str to str"),
        ({"headers": {"a": "\ud800"}}, "headers must be a dict of str to str in UTF-8"),
        ({"headers": {"a": "x" * 70_000}}, "headers are 70001 bytes, over the limit of 65536"),
        ({"tenant": "a\nb"}, "tenant must not contain control characters; character 2 is U+000A"),
        ({"tenant": "\x9b"}, "tenant must not contain control characters; character 1 is U+009B"),
        ({"correlation_id": ""}, "correlation_id must have 1-512 characters, not 0"),
        ({"max_retries": -1}, "max_retries must be a whole number, 0 or more"),
        ({"timeout": 0}, "timeout must be more than 0 seconds"),
    ],
)
async def test_an_option_that_cannot_be_is_refused_and_nothing_stored(
    processor: Processor, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidJob) as refused:
        await processor.enqueue(double.job(1), **options)
    assert message in str(refused.value)
    assert await processor.pending_count() == 0


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("priorty", "there is no option 'priorty'; did you mean 'priority'?"),
        ("limits", "there is no option 'limits' here; it is an option of the job"),
        ("x", "there is no option 'x'; known: after, at, connection, "),
    ],
)
async def test_an_unknown_option_is_refused_and_the_nearest_is_named(
    processor: Processor, option: str, message: str
) -> None:
    calls: list[Any] = [
        partial(processor.enqueue, double.job(1)),
        partial(processor.enqueue_many, [double.job(1)]),
        partial(processor.enqueue_raw, "double", b"{}"),
        partial(processor.enqueue_after, double.job(1), 1),
    ]
    for call in calls:
        with pytest.raises(InvalidJob) as refused:
            await call(**{option: 7})
        assert str(refused.value).startswith(message)
    with pytest.raises(InvalidJob, match="no option 'id'"):
        await processor.enqueue_many([double.job(1)], id="x")  # type: ignore[call-overload]
    assert await processor.pending_count() == 0


async def test_a_due_time_at_the_end_of_the_calendar_can_be_read(processor: Processor) -> None:
    """As seconds it is rounded to the year 10000, which no datetime holds."""
    last = datetime.max.replace(tzinfo=UTC)
    job_id = await processor.enqueue_at(double.job(1), last)
    assert (await processor.get_status(job_id)).due == last


async def test_none_for_a_time_is_not_now(processor: Processor) -> None:
    with pytest.raises(InvalidJob, match="not None"):
        await processor.enqueue_at(double.job(1), None)  # type: ignore[arg-type]
    with pytest.raises(InvalidJob, match="not None"):
        await processor.enqueue_after(double.job(1), None)  # type: ignore[arg-type]
    assert await processor.pending_count() == 0


async def test_a_wrong_argument_names_job_field_and_types(processor: Processor) -> None:
    with pytest.raises(InvalidJob, match=r"'send_email', field 'to': expected `str`, got `int`"):
        await processor.enqueue(SendEmail(to=5))  # type: ignore[arg-type]


@pytest.mark.parametrize("place", [0, 1])
async def test_a_wrong_argument_of_many_names_its_place(processor: Processor, place: int) -> None:
    jobs = [SendEmail(to="a@example.com") for _ in range(place)]
    with pytest.raises(InvalidJob, match=rf"jobs\[{place}\]: job 'send_email', field 'to'"):
        await processor.enqueue_many([*jobs, SendEmail(to=5)])  # type: ignore[arg-type]
    assert sum((await processor.backend.reads.count_jobs()).values()) == 0


async def test_the_same_id_with_another_body_is_a_conflict(processor: Processor) -> None:
    await processor.enqueue(double.job(1), id="own")
    with pytest.raises(JobConflict) as refused:
        await processor.enqueue(double.job(2), id="own")
    assert refused.value.job_id == "own"


async def test_a_held_unique_key_is_refused_or_answers_its_holder(processor: Processor) -> None:
    first = await processor.enqueue(double.job(1), unique_key="k")
    with pytest.raises(DuplicateJob) as refused:
        await processor.enqueue(double.job(2), unique_key="k")
    assert refused.value.existing_id == first
    again = await processor.enqueue(
        double.job(2), unique_key="k", unique=Unique(on_duplicate="existing")
    )
    assert again == first


async def test_many_are_stored_in_order_with_the_same_options(processor: Processor) -> None:
    ids = await processor.enqueue_many(
        (double.job(number) for number in range(3)), queue="bulk", priority=2
    )
    records = [await processor.backend.reads.get_job(one) for one in ids]
    assert [record.payload for record in records] == [b'{"number":%d}' % n for n in range(3)]
    assert {(record.queue, record.priority) for record in records} == {("bulk", 2)}
    assert ids == sorted(ids)
    assert await processor.enqueue_many([]) == []


async def test_one_bad_job_refuses_the_batch_and_is_named(processor: Processor) -> None:
    bad: Any = [double.job(1), SendEmail(to=b"x"), double.job(3)]  # type: ignore[arg-type]
    with pytest.raises(InvalidJob, match=r"jobs\[1\]: job 'send_email', field 'to'"):
        await processor.enqueue_many(bad)
    assert await processor.pending_count() == 0


async def test_a_batch_over_the_limit_is_refused() -> None:
    small = Processor(MemoryBackend(), Settings(sizes=SizeLimits(batch=2)))
    async with small:
        assert len(await small.enqueue_many([double.job(1)] * 2)) == 2
        with pytest.raises(InvalidJob, match="3 jobs in one call, over the limit of 2"):
            await small.enqueue_many([double.job(1)] * 3)
        assert await small.pending_count() == 2


async def test_a_raw_job_takes_bytes_as_they_are_and_a_dict_as_json(processor: Processor) -> None:
    get = processor.backend.reads.get_job
    raw = await processor.enqueue_raw("hook", b"\xff\0", id="own", headers={"a": "b"})
    made = await processor.enqueue_raw("hook", {"at": datetime(2026, 1, 2, tzinfo=UTC)}, queue="q")
    assert (raw, (await get(raw)).payload) == ("own", b"\xff\0")
    assert (await get(raw)).queue == "default"
    assert (await get(made)).payload == b'{"at":"2026-01-02T00:00:00Z"}'
    assert (await get(made)).queue == "q"


@pytest.mark.parametrize(
    ("name", "payload", "message"),
    [
        ("a b", b"", "job name must be 1-128 characters"),
        ("hook", "text", "the payload must be bytes or a dict"),
        ("hook", [1], "the payload must be bytes or a dict"),
        ("hook", {"a": {"b": NAIVE}}, "job 'hook', field 'a.b': a datetime must have a time zone"),
        ("hook", {"a": float("nan")}, "job 'hook', field 'a': a number must be finite"),
        ("hook", {"a": object()}, "`object` cannot be encoded as JSON"),
        ("hook", b"x" * (1024 * 1024 + 1), "1048577 bytes, over the limit of 1048576"),
    ],
)
async def test_a_raw_job_that_cannot_be_is_refused(
    processor: Processor, name: str, payload: bytes, message: str
) -> None:
    with pytest.raises(InvalidJob) as refused:
        await processor.enqueue_raw(name, payload)
    assert message in str(refused.value)


async def test_enqueue_in_a_callers_transaction_needs_a_backend_with_transactions(
    processor: Processor,
) -> None:
    with (
        closing(sqlite3.connect(":memory:")) as connection,
        pytest.raises(NotSupported, match="without `connection`"),
    ):
        await processor.enqueue(double.job(1), connection=connection)
    with pytest.raises(UnusableConnection, match="no connection that nimburion knows"):
        await processor.enqueue(double.job(1), connection=object())


async def test_before_open_and_after_close_it_says_how() -> None:
    processor = Processor(MemoryBackend())
    with pytest.raises(NotOpen, match="async with processor"):
        await processor.enqueue(double.job(1))
    async with processor:
        job_id = await processor.enqueue(double.job(1))
    with pytest.raises(NotOpen, match=r"processor\.sync.*; it is <.* on memory .*, closed>"):
        await processor.get_status(job_id)


async def test_enqueues_are_events_for_subscribers(processor: Processor) -> None:
    seen: list[Event] = []
    processor.events.subscribe(seen.append)
    await processor.enqueue(double.job(1), id="own")
    await processor.enqueue(double.job(1), id="own")
    await processor.enqueue_many([SendEmail(to="a"), SendEmail(to="b")])
    enqueued = [event for event in seen if isinstance(event, JobEnqueued)]
    assert [(event.name, event.created) for event in enqueued] == [
        ("double", True),
        ("double", False),
        ("send_email", True),
        ("send_email", True),
    ]


# What a running job hands on


async def test_a_job_enqueued_inside_a_handler_inherits_tenant_and_correlation_id(
    processor: Processor,
) -> None:
    enqueued: list[str] = []

    @job
    async def parent() -> None:
        enqueued.append(await processor.enqueue(double.job(1)))
        enqueued.append(await processor.enqueue(double.job(2), tenant="other"))

    @job
    async def through_context(ctx: Context) -> None:
        enqueued.append(await ctx.enqueue(double.job(3)))

    @job
    def in_a_thread() -> None:
        enqueued.append(processor.sync.enqueue(double.job(4)))

    processor.register(parent, through_context, in_a_thread)
    parents = [parent.job(), through_context.job(), in_a_thread.job()]
    await processor.enqueue_many(parents, tenant="acme", correlation_id="c1")
    await processor.drain()
    options = [(await processor.backend.reads.get_job(one)).options for one in enqueued]
    assert [(one.tenant, one.correlation_id) for one in options] == [
        ("acme", "c1"),
        ("other", "c1"),
        ("acme", "c1"),
        ("acme", "c1"),
    ]
    outside = await processor.backend.reads.get_job(await processor.enqueue(double.job(5)))
    assert (outside.options.tenant, outside.options.correlation_id) == (None, None)


# Asking


async def test_a_status_shows_what_became_of_a_job(processor: Processor, clock: FakeClock) -> None:
    job_id = await processor.enqueue(double.job(4), tenant="acme", headers={"a": "b"})
    waiting = await processor.get_status(job_id)
    assert (waiting.state, waiting.attempt, waiting.result) == (State.PENDING, 1, None)
    assert waiting.created_at == datetime.fromtimestamp(clock.now(), UTC)
    assert (waiting.started_at, waiting.finished_at, waiting.error) == (None, None, None)
    await processor.process_one()
    done = await processor.get_status(job_id)
    assert (done.state, done.result, done.finished) == ("completed", 8, True)
    assert done.finished_at == datetime.fromtimestamp(clock.now(), UTC)
    assert (done.tenant, done.headers, done.queue) == ("acme", {"a": "b"}, "default")


async def test_a_failed_job_shows_reason_error_and_history(processor: Processor) -> None:
    job_id = await processor.enqueue(fail.job("no such address"))
    await processor.process_one()
    status = await processor.get_status(job_id)
    assert (status.state, status.reason, status.failures) == ("failed", "permanent", 1)
    assert status.error is not None
    assert status.error.message == "no such address"
    assert status.history == [status.error]
    with pytest.raises(JobNotCompleted, match="permanent: PermanentError: no such address"):
        await processor.wait(job_id)


async def test_an_unknown_id_is_no_state(processor: Processor) -> None:
    for ask in (processor.get_status, processor.wait, processor.cancel):
        with pytest.raises(JobNotFound):
            await ask("unknown")
        with pytest.raises(InvalidJob, match="job id must be"):
            await ask("not an id")


async def test_wait_reads_again_until_the_job_has_ended(
    processor: Processor, clock: FakeClock
) -> None:
    job_id = await processor.enqueue(double.job(4))
    waiting = asyncio.create_task(processor.wait(job_id))
    await wait_until_sleeping(clock, 1)
    await processor.process_one()
    clock.advance(1)
    assert await waiting == 8


async def test_wait_gives_up_after_its_timeout_and_the_job_goes_on(
    processor: Processor, clock: FakeClock
) -> None:
    job_id = await processor.enqueue(double.job(4))
    waiting = asyncio.create_task(processor.wait(job_id, timeout=timedelta(seconds=3)))
    while not waiting.done():
        await wait_until_sleeping(clock, 1, waiting)
        clock.advance(0.5)
        await asyncio.sleep(0)
    with pytest.raises(WaitTimeout, match="is pending after 3 s"):
        await waiting
    assert (await processor.get_status(job_id)).state is State.PENDING


async def test_wait_gives_up_in_time_when_the_backend_does_not_answer() -> None:
    class Hole(OverridableBackend):
        async def get_job(self, job_id: str) -> JobRecord:
            await asyncio.Event().wait()
            raise AssertionError

    async with Processor(Hole()) as processor:
        job_id = await processor.enqueue_raw("n", b"{}")
        async with asyncio.timeout(10):
            with pytest.raises(WaitTimeout, match=r"did not answer within the 0\.05 s"):
                await processor.wait(job_id, timeout=0.05)


async def wait_until_sleeping(
    clock: FakeClock, count: int, unless: asyncio.Task[Any] | None = None
) -> None:
    await wait_until(
        lambda: clock.sleepers >= count or (unless is not None and unless.done()), "it sleeps"
    )


@pytest.mark.parametrize("execution", ["async", "thread", "set_result"])
async def test_wait_tells_a_result_that_could_not_be_stored_from_none(
    execution: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Processor("memory://") as processor:

        @processor.job
        async def on_loop(size: int) -> str | None:
            return "x" * size or None

        @processor.job
        def in_thread(size: int) -> str | None:
            return "x" * size or None

        @processor.job
        def with_set_result(ctx: Context, size: int) -> None:
            ctx.set_result("x" * size or None)

        made: dict[str, RegisteredJob[..., ..., Any, Any]]
        made = {"async": on_loop, "thread": in_thread, "set_result": with_set_result}
        export = made[execution]
        nothing, large = await export.enqueue(0), await export.enqueue(300_000)
        await processor.drain()
        assert await processor.wait(nothing) is None
        with pytest.raises(ResultNotKept, match=r"is completed, .* over the limit of") as raised:
            await processor.wait(large)
        status = await processor.get_status(large)
        assert (status.state, status.result) == (State.COMPLETED, None)
        assert status.result_error == raised.value.reason
        assert (await processor.get_status(nothing)).result_error is None
    assert "is not stored" in caplog.text


async def test_cancel_answers_what_it_could_do(processor: Processor) -> None:
    job_id = await processor.enqueue(double.job(4))
    assert await processor.cancel(job_id) is Cancellation.CANCELLED
    assert await processor.cancel(job_id) == "finished"
    with pytest.raises(JobNotCompleted) as ended:
        await processor.wait(job_id)
    assert ended.value.state == "cancelled"


async def test_run_now_answers_whether_the_job_waited(processor: Processor) -> None:
    job_id = await processor.enqueue_after(double.job(4), 60)
    assert await processor.run_now(job_id) is True
    assert await processor.run_now(job_id) is False
    with pytest.raises(JobNotFound):
        await processor.run_now("unknown")


async def test_what_a_program_cancels_or_makes_due_is_not_recorded(processor: Processor) -> None:
    processor.operator = Operator("ann", rights=frozenset())  # it does not act here
    job_id = await processor.enqueue_after(double.job(4), 60)
    await processor.run_now(job_id)
    await processor.cancel(job_id)
    assert (await list_audit(processor.backend)).records == []


async def test_counts(processor: Processor) -> None:
    await processor.enqueue_many([double.job(1)] * 2, queue="a")
    await processor.enqueue_after(double.job(1), 60, queue="b")
    assert await processor.queue_size() == 2
    assert await processor.queue_size("b") == 0
    assert await processor.pending_count() == 3


# Enqueue middleware


async def test_enqueue_middleware_sees_and_changes_what_is_stored(processor: Processor) -> None:
    seen: list[object] = []

    async def stamp(enqueueing: Enqueueing, call_next: Next[Enqueueing]) -> str:
        enqueueing.add_headers(stamped="yes")
        enqueueing.queue = "stamped"
        answer: str = await call_next(enqueueing)
        seen.append((enqueueing.job, answer, (await processor.backend.reads.get_job(answer)).state))
        return answer

    processor.use_enqueue(stamp)
    made = double.job(1)
    job_id = await processor.enqueue(made, headers={"own": "1"})
    record = await processor.backend.reads.get_job(job_id)
    assert (record.queue, record.options.headers) == ("stamped", {"own": "1", "stamped": "yes"})
    assert seen == [(made, job_id, State.PENDING)]


async def test_a_batch_goes_through_middleware_one_by_one_and_is_stored_in_one_step(
    processor: Processor,
) -> None:
    calls: list[int] = []
    enqueue = processor.backend.producing.enqueue

    async def counted(jobs: Any, flows: Any = ()) -> Any:
        calls.append(len(jobs))
        return await enqueue(jobs, flows)

    processor.backend.producing.enqueue = counted  # type: ignore[method-assign]

    async def skip_odd(enqueueing: Enqueueing, call_next: Next[Enqueueing]) -> str:
        if enqueueing.payload in (b'{"number":1}', b'{"number":3}'):
            return "skipped"
        await asyncio.sleep(0)
        return str(await call_next(enqueueing))

    processor.use_enqueue(skip_odd)
    ids = await processor.enqueue_many([double.job(number) for number in range(4)])
    assert [one == "skipped" for one in ids] == [False, True, False, True]
    assert calls == [2]
    assert await processor.enqueue_many([double.job(1), double.job(3)]) == ["skipped"] * 2


async def test_a_middleware_that_raises_refuses_the_whole_call(processor: Processor) -> None:
    async def refuse_two(enqueueing: Enqueueing, call_next: Next[Enqueueing]) -> str:
        if enqueueing.payload == b'{"number":2}':
            raise PermissionError("not two")
        return str(await call_next(enqueueing))

    processor.use_enqueue(refuse_two)
    with pytest.raises(PermissionError, match="not two"):
        await processor.enqueue_many([double.job(1), double.job(2), double.job(3)])
    assert await processor.pending_count() == 0


async def test_what_middleware_made_of_a_job_is_checked_too(processor: Processor) -> None:
    async def spoil(enqueueing: Enqueueing, call_next: Next[Enqueueing]) -> str:
        enqueueing.queue = "not a name"
        return str(await call_next(enqueueing))

    processor.use_enqueue(spoil)
    with pytest.raises(InvalidJob, match="queue must be 1-128 characters"):
        await processor.enqueue(double.job(1))
    assert await processor.pending_count() == 0


@pytest.mark.parametrize("option", ["unique_key", "tenant", "correlation_id"])
@pytest.mark.parametrize("value", ["x" * 513, "a\x00b", "\ud800", "", 5], ids=ascii)
async def test_the_texts_that_middleware_set_are_checked_too(
    processor: Processor, option: str, value: object
) -> None:
    async def spoil(enqueueing: Enqueueing, call_next: Next[Enqueueing]) -> str:
        enqueueing.set(**{option: value})  # type: ignore[arg-type]
        return str(await call_next(enqueueing))

    processor.use_enqueue(spoil)
    with pytest.raises(InvalidJob, match=f"{option} must "):
        await processor.enqueue(double.job(1))
    assert await processor.pending_count() == 0


@pytest.mark.parametrize("text", ["Müller & Söhne, Zürich", '{"a": 1}', "🚂" * 512], ids=ascii)
async def test_keys_tenants_and_correlation_ids_are_any_text(
    processor: Processor, text: str
) -> None:
    job_id = await processor.enqueue(
        double.job(1), unique_key=text, tenant=text, correlation_id=text
    )
    status = await processor.get_status(job_id)
    assert (status.unique_key, status.tenant, status.correlation_id) == (text,) * 3
    with pytest.raises(DuplicateJob):
        await processor.enqueue(double.job(1), unique_key=text)


@pytest.mark.parametrize("after", [1e12, 1e300, timedelta.max])
async def test_a_delay_that_no_calendar_holds_is_refused_before_it_is_stored(
    after: float | timedelta,
) -> None:
    processor = Processor(MemoryBackend())
    async with processor:
        with pytest.raises(InvalidJob, match="after must be less than a century"):
            await processor.enqueue_raw("far", b"{}", after=after)
        assert await processor.pending_count() == 0


async def test_a_client_that_is_opened_anew_does_not_go_on_with_old_randomness() -> None:
    """After a fork it would stand in the ids of two processes."""
    drawn: list[int] = []

    def entropy(count: int) -> bytes:
        drawn.append(count)
        return bytes([len(drawn)]) * count

    client = Client(MemoryBackend(), entropy=entropy)
    ids = []
    for _ in range(2):
        async with client:
            ids += [await client.enqueue_raw("n", b"{}") for _ in range(2)]
    assert [one[-2:] for one in ids] == ["01", "01", "03", "03"]
