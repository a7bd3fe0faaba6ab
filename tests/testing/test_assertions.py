"""What `assert_enqueued` finds, and what it says when it finds nothing."""

from __future__ import annotations

import dataclasses

import pytest

from nimburion.backends.memory import MemoryBackend
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
    [{"queue": "default"}, {"tenant": "other"}, {"to": "bob"}, {"nothing_of_that_name": None}],
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
        with pytest.raises(AssertionError, match='"to":"ann"'):
            await assert_enqueued(processor, "send", to="bob")
