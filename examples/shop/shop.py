"""A shop with FastAPI and SQLAlchemy. Each job is enqueued in the transaction that it belongs to.

The orders are in the database DATABASE_URL. The jobs are in the same one, in another one or in
Redis: only NIMBURION_JOBS__URL differs.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, HTTPException
from pydantic import BaseModel
from sqlalchemy import DateTime, update
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from nimburion import (
    Batch,
    ChildProcess,
    Context,
    Limit,
    Outbox,
    PermanentError,
    Processor,
    Scheduler,
    config,
)
from nimburion.errors import JobNotFound
from nimburion.integrations.fastapi import ProcessorDependency, router

# The database, the outbox and the processor


class Base(DeclarativeBase):
    """The tables of the shop."""


class Order(Base):
    """An order: `new`, then `paid` or `cancelled`."""

    __tablename__ = "shop_order"

    number: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[str]
    item: Mapped[str]
    price: Mapped[int]
    state: Mapped[str] = mapped_column(default="new")
    invoice_job: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


engine = create_async_engine(os.environ.get("DATABASE_URL", "sqlite+aiosqlite:///shop.db"))
open_session = async_sessionmaker(engine, expire_on_commit=False)

settings = config.load().jobs
outbox = Outbox(engine)  # used only if the jobs are not in the database of the orders
outbox.add_table(Base.metadata)
processor = Processor(settings.url, settings, outbox=outbox)

# The jobs


@dataclass
class Mail:
    """A mail to a customer."""

    to: str
    text: str


@processor.job(queue="mail", batch=Batch(100, wait=0.5), max_retries=5)
async def send_mails(mails: list[Mail]) -> list[str | Exception]:
    """Hand up to 100 mails to the mail server in one call. Each mail has an outcome of its own."""
    return [
        f"sent to {mail.to}" if "@" in mail.to else PermanentError(f"{mail.to} is no address")
        for mail in mails
    ]


@processor.job(queue="invoices", execution=ChildProcess(memory="512MB"), timeout=60)
def draw_invoice(ctx: Context, number: int, items: list[str], price: int) -> str:
    """Draw an invoice: work for the CPU, in a child process of the worker."""
    lines = [f"Invoice {number}"]
    for place, item in enumerate(items, 1):
        lines.append(f"{place}. {item}")
        ctx.progress(place / len(items), f"item {place} of {len(items)}")
    return "\n".join([*lines, f"Total: {price}"])


@processor.job(queue="payments", limits=[Limit(1, key="customer")], max_retries=5, timeout=30)
async def charge(customer: str, number: int, price: int) -> str:
    """Take the payment of an order, one at a time for each customer.

    The job may run twice. The bank takes the payment of an order once, and only the run that
    changes the state of the order enqueues what follows.
    """
    await take_payment(customer, number, price)
    async with open_session.begin() as session:
        payment = update(Order).where(Order.number == number, Order.state != "paid")
        order = await session.scalar(payment.values(state="paid").returning(Order))
        if order is not None:
            invoice = draw_invoice.job(number, [order.item], price)
            order.invoice_job = await processor.enqueue(invoice, connection=session)
            mail = send_mails.job(Mail(customer, f"Your order {number} is paid."))
            await processor.enqueue(mail, connection=session)
    return f"paid {price}"


async def take_payment(customer: str, number: int, price: int) -> None:
    """Ask the bank, which knows a payment by the number of its order. This one is made up."""
    if price > 1_000:
        raise PermanentError(f"the card of {customer} is declined for order {number}")


@processor.job
async def cancel_unpaid() -> int:
    """Cancel the orders that were not paid for a week."""
    last_week = datetime.now(UTC) - timedelta(days=7)
    old = update(Order).where(Order.state == "new", Order.created_at < last_week)
    async with open_session.begin() as session:
        cancelled = await session.scalars(old.values(state="cancelled").returning(Order.number))
        return len(cancelled.all())


scheduler = Scheduler(processor, timezone="Europe/Rome")
scheduler.schedule("0 3 * * *", cancel_unpaid.job(), name="cancel-unpaid")

# The application


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Create the tables, which a migration does elsewhere. The router opens the processor."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)
app.include_router(router(processor))

Customer = Annotated[str, Header(alias="X-Customer")]
"""The mail address of the customer. In an application of yours: the user who has signed in."""


class NewOrder(BaseModel):
    """What a customer orders."""

    item: str
    price: int


async def store_order(session: AsyncSession, customer: str, new: NewOrder) -> Order:
    """Store an order and its payment job: both exist after the commit, or neither."""
    order = Order(customer=customer, item=new.item, price=new.price, created_at=datetime.now(UTC))
    session.add(order)
    await session.flush()  # the database chooses the number
    await processor.enqueue(charge.job(customer, order.number, order.price), connection=session)
    return order


async def find_order(number: int, customer: Customer) -> Order:
    """Return an order of this customer; 404 for the orders of others."""
    async with open_session() as session:
        order = await session.get(Order, number)
    if order is None or order.customer != customer:
        raise HTTPException(404, f"you have no order {number}")
    return order


OwnOrder = Annotated[Order, Depends(find_order)]


@app.post("/orders", status_code=202)
async def place_order(new: NewOrder, customer: Customer) -> dict[str, int]:
    """Store an order, and answer with its number."""
    async with open_session.begin() as session:
        order = await store_order(session, customer, new)
    return {"number": order.number}


@app.get("/orders/{number}")
async def show_order(order: OwnOrder) -> dict[str, str]:
    """Show an order to its customer."""
    return {"item": order.item, "state": order.state}


@app.get("/orders/{number}/invoice")
async def show_invoice(order: OwnOrder, jobs: ProcessorDependency) -> dict[str, Any]:
    """Show the state, the progress and the result of the job that draws the invoice."""
    if order.invoice_job is None:
        raise HTTPException(404, f"order {order.number} is not paid")
    try:
        return (await jobs.get_status(order.invoice_job)).public_dict()
    except JobNotFound:  # still in the outbox, or deleted after `keep_completed`
        raise HTTPException(404, f"the invoice of order {order.number} is not there") from None
