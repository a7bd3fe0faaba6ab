"""Create an account, wait three days, wait up to seven days for a click, and send a mail.

python onboard.py ann@example.com
nimburion worker onboard:processor
"""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta

import msgspec

from nimburion import DurableContext, Processor, Signal, config


class Confirmed(msgspec.Struct):
    """What the link in the mail tells us."""

    by: str


confirmed = Signal("confirmed", Confirmed)
processor = Processor.from_config(config.load())
accounts: list[str] = []
"""The accounts that this process has created."""
sent: list[str] = []
"""The mails that this process has sent."""


async def create_account(email: str) -> int:
    """Create an account, and return its number."""
    accounts.append(email)
    return len(accounts)


@processor.job(queue="mail")
async def send_mail(to: str, text: str) -> None:
    """Send a mail."""
    sent.append(f"{to}: {text}")


@processor.job
async def onboard(ctx: DurableContext, email: str, trial_days: int = 3) -> str:
    """Return who confirmed the address, or `expired`."""
    account = await ctx.step(create_account, email)
    await ctx.sleep("trial", timedelta(days=trial_days))
    answer = await ctx.wait_for(confirmed, timeout=timedelta(days=7))
    if answer is None:
        return "expired"
    await ctx.run(send_mail.job(email, f"account {account} is confirmed"))
    return answer.by


async def confirm(job_id: str, by: str, click: str) -> None:
    """Tell a run that the link was clicked. The same `click` counts once."""
    await processor.signal(job_id, confirmed, Confirmed(by), id=click)


async def start(email: str) -> str:
    """Start the run for an address. A repeat changes nothing."""
    async with processor:
        return await processor.enqueue(onboard.job(email), id=f"onboard-{email}")


if __name__ == "__main__":
    asyncio.run(start(sys.argv[1]))
