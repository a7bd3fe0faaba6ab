"""What a worker asks for."""

from __future__ import annotations

from nimburion.core.exchange import Lane
from nimburion.core.lease import Delivery, Lease, Token
from nimburion.core.settings import QueueSettings, Settings
from nimburion.jobs.declaration.registry import Registry
from nimburion.jobs.worker.prefetch import LaneSelector


def test_a_queue_whose_concurrency_is_used_up_is_not_asked_for() -> None:
    # Asked for, the backend would answer "there is more", and the worker would ask without end.
    settings = Settings(queues=(QueueSettings("capped", concurrency=1), QueueSettings("free")))
    registry = Registry(settings)
    registry.add_raw("work", lambda ctx, data: None)
    demand = LaneSelector(registry, settings, bytes)
    delivery = Delivery(Lease("id", Token(1, bytes(16))), "work", "capped", b"{}")

    demand.occupy_slot(delivery)
    full = demand.make_request(5, everything=True)
    demand.free_slot(delivery)
    again = demand.make_request(5, everything=True)

    assert full.lanes == (Lane("free", "work"),)
    assert again.lanes == (Lane("capped", "work"), Lane("free", "work"))
    assert again.queues["capped"].limit == 1
