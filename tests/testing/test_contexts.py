"""`make_context`: a handler that a test calls directly."""

from __future__ import annotations

import pytest

from nimburion.core.errors import Cancel, NotOpen
from nimburion.jobs import Context, Job, Processor, job
from nimburion.testing import make_context


class Greet(Job):
    name: str

    async def process(self, ctx: Context) -> str:
        ctx.progress(0.5, "half")
        return f"{self.name} {ctx.attempt} {ctx.tenant} {ctx.headers['source']}"


@job
def follow_up(number: int) -> None: ...


async def test_a_handler_gets_the_values_of_the_test() -> None:
    reports: list[tuple[float, str]] = []
    context = make_context(
        failures=2,
        lost=1,
        tenant="acme",
        headers={"source": "form"},
        on_progress=lambda fraction, message: reports.append((fraction, message)),
    )
    assert await Greet(name="ann").process(context) == "ann 4 acme form"
    assert reports == [(0.5, "half")]


def test_a_context_has_the_state_of_the_test() -> None:
    assert make_context(state="state").state == "state"
    with pytest.raises(NotOpen):
        assert make_context().state


def test_a_cancelled_context_ends_the_handler() -> None:
    with pytest.raises(Cancel):
        make_context(cancelled=True).raise_if_cancelled()


def test_a_timeout_counts_from_now() -> None:
    remaining = make_context(timeout=60).remaining()
    assert remaining is not None
    assert 0 < remaining <= 60
    assert make_context().remaining() is None


async def test_jobs_are_enqueued_with_the_processor_that_is_given() -> None:
    async with Processor("memory://") as processor:
        job_id = await make_context(processor=processor).enqueue(follow_up.job(1))
        assert (await processor.get_status(job_id)).args == {"number": 1}
    with pytest.raises(NotOpen, match="no processor to enqueue with"):
        await make_context().enqueue(follow_up.job(1))
