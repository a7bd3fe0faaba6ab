"""Reserve the goods, charge the card and ship. If that fails for good, refund and release.

python order.py order-4711
nimburion worker order:processor
"""

from __future__ import annotations

import asyncio
import sys

from nimburion import DurableContext, Processor, config

processor = Processor.from_config(config.load())
log: list[str] = []
"""What this process has done."""


class OutOfStock(Exception):
    """The goods cannot be shipped."""


async def reserve(order_id: str) -> str:
    """Reserve the goods, and return the number of the reservation."""
    log.append("reserve")
    return f"reservation of {order_id}"


async def release(reservation: str) -> None:
    """Give the goods back."""
    log.append(f"release {reservation}")


async def charge(order_id: str, cents: int) -> str:
    """Charge the card, and return the number of the payment."""
    log.append(f"charge {cents}")
    return f"payment of {order_id}"


async def refund(payment: str) -> None:
    """Give the money back."""
    log.append(f"refund {payment}")


async def ship(order_id: str) -> str:
    """Ship the goods, and return the number of the shipment."""
    log.append("ship")
    if order_id.startswith("late"):
        raise OutOfStock(order_id)
    return f"shipment of {order_id}"


@processor.job(max_retries=2, retry_backoff=0.01)
async def order(ctx: DurableContext, order_id: str, cents: int) -> str:
    """Return the number of the shipment."""
    reservation = await ctx.step(reserve, order_id)
    ctx.undo(release, reservation)
    payment = await ctx.options(max_retries=5).step(charge, order_id, cents)
    ctx.undo(refund, payment)
    return await ctx.step(ship, order_id)


async def start(order_id: str) -> str:
    """Start an order. A repeat changes nothing."""
    async with processor:
        return await processor.enqueue(order.job(order_id, 4_200), id=order_id)


if __name__ == "__main__":
    asyncio.run(start(sys.argv[1]))
