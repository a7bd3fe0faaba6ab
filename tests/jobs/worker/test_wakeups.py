"""How long a worker waits for a ring before it looks by itself."""

from __future__ import annotations

from collections.abc import Collection

import msgspec
import pytest

from nimburion.backends.memory import MemoryBackend
from nimburion.core.backend import Capabilities
from nimburion.core.exchange import Reply
from nimburion.core.service import wait_for_first
from nimburion.jobs.worker.wakeups import WakeupListener
from nimburion.testing import FakeClock


class Timed(MemoryBackend):
    """Notes how long it is asked to wait; whether it notifies is known when it is open."""

    def __init__(self) -> None:
        super().__init__()
        self.rings = True
        self.asked: list[float] = []

    @property
    def capabilities(self) -> Capabilities:
        return msgspec.structs.replace(super().capabilities, notifies=self.rings)

    async def wait(self, queues: Collection[str], timeout: float) -> None:
        self.asked.append(timeout)


@pytest.mark.parametrize(("rings", "seconds"), [(True, 2.0), (False, 1.0)])
async def test_an_idle_worker_looks_each_second_where_nothing_rings(
    rings: bool, seconds: float
) -> None:
    store, clock = Timed(), FakeClock()
    hints = WakeupListener(store, ("q",), clock, lambda: None)
    store.rings = rings
    hints.note_reply(Reply([], [], [], None, clock.now()), found=False)
    await hints.start()
    hints.resume()
    while not store.asked:
        await wait_for_first(clock.sleep(0))
    await hints.stop()
    assert store.asked[0] == seconds
