"""What a status shows, to operators and to the users of an application."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import datetime

import pytest

from nimburion import Context, Processor, State, job
from nimburion.jobs.client.status import Status


@job(max_retries=0)
async def charge(card: str) -> None:
    raise ConnectionError(f"the bank refused {card}")


@job
async def count(ctx: Context, words: list[str]) -> dict[str, datetime | int]:
    ctx.progress(0.5, "half of it")
    return {"words": len(words)}


@pytest.fixture
async def processor() -> AsyncIterator[Processor]:
    async with Processor("memory://") as one:
        one.register(charge, count)
        yield one


async def read_status(processor: Processor, job_id: str) -> Status:
    await processor.drain()
    return await processor.get_status(job_id)


async def test_the_public_form_has_state_progress_and_result(processor: Processor) -> None:
    status = await read_status(processor, await processor.enqueue(count.job(["a", "b"])))
    assert status.public_dict() == {
        "state": "completed",
        "progress": {"fraction": 0.5, "message": "half of it"},
        "result": {"words": 2},
    }


async def test_the_public_form_tells_nothing_about_an_error(processor: Processor) -> None:
    failing = charge.job("4242")
    status = await read_status(processor, await processor.enqueue(failing, headers={"a": "b"}))
    assert status.state is State.FAILED
    assert status.public_dict() == {"state": "failed", "progress": None, "result": None}


async def test_all_times_of_the_full_form_are_of_one_kind(processor: Processor) -> None:
    status = await read_status(processor, await processor.enqueue(charge.job("4242")))
    plain = status.to_dict()
    json.dumps(plain)
    assert plain["error"] == plain["history"][-1]
    times = [
        *(plain[name] for name in ("due", "created_at", "started_at", "finished_at")),
        *(plain["error"][name] for name in ("at", "started_at")),
    ]
    assert all(datetime.fromisoformat(time).tzinfo is not None for time in times)
    assert status.error is not None
    assert datetime.fromisoformat(plain["error"]["at"]).timestamp() == pytest.approx(
        status.error.at, abs=1e-5
    )
    assert plain["error"]["message"] == "the bank refused 4242"


async def test_a_time_that_is_unknown_is_null(processor: Processor) -> None:
    status = await read_status(processor, await processor.enqueue(count.job([])))
    assert status.to_dict()["history"] == []
    assert status.to_dict()["error"] is None
