"""What the shop does for its customers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from fastapi.testclient import TestClient
from shop import (
    Mail,
    NewOrder,
    Order,
    charge,
    draw_invoice,
    open_session,
    processor,
    scheduler,
    send_mails,
    store_order,
)

from nimburion.testing import assert_enqueued, assert_not_enqueued

T = TypeVar("T")

ANN = {"X-Customer": "ann@example.com"}
BOB = {"X-Customer": "bob@example.com"}


def run(client: TestClient, function: Callable[[], Awaitable[T]]) -> T:
    """Run an async function on the event loop of the application."""
    assert client.portal is not None
    return client.portal.call(function)


def place_order(client: TestClient, price: int = 3) -> int:
    """Order tea as Ann, and return the number of the order."""
    answer = client.post("/orders", headers=ANN, json={"item": "tea", "price": price})
    assert answer.status_code == 202
    return int(answer.json()["number"])


def test_an_order_is_paid_and_its_invoice_drawn(client: TestClient) -> None:
    order = f"/orders/{place_order(client)}"
    assert client.get(order, headers=ANN).json() == {"item": "tea", "state": "new"}
    assert client.get(f"{order}/invoice", headers=ANN).status_code == 404

    assert processor.sync.drain() == 3  # the payment, the invoice and the mail

    assert client.get(order, headers=ANN).json() == {"item": "tea", "state": "paid"}
    invoice = client.get(f"{order}/invoice", headers=ANN).json()
    assert set(invoice) == {"state", "progress", "result"}
    assert invoice["state"] == "completed"
    assert invoice["progress"]["message"] == "item 1 of 1"
    assert invoice["result"].endswith("1. tea\nTotal: 3")


def test_a_rollback_leaves_neither_order_nor_job(client: TestClient) -> None:
    async def store_and_roll_back() -> None:
        async with open_session() as session:
            await store_order(session, "cy@example.com", NewOrder(item="tea", price=3))
            await session.rollback()
        await processor.drain()
        await assert_not_enqueued(processor, charge, customer="cy@example.com")

    run(client, store_and_roll_back)


def test_a_payment_that_runs_twice_sends_one_mail(client: TestClient) -> None:
    number = place_order(client)
    charge.enqueue_sync("ann@example.com", number, 3)
    assert processor.sync.drain() == 4  # two payments, one invoice and one mail


def test_a_declined_card_leaves_the_order_unpaid(client: TestClient) -> None:
    order = f"/orders/{place_order(client, price=5_000)}"
    assert processor.sync.drain() == 1
    assert client.get(order, headers=ANN).json()["state"] == "new"


def test_customers_see_their_own_orders_only(client: TestClient) -> None:
    order = f"/orders/{place_order(client)}"
    processor.sync.drain()
    assert client.get(f"{order}/invoice", headers=ANN).status_code == 200
    assert client.get(f"{order}/invoice", headers=BOB).status_code == 404
    assert client.get(order, headers=BOB).status_code == 404


def test_each_mail_has_an_outcome_of_its_own(client: TestClient) -> None:
    ids = [send_mails.enqueue_sync(Mail(to, "Hello")) for to in ("ann@example.com", "bob")]
    run(client, lambda: assert_enqueued(processor, send_mails, to="bob"))
    processor.sync.drain()
    assert [processor.sync.get_status(each).state for each in ids] == ["completed", "failed"]


def test_the_schedule_cancels_old_orders(client: TestClient) -> None:
    async def store_old_order() -> int:
        long_ago = datetime.now(UTC) - timedelta(days=8)
        order = Order(customer="ann@example.com", item="hat", price=5, created_at=long_ago)
        async with open_session.begin() as session:
            session.add(order)
        return order.number

    old, new = run(client, store_old_order), place_order(client, price=5_000)
    run(client, scheduler.fire_due)  # as a worker does: it declares the schedules
    processor.sync.schedules.run_now("cancel-unpaid")
    processor.sync.drain()
    assert client.get(f"/orders/{old}", headers=ANN).json()["state"] == "cancelled"
    assert client.get(f"/orders/{new}", headers=ANN).json()["state"] == "new"


def test_a_worker_draws_invoices_in_a_child_process(client: TestClient) -> None:
    run(client, processor.start)
    job_id = draw_invoice.enqueue_sync(7, ["tea", "hat"], 8)
    assert processor.sync.wait(job_id, timeout=30) == "Invoice 7\n1. tea\n2. hat\nTotal: 8"
    run(client, processor.stop)
