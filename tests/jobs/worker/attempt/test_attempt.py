"""One delivery, without a worker around it."""

from __future__ import annotations

import asyncio

from nimburion.backends.memory import MemoryBackend
from nimburion.core.lease import Delivery, Lease, Token
from nimburion.core.settlement import Released
from nimburion.jobs import Processor
from nimburion.jobs.worker.attempt.attempt import Attempt
from nimburion.jobs.worker.attempt.threads import HandlerThreads


async def test_an_unknown_name_is_released() -> None:
    """A worker asks for names that it knows; should another come, it waits for who knows it."""
    processor = Processor(MemoryBackend())
    threads = HandlerThreads(1, asyncio.get_running_loop())
    attempts = processor._make_assembly().make_attempt_runner(threads, lambda *_: None, None)
    lease = Lease("a", Token(1, bytes(16)))
    attempt = Attempt(Delivery(lease, "from_another_release", "default", b"{}"), "session")
    assert await attempts.perform(attempt) == Released(lease, unstarted=True)
