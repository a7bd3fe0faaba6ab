"""What `assert_enqueued` finds, and what it says when it finds nothing."""

from __future__ import annotations

import dataclasses
import uuid
from datetime import UTC, datetime
from unittest import mock

import pytest

from nimburion.backends.memory import MemoryBackend
from nimburion.core.errors import InvalidJob
from nimburion.core.job import NewJob, State
from nimburion.jobs import Job, Processor, job
from nimburion.testing import assert_enqueued, assert_not_enqueued
from nimburion.testing.plugin import MakeProcessor


class SendEmail(Job, name="send_email", queue="mails"):
    to: str
    copies: int = 1

    async def process(self, ctx: object) -> None: ...


@job(queue="reports")
def report(year: int, *, draft: bool = False) -> None: ...


HEAD = (
    "no job 'send_email' with to='ann', copies=1, queue='mails' was enqueued; "
    "newest first, there are:"
)


@pytest.fixture
def processor(nimburion_processor: MakeProcessor) -> Processor:
    return nimburion_processor(SendEmail, report)


async def test_a_name_a_class_a_function_and_a_job_are_found(processor: Processor) -> None:
    async with processor:
        email = await processor.enqueue(SendEmail(to="ann"))
        year = await processor.enqueue(report.job(2026, draft=True))
        for what in ("send_email", SendEmail, SendEmail(to="ann"), SendEmail(to="ann", copies=1)):
            assert (await assert_enqueued(processor, what)).id == email
        for given in ("report", report, report.job(2026, draft=True)):
            assert (await assert_enqueued(processor, given)).id == year


async def test_assert_enqueued_accepts_a_backend_too(processor: Processor) -> None:
    async with processor:
        await processor.enqueue(SendEmail(to="ann"))
        assert (await assert_enqueued(processor.backend, SendEmail)).queue == "mails"


async def test_the_newest_of_several_is_the_answer(processor: Processor) -> None:
    async with processor:
        for priority in (1, 2, 3):
            await processor.enqueue(SendEmail(to="ann"), priority=priority)
        assert (await assert_enqueued(processor, SendEmail)).priority == 3
        assert (await assert_enqueued(processor, SendEmail, priority=2)).priority == 2


async def test_a_job_beyond_the_first_page_is_found(processor: Processor) -> None:
    async with processor:
        await processor.enqueue(SendEmail(to="first"))
        await processor.enqueue_many([SendEmail(to=f"{n}") for n in range(250)])
        await assert_enqueued(processor, SendEmail(to="first"))


async def test_fields_are_of_the_record_its_options_or_the_arguments(
    processor: Processor,
) -> None:
    async with processor:
        await processor.enqueue(SendEmail(to="ann", copies=2), tenant="acme", priority=7, after=60)
        record = await assert_enqueued(
            processor, "send_email", queue="mails", priority=7, tenant="acme", to="ann", copies=2
        )
        assert (record.state, record.due - record.created_at) == (State.SCHEDULED, 60.0)


@pytest.mark.parametrize(
    "fields",
    [{"queue": "default"}, {"tenant": "other"}, {"to": "bob"}],
    ids=lambda fields: next(iter(fields)),
)
async def test_every_field_must_hold(processor: Processor, fields: dict[str, object]) -> None:
    async with processor:
        await processor.enqueue(SendEmail(to="ann"), tenant="acme")
        with pytest.raises(AssertionError, match=next(iter(fields))):
            await assert_enqueued(processor, SendEmail, **fields)


async def test_the_arguments_of_a_job_must_be_the_same(processor: Processor) -> None:
    async with processor:
        await processor.enqueue(SendEmail(to="ann", copies=2))
        with pytest.raises(AssertionError):
            await assert_enqueued(processor, SendEmail(to="ann"))


async def test_the_message_lists_what_was_enqueued_instead(processor: Processor) -> None:
    async with processor:
        await processor.enqueue(report.job(2026))
        await processor.enqueue(SendEmail(to="bob"), tenant="acme", priority=9)
        with pytest.raises(AssertionError) as caught:
            await assert_enqueued(processor, SendEmail(to="ann"), queue="mails")
    assert str(caught.value).splitlines() == [
        HEAD,
        """  send_email {"to":"bob","copies":1} queue='mails' priority=9 tenant='acme' (pending)""",
        """  report {"year":2026,"draft":false} queue='reports' priority=5 (pending)""",
    ]


