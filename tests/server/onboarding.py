"""A durable run that waits for a signal, for the API and the dashboard."""

from __future__ import annotations

from nimburion import DurableContext, Signal, job
from tests.server.conftest import Api

confirmed: Signal[str] = Signal("confirmed", str)


def create_account(email: str) -> dict[str, str]:
    return {"email": email}


@job
async def onboard(ctx: DurableContext, email: str) -> str:
    """Create an account, and wait until somebody confirms it."""
    account = await ctx.step(create_account, email)
    answer = await ctx.wait_for(confirmed, timeout="7d")
    return f"{account['email']} {answer}"


async def start(api: Api) -> None:
    """Store the run `r`, which waits for a signal."""
    api.processor.register(onboard)
    await api.processor.enqueue(onboard.job("ann@example.com"), id="r")
    await api.processor.drain()
