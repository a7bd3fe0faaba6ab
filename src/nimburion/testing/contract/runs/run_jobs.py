"""What the cases of durable runs share: suspend a run, and send signals to it."""

from __future__ import annotations

from nimburion.core.flows import SourceKind, WaitSource
from nimburion.core.lease import Delivery
from nimburion.core.runs import NewSignal, RunPage, SignalOutcome, make_signal_source
from nimburion.core.settlement import Recorded, Settled, Suspended
from nimburion.testing.contract.harness import HandDrivenWorker, Harness

RUN = "order"
"""The id of the job of most cases."""
PAID = make_signal_source(RUN, "paid")
"""What the run waits for in most cases."""


def flow_source(flow_id: str) -> WaitSource:
    """Return the source that is met when a flow has ended."""
    return WaitSource(SourceKind.FLOW, flow_id)


async def start(harness: Harness, worker: HandDrivenWorker) -> Delivery:
    """Enqueue the run, and reserve it."""
    await harness.add(RUN)
    return await worker.take_one()


async def suspend(
    worker: HandDrivenWorker,
    delivery: Delivery,
    *sources: WaitSource,
    delay: float | None = None,
) -> None:
    """Let a run that is held wait for the first of these."""
    reply = await worker.exchange(Suspended(delivery.lease, sources, delay))
    assert reply.results == [Settled.DONE]


async def start_suspended(
    harness: Harness,
    worker: HandDrivenWorker,
    *sources: WaitSource,
    delay: float | None = None,
) -> Delivery:
    """Enqueue the run, reserve it, and let it wait for the first of these."""
    delivery = await start(harness, worker)
    await suspend(worker, delivery, *sources, delay=delay)
    return delivery


async def record(
    worker: HandDrivenWorker,
    delivery: Delivery,
    number: int,
    body: bytes = b"1",
    *,
    takes: int | None = None,
    forgets: bool = False,
) -> None:
    """Store a step of a run that is held."""
    step = Recorded(delivery.lease, number, body, takes, forgets)
    assert (await worker.exchange(step)).results == [Settled.DONE]


async def send(
    harness: Harness, name: str = "paid", payload: bytes = b"1", *, key: str = "s1"
) -> SignalOutcome:
    """Send one signal to the run."""
    signal = NewSignal(RUN, name, key, payload)
    (outcome,) = await harness.backend.producing.send_signals([signal])
    return outcome


async def read_steps(harness: Harness) -> list[tuple[int, bytes]]:
    """Return the numbers and the bodies of the steps of the run."""
    return [(step.number, step.body) for step in (await read(harness)).steps]


async def read_signals(harness: Harness) -> list[tuple[str, bytes]]:
    """Return the names and the payloads of the unread signals of the run."""
    return [(signal.name, signal.payload) for signal in (await read(harness)).signals]


async def read(harness: Harness) -> RunPage:
    """Return all that is stored about the run."""
    page = await harness.backend.reads.read_run(RUN)
    assert page.next is None
    return page