async def test_the_message_says_when_there_is_nothing(processor: Processor) -> None:
    async with processor:
        with pytest.raises(AssertionError) as caught:
            await assert_enqueued(processor, "send_email")
    assert str(caught.value) == "no job 'send_email' was enqueued; nothing was"


async def test_the_message_stays_short(processor: Processor) -> None:
    async with processor:
        await processor.enqueue_many([SendEmail(to="x" * 500) for _ in range(30)])
        with pytest.raises(AssertionError) as caught:
            await assert_enqueued(processor, report)
    lines = str(caught.value).splitlines()
    assert (len(lines), lines[-1]) == (22, "  … and 10 more")
    assert max(map(len, lines)) < 300


async def test_a_job_that_completed_is_found_by_its_arguments(processor: Processor) -> None:
    async with processor:
        await processor.enqueue(SendEmail(to="ann"))
        await processor.drain()
        await assert_enqueued(processor, SendEmail(to="ann"), state=State.COMPLETED)
        with pytest.raises(AssertionError):
            await assert_enqueued(processor, SendEmail(to="bob"))


async def test_a_job_without_kept_arguments_is_found_by_its_class_only() -> None:
    processor = Processor(MemoryBackend(), keep_arguments="no")
    processor.register(SendEmail)
    async with processor:
        await processor.enqueue(SendEmail(to="ann"))
        await processor.drain()
        await assert_enqueued(processor, SendEmail, state=State.COMPLETED)
        with pytest.raises(AssertionError, match="arguments not kept"):
            await assert_enqueued(processor, SendEmail(to="ann"))


async def test_a_payload_that_is_no_object_is_shown_and_matches_no_argument() -> None:
    backend = MemoryBackend()
    await backend.producing.enqueue([NewJob("a", "raw", "default", b"\xff\n[1]")])
    await assert_enqueued(backend, "raw")
    with pytest.raises(AssertionError, match=r"raw \\xff\\n\[1\] queue"):
        await assert_enqueued(backend, "raw", to="ann")


async def test_a_job_that_must_not_be_enqueued_is_shown(processor: Processor) -> None:
    async with processor:
        await assert_not_enqueued(processor, SendEmail)
        await processor.enqueue(SendEmail(to="ann"), tenant="acme")
        await assert_not_enqueued(processor, SendEmail, tenant="other")
        await assert_not_enqueued(processor, SendEmail(to="bob"))
        await assert_not_enqueued(processor, report)
        with pytest.raises(AssertionError) as caught:
            await assert_not_enqueued(processor, SendEmail, tenant="acme")
    assert str(caught.value) == (
        "job 'send_email' with tenant='acme' was enqueued:\n"
        """  send_email {"to":"ann","copies":1} queue='mails' priority=5 tenant='acme' (pending)"""
    )


NO_SUCH_FIELD = [
    ({"too": "ann"}, "job 'send_email' has no field 'too'; did you mean 'to'?"),
    ({"quue": "a"}, "job 'send_email' has no field 'quue'; did you mean 'queue'?"),
    ({"xyz": None}, "job 'send_email' has no field 'xyz'; it has: to, copies"),
    ({"to": 3}, "job 'send_email', field 'to': expected `str`, got `int`"),
    ({"copies": "1"}, "job 'send_email', field 'copies': expected `int`, got `str`"),
    (
        {"priority": "7"},
        "job 'send_email', field 'priority' of the record: expected `int`, got `str`",
    ),
    (
        {"tenant": 3},
        "job 'send_email', field 'tenant' of the options: expected `str | null`, got `int`",
    ),
]


@pytest.mark.parametrize(("fields", "message"), NO_SUCH_FIELD, ids=lambda value: str(value)[:20])
@pytest.mark.parametrize("what", ["send_email", SendEmail, SendEmail(to="ann")], ids=repr)
async def test_a_condition_that_no_job_could_meet_is_an_error(
    processor: Processor, what: object, fields: dict[str, object], message: str
) -> None:
    async with processor:
        await processor.enqueue(SendEmail(to="ann"))
        for check in (assert_enqueued, assert_not_enqueued):
            with pytest.raises(InvalidJob) as caught:
                await check(processor, what, **fields)
            assert str(caught.value) == message


