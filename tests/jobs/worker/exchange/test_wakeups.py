"""How long a worker waits for a notification before it polls."""

from __future__ import annotations

from collections.abc import Collection

import msgspec
import pytest

from nimburion.core.backend import Capabilities
from nimburion.jobs.worker.exchange.wakeups import WakeupListener
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
