"""A shop with SQLModel whose process dies at a point that the test names."""

from __future__ import annotations

import asyncio
import os
import sys

from sqlmodel import Field, Session, SQLModel, create_engine, select

from nimburion import Outbox, Processor
from nimburion.core.queries import JobFilter
from nimburion.jobs.outbox.outbox import get_rows


class Order(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    item: str


engine = create_engine(f"sqlite:///{os.environ['SHOP_FOLDER']}/shop.db")
outbox = Outbox(engine)
outbox.add_table(SQLModel.metadata)
processor = Processor(f"sqlite:///{os.environ['SHOP_FOLDER']}/jobs.db", outbox=outbox)


@processor.job
async def send_receipt(item: str) -> str:
    return f"receipt for {item}"


def place_order(item: str) -> str:
    """Store an order and its job in one transaction, and return the id of the job."""
    SQLModel.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Order(item=item))
        job_id = processor.sync.enqueue(send_receipt.job(item), connection=session)
        session.commit()
    return job_id


async def die_before_deleting_the_row() -> None:
    """Relay a job, and die after it was enqueued."""

    async def die(*_: object) -> None:
        os._exit(9)

    get_rows(outbox).delete = die  # type: ignore[assignment, method-assign]
    async with processor:
        await processor.drain()


async def work() -> str:
    """Relay and run what is there, as a worker does; say what was found."""
    async with processor:
        await processor.drain()
        jobs = (await processor.backend.reads.list_jobs(JobFilter(), limit=10)).jobs
        with Session(engine) as session:
            orders = len(session.exec(select(Order)).all())
        results = ", ".join([f"{each.id}: {await processor.wait(each.id)}" for each in jobs])
    return f"orders {orders}; jobs {results}"


if __name__ == "__main__":
    if sys.argv[1] == "work":
        sys.stdout.write(asyncio.run(work()))
    else:
        sys.stdout.write(place_order("hat"))
        sys.stdout.flush()
        if sys.argv[1] == "before the delete":
            asyncio.run(die_before_deleting_the_row())
        os._exit(9)