async def test_a_name_that_is_not_registered_is_an_error(processor: Processor) -> None:
    message = (
        "job 'send_emial' is not registered here; did you mean 'send_email'? "
        "For a job of another program, pass `processor.backend`"
    )
    async with processor:
        with pytest.raises(InvalidJob) as caught:
            await assert_not_enqueued(processor, "send_emial")
        assert str(caught.value) == message
        with pytest.raises(AssertionError) as failed:
            await assert_enqueued(processor, "send_emial")
        assert str(failed.value) == f"no job 'send_emial' was enqueued; nothing was\n{message}"
        with pytest.raises(InvalidJob, match=r"; known: report, send_email\. For a job"):
            await assert_not_enqueued(processor, "xyz")
        await assert_not_enqueued(processor.backend, "send_emial")


@job
def remind(at: datetime, *, mail: uuid.UUID) -> None: ...


async def test_a_value_may_be_a_python_object_its_json_or_an_object_that_compares(
    nimburion_processor: MakeProcessor,
) -> None:
    at, mail = datetime(2026, 1, 2, tzinfo=UTC), uuid.UUID(int=7)
    async with nimburion_processor(remind) as processor:
        await processor.enqueue(remind.job(at, mail=mail), tags=["a"])
        for value in (at, "2026-01-02T00:00:00Z", mock.ANY):
            await assert_enqueued(processor, remind, at=value)
        for other in (mail, str(mail), mock.ANY):
            await assert_enqueued(processor, "remind", mail=other)
        await assert_enqueued(processor, remind, tags=["a"], due=pytest.approx(0, abs=1e12))
        await assert_not_enqueued(processor, remind, mail=uuid.UUID(int=8))
        with pytest.raises(InvalidJob, match="field 'mail'"):
            await assert_not_enqueued(processor, remind, mail="no id")


@dataclasses.dataclass
class Mail:
    to: str
    queue: str = "post"


@job(batch=10)
def send(mails: list[Mail]) -> None: ...


async def test_a_job_of_a_batch_is_found_by_the_fields_of_its_argument(
    nimburion_processor: MakeProcessor,
) -> None:
    async with nimburion_processor(send) as processor:
        job_id = await processor.enqueue(send.job(Mail("ann")))
        for what in (send, "send", send.job(Mail("ann"))):
            assert (await assert_enqueued(processor, what, to="ann", queue="default")).id == job_id
        await assert_enqueued(processor, send, mails={"to": "ann", "queue": "post"})
        await assert_not_enqueued(processor, send, to="bob")
        with pytest.raises(InvalidJob, match="job 'send' has no field 'too'; did you mean 'to'"):
            await assert_not_enqueued(processor, send, too="ann")
        with pytest.raises(AssertionError, match='"to":"ann"'):
            await assert_enqueued(processor, "send", to="bob")


async def test_an_argument_with_the_name_of_a_field_of_the_record_is_the_argument(
    nimburion_processor: MakeProcessor,
) -> None:
    @job(queue="mails")
    async def greet(name: str, queue: int, tenant: str = "none") -> None: ...

    async with nimburion_processor(greet) as processor:
        await processor.enqueue(greet.job("ann", 3), tenant="acme")
        for what in (greet, "greet"):
            await assert_enqueued(processor, what, name="ann", queue=3, tenant="none")
            with pytest.raises(AssertionError, match="name='ann'"):
                await assert_not_enqueued(processor, what, name="ann")
            with pytest.raises(InvalidJob, match="queue"):
                await assert_enqueued(processor, what, queue="mails")
        # The arguments of a job are its own already.
        await assert_enqueued(processor, greet.job("ann", 3), queue="mails", tenant="acme")
        await assert_enqueued(processor.backend, "greet", name="ann")


async def test_an_instance_that_no_payload_holds_is_refused(processor: Processor) -> None:
    class Order:
        """A row of the application, in place of its id."""

    async with processor:
        for check in (assert_enqueued, assert_not_enqueued):
            with pytest.raises(InvalidJob, match="field 'year': expected `int`, got `Order`"):
                await check(processor, report, year=Order())
