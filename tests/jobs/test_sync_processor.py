"""`processor.sync.drain` and `process_one`: jobs run for code that is not async."""

from __future__ import annotations

import asyncio
import inspect
import pydoc
import re
import threading
from pathlib import Path

import pytest

from nimburion.backends.memory import MemoryBackend
from nimburion.core.errors import NothingRegistered, UseAwait
from nimburion.jobs import Processor, job
from nimburion.testing import FakeClock


@job
async def double(number: int) -> int:
    return 2 * number


def make_processor(url: str = "memory://") -> Processor:
    processor = Processor(url)
    processor.register(double)
    return processor


def test_a_script_drains_what_it_enqueued(tmp_path: Path) -> None:
    processor = make_processor(f"sqlite:///{tmp_path}/jobs.db")
    with processor.sync as sync:
        ids = [sync.enqueue(double.job(number)) for number in range(3)]
        assert sync.process_one()
        assert sync.drain() == 2
        assert not sync.process_one()
        assert [sync.wait(job_id) for job_id in ids] == [0, 2, 4]
    assert processor.health().state == "stopped"


def test_handlers_enqueue_while_it_drains() -> None:
    before = set(threading.enumerate())
    processor = make_processor()

    @processor.job
    def parent(number: int) -> str:
        return double_again.enqueue_sync(number)

    @processor.job
    async def double_again(number: int) -> str:
        return await processor.enqueue(double.job(number))

    with processor.sync as sync:
        parent.enqueue_sync(4)
        assert sync.drain() == 3
    assert not set(threading.enumerate()) - before


def test_it_moves_a_fake_clock() -> None:
    clock = FakeClock()
    processor = Processor(MemoryBackend(clock=clock), clock=clock)
    processor.register(double)
    with processor.sync as sync:
        sync.enqueue(double.job(4), after=3600)
        assert (sync.drain(), sync.drain(advance=True)) == (0, 1)


async def test_from_another_thread_it_runs_on_the_owning_loop() -> None:
    loops = []
    processor = Processor("memory://")

    @processor.job
    async def see() -> None:
        loops.append(asyncio.get_running_loop())

    async with processor:
        await see.enqueue()
        assert await asyncio.to_thread(processor.sync.drain) == 1
        with pytest.raises(UseAwait, match=r"write `await processor\.drain\(\)`"):
            processor.sync.drain()
    assert loops == [asyncio.get_running_loop()]


async def test_on_the_thread_of_another_loop_it_says_to_await() -> None:
    processor = make_processor()
    with pytest.raises(UseAwait, match=r"write `async with processor:` and `await processor\.dr"):
        processor.sync.drain()
    with pytest.raises(UseAwait, match=r"and `await processor\.process_one\(\)`"):
        processor.sync.process_one()


def test_errors_are_raised_in_the_caller() -> None:
    processor = Processor("memory://")
    with processor.sync as sync:
        sync.enqueue_raw("unknown", b"{}")
        with pytest.raises(NothingRegistered, match="unknown"):
            sync.drain()


@pytest.mark.parametrize("name", ["drain", "process_one", "enqueue", "wait"])
def test_the_parameters_are_those_of_the_async_method(name: str) -> None:
    asynchronous = inspect.signature(getattr(Processor("memory://"), name))
    blocking = inspect.signature(getattr(Processor("memory://").sync, name))
    assert list(blocking.parameters.values()) == list(asynchronous.parameters.values())


def test_help_shows_the_parameters_and_the_options() -> None:
    text = re.sub("\b.", "", pydoc.render_doc(Processor("memory://").sync.enqueue))
    signature = "enqueue(job: 'JobReturning[R]', **options: 'Unpack[EnqueueOptions]') -> 'JobId[R]'"
    assert signature in text
    assert "`unique_key`" in text
