"""How long a worker waits for a notification before it polls."""

from __future__ import annotations

import math
from collections.abc import Collection

import msgspec
import pytest

from nimburion.backends.memory import MemoryBackend
from nimburion.core.backend import Capabilities
from nimburion.jobs.worker.exchange.wakeups import LongPoll, WakeupListener
from nimburion.testing import FakeClock
from tests.overridden import OverridableBackend
from tests.waiting import wait_until


class Timed(OverridableBackend):
    """Notes how long it is asked to wait; whether it notifies is known when it is open."""

    def __init__(self) -> None:
        super().__init__()
        self.notifies = True
        self.waits: list[float] = []

    @property
    def capabilities(self) -> Capabilities:
        return msgspec.structs.replace(super().capabilities, notifies=self.notifies)

    async def wait(self, queues: Collection[str], timeout: float) -> None:
        self.waits.append(timeout)


@pytest.mark.parametrize(("notifies", "seconds"), [(True, 2.0), (False, 1.0)])
async def test_an_idle_worker_polls_each_second_without_notifications(
    notifies: bool, seconds: float
) -> None:
    backend, clock = Timed(), FakeClock()
    listener = WakeupListener(backend, ("q",), clock, lambda: None)
    backend.notifies = notifies
    listener.is_idle = True
    await listener.start()
    listener.resume()
    await wait_until(lambda: bool(backend.waits), "it waits")
    await listener.stop()
    assert backend.waits[0] == seconds


def test_no_exchange_waits_for_longer_than_a_third_of_the_time_to_live() -> None:
    """It would end the session: no exchange would succeed in its time."""
    long_poll = LongPoll(MemoryBackend(), ("q",), session_ttl=3.0)
    long_poll.longest = 10.0
    assert long_poll.choose_timeout(math.inf) == 1.0
    assert long_poll.choose_timeout(0.5) == 0.5
