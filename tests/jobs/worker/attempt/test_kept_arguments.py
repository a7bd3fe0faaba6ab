"""Which completed jobs keep their arguments."""

from __future__ import annotations

import pytest

from nimburion import job
from nimburion.backends.memory import MemoryBackend
from nimburion.core.settings import Choice, QueueSettings
from nimburion.jobs import Processor


@job(name="send", queue="mail")
def send(number: int) -> None:
    """Do nothing."""


@pytest.mark.parametrize(
    ("general", "of_queue", "kept"),
    [
        ("auto", "auto", True),
        ("no", "auto", False),
        ("yes", "auto", True),
        ("no", "yes", True),
        ("yes", "no", False),
        ("auto", "no", False),
    ],
)
async def test_the_setting_of_the_queue_comes_first(
    general: Choice, of_queue: Choice, *, kept: bool
) -> None:
    queues = (QueueSettings("mail", keep_arguments=of_queue),)
    processor = Processor(MemoryBackend(), keep_arguments=general, queues=queues)
    processor.register(send)
    async with processor:
        job_id = await processor.enqueue(send.job(7))
        await processor.drain()
        record = await processor.backend.reads.get_job(job_id)
    assert record.payload == (b'{"number":7}' if kept else None)
