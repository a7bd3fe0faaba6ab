"""A running worker and `drain` continue what follows from the end of a job with many dependents."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from nimburion import Flow, Processor, job
from nimburion.core.flows import FlowState
from nimburion.types import JobCall

DEPENDENTS = 800
"""More than three steps of `MAX_RESOLVED`."""


@job(max_retries=0)
async def give_up() -> int:
    raise ValueError("no")


@job
async def work(number: int) -> int:
    return number


def make_wide_flow(end: JobCall[Any]) -> Flow:
    flow = Flow("wide", on_finished=end)
    flow.add_all((work.job(n) for n in range(DEPENDENTS)), depends_on=flow.add(give_up.job()))
    return flow


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/jobs.db"


@pytest.mark.parametrize("ended_by", ["failure", "operator"])
async def test_a_started_worker_continues(url: str, ended_by: str) -> None:
    processor, has_ended = Processor(url), asyncio.Event()

    @processor.job
    async def report() -> None:
        has_ended.set()

    processor.register(work)
    if ended_by == "failure":
        processor.register(give_up)
    async with processor, asyncio.timeout(120):
        await processor.enqueue_flow(make_wide_flow(report.job()), id="w")
        await processor.start()
        if ended_by == "operator":
            await processor.cancel("w.give_up")
        await has_ended.wait()
        flow = await processor.flows.get("w")
        await processor.stop()
    assert flow.state is not FlowState.RUNNING
    assert flow.groups[0].cancelled == DEPENDENTS


async def test_drain_leaves_nothing(url: str) -> None:
    processor = Processor(url)
    processor.register(give_up, work)
    async with processor:
        await processor.enqueue_flow(make_wide_flow(work.job(-1)), id="w")
        assert await processor.drain() == 2
        assert (await processor.flows.get("w")).state is FlowState.FAILED
