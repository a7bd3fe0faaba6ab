"""What a worker asks for."""

from __future__ import annotations

from nimburion.core.exchange import Lane
from nimburion.core.lease import Delivery, Lease, Token
from nimburion.core.settings import QueueSettings, Settings
from nimburion.jobs.declaration.registry import Registry
from nimburion.jobs.worker.exchange.lane_selector import LaneSelector


def test_a_queue_at_its_concurrency_is_not_requested() -> None:
    # Asked for, the backend would answer "there is more", and the worker would ask without end.
    settings = Settings(queues=(QueueSettings("capped", concurrency=1), QueueSettings("free")))
    registry = Registry(settings)
    registry.add_raw("work", lambda ctx, data: None)
    selector = LaneSelector(registry, settings, bytes)
    delivery = Delivery(Lease("id", Token(1, bytes(16))), "work", "capped", b"{}")

    selector.occupy_slot(delivery)
    full = selector.make_request(5, everything=True)
    selector.free_slot(delivery)
    again = selector.make_request(5, everything=True)

    assert full.lanes == (Lane("free", "work"),)
    assert again.lanes == (Lane("capped", "work"), Lane("free", "work"))
    assert again.queues["capped"].limit == 1
