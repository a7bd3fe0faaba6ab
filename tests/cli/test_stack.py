"""`nimburion jobs stack`: where the handler of a running job is."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from nimburion.jobs import Context, Processor
from tests.cli.conftest import CommandLine


@contextmanager
def run_worker(nimburion: CommandLine) -> Iterator[None]:
    """Run a worker in a thread while it holds the job `held`."""
    started, release = threading.Event(), threading.Event()

    def hold(_: Context, payload: bytes) -> None:
        started.set()
        release.wait()  # where it waits

    async def run() -> None:
        processor = Processor(f"sqlite:///{nimburion.folder}/nimburion.db", session_ttl=4.0)
        processor.register("hold", hold)
        async with processor:
            await processor.start()
            await processor.enqueue_raw("hold", b'{"card":"4111-1111"}', id="held")
            await asyncio.to_thread(release.wait)
            await processor.stop(1.0)

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        assert started.wait(20.0)
        yield
    finally:
        release.set()
        thread.join()


def test_a_running_job_shows_its_stack(nimburion: CommandLine) -> None:
    with run_worker(nimburion):
        shown = nimburion("jobs", "stack", "held")
        data = nimburion("jobs", "stack", "held", "--json").data
    assert shown.code == 0, shown.err
    assert shown.out.startswith("held in its thread:\n")
    assert "# where it waits" in shown.out
    assert "4111" not in shown.out
    assert (data["outcome"], data["stack"]["place"]) == ("shown", "thread")


def test_a_job_that_waits_has_none(nimburion: CommandLine) -> None:
    nimburion.enqueue("a")
    shown = nimburion("jobs", "stack", "a")
    assert (shown.code, shown.out) == (1, "a does not run\n")
    missing = nimburion("jobs", "stack", "x")
    assert missing.code == 4
